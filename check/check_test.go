package check_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/check"
	"cardinalsin/checkpoint"
	"cardinalsin/chunk"
	"cardinalsin/compactor"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
	"cardinalsin/vacuum"
)

const root = "default/metrics"

// table is a small table whose parts a test can damage.
type table struct {
	t     *testing.T
	store *mem.Store
	log   *txlog.Log
	n     int
}

func newTable(t *testing.T) *table {
	t.Helper()
	store := mem.New(mem.Options{})
	log, err := txlog.Create(t.Context(), store, root, txlog.CreateOptions{
		Schema: chunk.BaseSchema(), PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &table{t: t, store: store, log: log}
}

var day = series.FromTime(time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC))

// member is one of the three series of each file.
func member(i int) labels.Labels { return labels.FromStrings("__name__", "m", "i", fmt.Sprint(i)) }

// file commits one chunk of a few series; edit changes the add before.
func (tb *table) file(edit func(*action.Add)) *action.Add {
	tb.t.Helper()
	snap, err := tb.log.Snapshot(tb.t.Context(), txlog.Latest())
	if err != nil {
		tb.t.Fatal(err)
	}
	layout, err := chunk.LayoutOf(snap.Schema())
	if err != nil {
		tb.t.Fatal(err)
	}
	columns := layout.Grow([]string{"i"})
	if layout, err = chunk.LayoutOf(&action.Schema{Fields: append(slices.Clone(snap.Schema().Fields), columns...)}); err != nil {
		tb.t.Fatal(err)
	}
	tb.n++
	var in []chunk.Series
	for i := range 3 {
		l := member(i)
		in = append(in, chunk.Series{Labels: l, ID: series.IDOf(l), Samples: []series.Sample{{Time: day + series.Timestamp(tb.n), Value: float64(i), Start: int64(i)}}})
	}
	slices.SortFunc(in, func(a, b chunk.Series) int { return series.Compare(a.Labels, b.Labels, a.ID, b.ID) })
	enc, err := chunk.Encode(chunk.Options{}, layout, func(yield func(chunk.Series, error) bool) {
		for _, s := range in {
			if !yield(s, nil) {
				return
			}
		}
	})
	if err != nil {
		tb.t.Fatal(err)
	}
	stats, err := enc.Stats.Encode()
	if err != nil {
		tb.t.Fatal(err)
	}
	n := int64(tb.n)
	a := action.Add{
		Path:            fmt.Sprintf("date=2026-11-22/shard=1/%d.parquet", n),
		PartitionValues: action.ObjectOf(map[string]string{"date": "2026-11-22", "shard": "1"}),
		Size:            int64(len(enc.Data)), DataChange: true, Stats: stats,
		Tags: chunk.Tags{Order: chunk.Order{Lo: n, Hi: n}, WAL: []chunk.WALRange{{Writer: "9f0c3c0e-8a53-4f61-a0a2-2f5f1a1f2b3c", First: uint64(n), Last: uint64(n)}}, Time: enc.Time, Keys: enc.Keys}.Encode(),
	}
	if _, err := tb.store.Put(tb.t.Context(), root+"/"+a.Path, bytes.NewReader(enc.Data)); err != nil {
		tb.t.Fatal(err)
	}
	if edit != nil {
		edit(&a)
	}
	tx := tb.log.Begin(snap, txlog.Operation{Name: "WRITE"})
	tx.AddColumns(columns...)
	tx.Add(a)
	if _, err := tx.Commit(tb.t.Context()); err != nil {
		tb.t.Fatal(err)
	}
	return &a
}

func (tb *table) checkpoint() {
	tb.t.Helper()
	if _, err := tb.log.Checkpoint(tb.t.Context()); err != nil {
		tb.t.Fatal(err)
	}
	if err := tb.log.Upkeep(tb.t.Context()); err != nil {
		tb.t.Fatal(err)
	}
}

// replace rewrites an object through edit.
func (tb *table) replace(key string, edit func([]byte) []byte) {
	tb.t.Helper()
	data, _, err := tb.store.Get(tb.t.Context(), key)
	if err != nil {
		tb.t.Fatal(err)
	}
	if _, err := tb.store.Put(tb.t.Context(), key, bytes.NewReader(edit(data))); err != nil {
		tb.t.Fatal(err)
	}
}

// compact commits two versions, the last of which removes a file, and damages
// their log compaction. What is known of the head has come by the commits.
func (tb *table) compact(damage func([]byte) []byte) {
	tb.t.Helper()
	ctx := tb.t.Context()
	log, err := txlog.Open(ctx, tb.store, root, txlog.Options{CompactEvery: 2})
	if err != nil {
		tb.t.Fatal(err)
	}
	old := tb.log
	tb.log = log
	snap, err := log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		tb.t.Fatal(err)
	}
	gone := tb.file(nil)
	if snap.Version()%2 != 0 {
		tb.file(nil)
	}
	if snap, err = log.Snapshot(ctx, txlog.Latest()); err != nil {
		tb.t.Fatal(err)
	}
	tx := log.Begin(snap, txlog.Operation{Name: "DELETE"})
	tx.Remove(gone.Tombstone(true))
	if snap, err = tx.Commit(ctx); err != nil {
		tb.t.Fatal(err)
	}
	if _, err := old.Snapshot(ctx, txlog.Latest()); err != nil {
		tb.t.Fatal(err)
	}
	if err := log.Upkeep(ctx); err != nil {
		tb.t.Fatal(err)
	}
	tb.log = old
	tb.replace(log.CompactionKey(txlog.Compaction{First: snap.Version() - 1, Last: snap.Version()}), damage)
}

func (tb *table) remove(key string) {
	tb.t.Helper()
	if err := tb.store.Delete(tb.t.Context(), key); err != nil {
		tb.t.Fatal(err)
	}
}

func (tb *table) findings(deep bool) []check.Kind {
	tb.t.Helper()
	// A process of its own: what ours remembers must not hide damage.
	log, err := txlog.Open(tb.t.Context(), tb.store, root, txlog.Options{})
	if err != nil {
		log = tb.log
	}
	found, err := check.Run(tb.t.Context(), log, check.Options{Deep: deep})
	if err != nil {
		tb.t.Fatal(err)
	}
	var kinds []check.Kind
	for _, f := range found {
		tb.t.Log(f)
		kinds = append(kinds, f.Kind)
	}
	return kinds
}

// checkpointKey is that of the checkpoint which every table of TestFindings has.
const checkpointKey = root + "/_delta_log/00000000000000000003.checkpoint.parquet"

// edit returns a change to one commit, which is told apart from others by
// version 2.
func (tb *table) editCommit(edit func(*action.Commit)) {
	tb.replace(tb.log.CommitKey(2), func(d []byte) []byte {
		c, err := action.Decode(d)
		if err != nil {
			tb.t.Fatal(err)
		}
		edit(c)
		if d, err = c.Encode(); err != nil {
			tb.t.Fatal(err)
		}
		return d
	})
}

// stats is a file whose statistics were edited.
func stats(edit func(*action.Stats)) func(*table) {
	return func(tb *table) {
		tb.file(func(a *action.Add) {
			st, _, err := action.ParseStats(a.Stats)
			if err != nil {
				tb.t.Fatal(err)
			}
			edit(&st)
			if a.Stats, err = st.Encode(); err != nil {
				tb.t.Fatal(err)
			}
		})
	}
}

// tags is a file whose tags were edited.
func tags(edit func(*chunk.Tags)) func(*table) {
	return func(tb *table) {
		tb.file(func(a *action.Add) {
			t, _, err := chunk.ParseTags(a.Tags)
			if err != nil {
				tb.t.Fatal(err)
			}
			edit(&t)
			a.Tags = t.Encode()
		})
	}
}

func domain(name, conf string) func(*table) {
	return func(tb *table) {
		snap, err := tb.log.Snapshot(tb.t.Context(), txlog.Latest())
		if err != nil {
			tb.t.Fatal(err)
		}
		tx := tb.log.Begin(snap, txlog.Operation{Name: "SET"})
		tx.SetDomain(name, conf)
		if _, err := tx.Commit(tb.t.Context()); err != nil {
			tb.t.Fatal(err)
		}
	}
}

// Every kind of damage is found under its name, and nothing else is.
func TestFindings(t *testing.T) {
	flip := func(data []byte) []byte {
		data[len(data)/2] ^= 1
		return data
	}
	const one = root + "/date=2026-11-22/shard=1/1.parquet"
	crc := func(old, new string) func(*table) {
		return func(tb *table) {
			tb.replace(root+"/_delta_log/00000000000000000002.crc", func(d []byte) []byte {
				out := bytes.Replace(d, []byte(old), []byte(new), 1)
				if bytes.Equal(out, d) {
					tb.t.Fatalf("no %q in %s", old, d)
				}
				return out
			})
		}
	}
	type kinds = []check.Kind
	for _, c := range []struct {
		name   string
		damage func(*table)
		deep   bool
		want   kinds
	}{
		{"none", func(tb *table) {}, true, nil},
		{"a commit is missing", func(tb *table) { tb.remove(tb.log.CommitKey(2)) }, false, kinds{check.KindLog}},
		{"the first commit is missing", func(tb *table) { tb.remove(tb.log.CommitKey(0)) }, false, kinds{check.KindLog}},
		{"a commit is damaged", func(tb *table) { tb.replace(tb.log.CommitKey(2), func(d []byte) []byte { return d[:len(d)-9] }) }, false, kinds{check.KindLog}},
		{"time goes back", func(tb *table) {
			tb.editCommit(func(c *action.Commit) { *c.Info.InCommitTimestamp -= 3_600_000 })
			tb.remove(root + "/_delta_log/00000000000000000002.crc")
		}, false, kinds{check.KindLog}},
		{"a commit was rewritten", func(tb *table) {
			tb.editCommit(func(c *action.Commit) { c.Adds[0].Size++ })
		}, false, kinds{check.KindCheckpoint, check.KindLog, check.KindChecksum, check.KindChecksum}},
		{"the oldest readable version cannot be rebuilt", func(tb *table) {
			domain(txlog.WatermarkDomain, txlog.EncodeWatermark(2))(tb)
			domain(txlog.VacuumDomain, txlog.EncodeVacuumed(2, 0))(tb)
			for v := range action.Version(3) {
				tb.remove(tb.log.CommitKey(v))
			}
		}, false, kinds{check.KindLog}},
		{"nothing to begin with", func(tb *table) {
			domain(txlog.WatermarkDomain, txlog.EncodeWatermark(4))(tb)
			domain(txlog.VacuumDomain, txlog.EncodeVacuumed(4, 0))(tb)
			tb.remove(tb.log.CommitKey(4))
		}, false, kinds{check.KindLog}},
		{"a sound log compaction", func(tb *table) { tb.compact(func(d []byte) []byte { return d }) }, false, nil},
		{"a log compaction is cut", func(tb *table) {
			tb.compact(func(d []byte) []byte { return d[:len(d)-9] })
		}, false, kinds{check.KindLog}},
		{"a log compaction lacks a remove", func(tb *table) {
			tb.compact(func(d []byte) []byte {
				from := bytes.Index(d, []byte(`{"remove":`))
				return slices.Delete(d, from, from+bytes.IndexByte(d[from:], '\n')+1)
			})
			// It is what a process that opens the table now goes by.
		}, false, kinds{check.KindLog, check.KindLog}},
		{"a log compaction has another tombstone", func(tb *table) {
			tb.compact(func(d []byte) []byte {
				return bytes.Replace(d, []byte(`"deletionTimestamp":1`), []byte(`"deletionTimestamp":2`), 1)
			})
		}, false, kinds{check.KindLog, check.KindTombstone}},
		{"a checkpoint is cut", func(tb *table) {
			tb.replace(checkpointKey, func(d []byte) []byte { return d[:len(d)/2] })
		}, false, kinds{check.KindCheckpoint}},
		{"a checkpoint of another table", func(tb *table) {
			other := newTable(tb.t)
			other.file(nil)
			other.file(nil)
			other.file(func(a *action.Add) { a.Path = "date=2026-11-22/shard=1/other.parquet" })
			other.checkpoint()
			data, _, err := other.store.Get(tb.t.Context(), checkpointKey)
			if err != nil {
				tb.t.Fatal(err)
			}
			tb.replace(checkpointKey, func([]byte) []byte { return data })
			// It is what a process that opens the table now goes by.
		}, false, kinds{check.KindCheckpoint, check.KindLog, check.KindMissing}},
		{"a checkpoint with a tombstone that never was", func(tb *table) {
			snap, err := tb.log.Snapshot(tb.t.Context(), txlog.Latest())
			if err != nil {
				tb.t.Fatal(err)
			}
			st := checkpoint.State{
				Version: 3, Protocol: snap.Protocol(), Metadata: snap.Metadata(), Adds: snap.Files(), NumAdds: 3,
				Removes: slices.Values([]*action.Remove{{Path: "date=2026-11-22/shard=1/x.parquet", DeletionTimestamp: 1}}), NumRemoves: 1,
			}
			for d, conf := range snap.Domains() {
				st.Domains = append(st.Domains, action.DomainMetadata{Domain: d, Configuration: conf})
			}
			tb.remove(checkpointKey)
			if _, err := checkpoint.Write(tb.t.Context(), tb.store, tb.log.Dir(), st, checkpoint.Options{}); err != nil {
				tb.t.Fatal(err)
			}
		}, false, kinds{check.KindTombstone}},
		{"removed in the future", func(tb *table) {
			tb.file(nil)
			snap, err := tb.log.Snapshot(tb.t.Context(), txlog.Latest())
			if err != nil {
				tb.t.Fatal(err)
			}
			var last *action.Add
			for a := range snap.Files() {
				last = a
			}
			tx := tb.log.Begin(snap, txlog.Operation{Name: "DELETE"})
			tx.Remove(last.Tombstone(true))
			if snap, err = tx.Commit(tb.t.Context()); err != nil {
				tb.t.Fatal(err)
			}
			tb.replace(tb.log.CommitKey(snap.Version()), func(d []byte) []byte {
				return bytes.Replace(d, []byte(`"deletionTimestamp":1`), []byte(`"deletionTimestamp":9`), 1)
			})
		}, false, kinds{check.KindTombstone}},
		{"checksum: files", crc(`"numFiles":2`, `"numFiles":9`), false, kinds{check.KindChecksum}},
		{"checksum: bytes", crc(`"tableSizeBytes":`, `"tableSizeBytes":1`), false, kinds{check.KindChecksum}},
		{"checksum: time", crc(`"inCommitTimestampOpt":1`, `"inCommitTimestampOpt":2`), false, kinds{check.KindChecksum}},
		{"checksum: domains", crc(`"domain":"cardinal.shards"`, `"domain":"cardinal.shard"`), false, kinds{check.KindChecksum}},
		{"checksum: protocol", crc(`"minWriterVersion":7`, `"minWriterVersion":8`), false, kinds{check.KindChecksum}},
		{"checksum: schema", crc(`timestamp`, `timestamq`), false, kinds{check.KindChecksum}},
		{"checksum: damaged", crc(`{`, `[`), false, kinds{check.KindChecksum}},
		{"watermark ahead of the table", domain(txlog.WatermarkDomain, txlog.EncodeWatermark(99)), false, kinds{check.KindDomain}},
		{"watermark is damaged", domain(txlog.WatermarkDomain, "x"), false, kinds{check.KindDomain}},
		{"vacuum ahead of the watermark", domain(txlog.VacuumDomain, txlog.EncodeVacuumed(2, 0)), false, kinds{check.KindDomain}},
		{"vacuum's domain is damaged", domain(txlog.VacuumDomain, "x"), false, kinds{check.KindDomain}},
		{"a file is missing", func(tb *table) { tb.remove(one) }, true, kinds{check.KindMissing}},
		{"a file is cut", func(tb *table) { tb.replace(one, func(d []byte) []byte { return d[:len(d)-1] }) }, false, kinds{check.KindSize}},
		{"a byte is flipped", func(tb *table) { tb.replace(one, flip) }, true, kinds{check.KindChunk}},
		{"no shard map", func(tb *table) {
			snap, err := tb.log.Snapshot(tb.t.Context(), txlog.Latest())
			if err != nil {
				tb.t.Fatal(err)
			}
			tx := tb.log.Begin(snap, txlog.Operation{Name: "SET"})
			tx.RemoveDomain(shard.Domain)
			if _, err := tx.Commit(tb.t.Context()); err != nil {
				tb.t.Fatal(err)
			}
		}, true, kinds{check.KindShards}},
		{"a shard map with a gap", domain(shard.Domain, `{"epoch":2,"shards":[{"id":"1","range":{"min":1,"max":18446744073709551615}}]}`), true, kinds{check.KindShards}},
		{"a shard that is not", func(tb *table) {
			tb.file(func(a *action.Add) {
				a.PartitionValues = action.ObjectOf(map[string]string{"date": "2026-11-22", "shard": "10"})
			})
		}, false, kinds{check.KindShards, check.KindPartition}},
		{"rows of another shard", func(tb *table) {
			m, err := shard.Initial().Split("1", 1<<63)
			if err != nil {
				tb.t.Fatal(err)
			}
			id := m.Of(shard.KeyOf(member(0), series.IDOf(member(0))))
			for i := range m.Shards { // swap the owners
				if m.Shards[i].ID == id {
					m.Shards[i].ID = "x"
				} else {
					m.Shards[i].ID = "1"
				}
			}
			domain(shard.Domain, m.Encode())(tb)
		}, true, kinds{check.KindChunk, check.KindChunk, check.KindChunk}},
		{"a path of another day", func(tb *table) {
			tb.file(func(a *action.Add) {
				a.PartitionValues = action.ObjectOf(map[string]string{"date": "2026-11-23", "shard": "1"})
			})
		}, false, kinds{check.KindPartition, check.KindPartition}},
		{"rows of another day", tags(func(t *chunk.Tags) { t.Time.Max += 86_400_000_000 }), false, kinds{check.KindPartition}},
		{"a path outside the table", func(tb *table) { tb.file(func(a *action.Add) { a.Path = "s3://elsewhere/x.parquet" }) }, true, kinds{check.KindPartition, check.KindPartition}},
		{"no tags", func(tb *table) { tb.file(func(a *action.Add) { a.Tags = "" }) }, true, kinds{check.KindTags}},
		{"damaged tags", func(tb *table) { tb.file(func(a *action.Add) { a.Tags = `{"cardinal.order":"2-1"}` }) }, true, kinds{check.KindTags}},
		{"tags: time too narrow", tags(func(t *chunk.Tags) { t.Time.Min, t.Time.Max = t.Time.Min-9, t.Time.Min-8 }), true, kinds{check.KindPartition, check.KindChunk}},
		{"tags: keys too low", tags(func(t *chunk.Tags) { t.Keys.MaxName = "l" }), true, kinds{check.KindChunk}},
		{"tags: keys too high", tags(func(t *chunk.Tags) { t.Keys.MinName = "n" }), true, kinds{check.KindChunk}},
		{"statistics: rows", stats(func(s *action.Stats) { s.NumRecords++ }), true, kinds{check.KindChunk}},
		{"statistics: none", func(tb *table) { tb.file(func(a *action.Add) { a.Stats = "" }) }, true, kinds{check.KindChunk}},
		{"statistics: damaged", func(tb *table) { tb.file(func(a *action.Add) { a.Stats = "{" }) }, true, kinds{check.KindChunk}},
		{"statistics: time", stats(func(s *action.Stats) { s.Min["timestamp"] = []byte(`"2026-11-22T00:00:01.000Z"`) }), true, kinds{check.KindChunk}},
		{"statistics: time, above", stats(func(s *action.Stats) { s.Max["timestamp"] = []byte(`"2026-11-21T23:59:59.999Z"`) }), true, kinds{check.KindChunk}},
		{"statistics: name", stats(func(s *action.Stats) { s.Max["metric_name"] = []byte(`"l"`) }), true, kinds{check.KindChunk}},
		{"statistics: label", stats(func(s *action.Stats) { s.Min["i"] = []byte(`"1"`) }), true, kinds{check.KindChunk}},
		{"statistics: label nulls", stats(func(s *action.Stats) { s.NullCount["i"] = []byte("1") }), true, kinds{check.KindChunk}},
		{"statistics: value", stats(func(s *action.Stats) { s.Max["value"] = []byte("1") }), true, kinds{check.KindChunk}},
		{"statistics: series", stats(func(s *action.Stats) { s.Min["series_id"] = s.Max["series_id"] }), true, kinds{check.KindChunk}},
		{"statistics: histograms", stats(func(s *action.Stats) { s.NullCount["histogram"] = []byte("0") }), true, kinds{check.KindChunk}},
		{"rows stored twice", func(tb *table) {
			a := tb.file(nil)
			tb.n--
			tb.file(func(b *action.Add) { b.Path, b.Size = "date=2026-11-22/shard=1/again.parquet", a.Size })
			data, _, err := tb.store.Get(tb.t.Context(), root+"/"+a.Path)
			if err != nil {
				tb.t.Fatal(err)
			}
			if _, err := tb.store.Put(tb.t.Context(), root+"/date=2026-11-22/shard=1/again.parquet", bytes.NewReader(data)); err != nil {
				tb.t.Fatal(err)
			}
		}, true, kinds{check.KindOverlap}},
		{"rows in a compacted file too", func(tb *table) {
			tags(func(t *chunk.Tags) {
				t.WAL = append(t.WAL, chunk.WALRange{Writer: t.WAL[0].Writer, First: 2, Last: 3})
				t.Time.Min -= 3
			})(tb)
		}, false, kinds{check.KindOverlap, check.KindOverlap}},
		{"the same records, other series", func(tb *table) {
			tags(func(t *chunk.Tags) {
				t.WAL = append(t.WAL, chunk.WALRange{Writer: t.WAL[0].Writer, First: 2, Last: 3})
				t.Keys = chunk.KeyRange{MinName: "a", MaxName: "b", Bounded: true}
			})(tb)
		}, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			tb := newTable(t)
			for range 3 {
				tb.file(nil)
			}
			tb.checkpoint()
			c.damage(tb)
			if got := tb.findings(c.deep); !slices.Equal(got, c.want) {
				t.Errorf("found %v, want %v", got, c.want)
			}
		})
	}
}

// A finding names the object.
func TestFindingsNameTheObject(t *testing.T) {
	tb := newTable(t)
	tb.file(nil)
	tb.remove(root + "/date=2026-11-22/shard=1/1.parquet")
	found, err := check.Run(t.Context(), tb.log, check.Options{})
	if err != nil || len(found) != 1 || found[0].Object != root+"/date=2026-11-22/shard=1/1.parquet" {
		t.Fatalf("got %v, %v", found, err)
	}
}

// A check only reads, and its requests follow the size of what it checks.
func TestOnlyReads(t *testing.T) {
	tb := newTable(t)
	for range 5 {
		tb.file(nil)
	}
	tb.checkpoint()
	m := meter.New(tb.store, meter.Options{})
	log, err := txlog.Open(t.Context(), m, root, txlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := m.Snapshot()
	if _, err := check.Run(t.Context(), log, check.Options{Deep: true}); err != nil {
		t.Fatal(err)
	}
	calls := m.Snapshot().Since(before)
	for op, n := range calls {
		if op.Writes() {
			t.Errorf("%s: %d calls", op, n.Calls)
		}
	}
	// The refresh, 6 commits, 6 checksums, the checkpoint with its commit, 5
	// chunks; the log, the data before and after the hidden names.
	if got, lists := calls[storage.OpGet].Calls+calls[storage.OpGetRange].Calls, calls[storage.OpList].Calls; got != 20 || lists != 3 {
		t.Errorf("%d gets and %d listings", got, lists)
	}
}

// A store that fails is no finding.
func TestStoreFails(t *testing.T) {
	tb := newTable(t)
	tb.file(nil)
	tb.checkpoint()
	for i := 0; ; i++ {
		f := fault.New(tb.store)
		log, err := txlog.Open(t.Context(), f, root, txlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		f.FailAt(i, fault.Before)
		found, err := check.Run(t.Context(), log, check.Options{Deep: true})
		if len(found) > 0 {
			t.Fatalf("call %d: %v", i, found)
		}
		if f.Fired() == 0 {
			if err != nil || i < 8 {
				t.Fatalf("after %d calls: %v", i, err)
			}
			return
		}
		if !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("call %d: %v", i, err)
		}
	}
}

// What a vacuum that was killed leaves of the log is no finding: the commits
// that it had not come to yet lie below where the one before it settled.
func TestHalfTrimmedLog(t *testing.T) {
	tb := newTable(t)
	for range 6 {
		tb.file(nil)
	}
	tb.checkpoint() // at 6
	domain(txlog.WatermarkDomain, txlog.EncodeWatermark(6))(tb)
	domain(txlog.VacuumDomain, txlog.EncodeVacuumed(6, 0))(tb)
	for _, v := range []action.Version{0, 1, 3, 4} {
		tb.remove(tb.log.CommitKey(v))
	}
	if got := tb.findings(true); got != nil {
		t.Errorf("found %v", got)
	}
}

// Compactions and vacuums beside a check are no finding.
func TestBesideMaintenance(t *testing.T) {
	for i := 0; ; i++ {
		tb := newTable(t)
		for range 4 {
			tb.file(nil)
		}
		f := fault.New(tb.store)
		log, err := txlog.Open(t.Context(), f, root, txlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		struck := false
		f.Inject(fault.Fault{Skip: i, OnCall: func(context.Context, fault.Call) {
			struck = true
			r := compactor.NewRunner(tb.log, nil, "test", compactor.Options{Policy: compactor.Policy{All: true}})
			if done, err := r.RunAll(t.Context()); err != nil || len(done) == 0 {
				t.Error(done, err)
			}
			p, err := vacuum.NewPlan(t.Context(), tb.log, vacuum.Options{Retain: vacuum.NoRetention, AllowShortRetention: true})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := p.Execute(t.Context()); err != nil {
				t.Error(err)
			}
		}})
		found, err := check.Run(t.Context(), log, check.Options{Deep: true, Parallel: 1})
		if err != nil || len(found) > 0 {
			t.Fatalf("call %d: %v, %v", i, found, err)
		}
		if !struck {
			if i < 10 {
				t.Fatalf("only %d calls", i)
			}
			return
		}
	}
}
