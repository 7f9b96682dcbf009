package check_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/check"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
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
	tb.n++
	var in []chunk.Series
	for i := range 3 {
		l := labels.FromStrings("__name__", "m", "i", fmt.Sprint(i))
		in = append(in, chunk.Series{Labels: l, ID: series.IDOf(l), Samples: []series.Sample{{Time: day + series.Timestamp(tb.n), Value: float64(i)}}})
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

// Every kind of damage is found under its name, and nothing else is.
func TestFindings(t *testing.T) {
	flip := func(data []byte) []byte {
		data[len(data)/2] ^= 1
		return data
	}
	for _, c := range []struct {
		name   string
		damage func(*table)
		deep   bool
		want   []check.Kind
	}{
		{"none", func(tb *table) {}, true, nil},
		{"a commit is missing", func(tb *table) { tb.remove(tb.log.CommitKey(2)) }, false, []check.Kind{check.KindLog}},
		{"a checkpoint is damaged", func(tb *table) {
			tb.replace(root+"/_delta_log/00000000000000000003.checkpoint.parquet", func(d []byte) []byte { return d[:len(d)/2] })
		}, false, []check.Kind{check.KindCheckpoint}},
		{"a checkpoint of another table", func(tb *table) {
			other := newTable(tb.t)
			other.file(nil)
			other.file(nil)
			other.file(func(a *action.Add) { a.Path = "date=2026-11-22/shard=1/other.parquet" })
			other.checkpoint()
			key := root + "/_delta_log/00000000000000000003.checkpoint.parquet"
			data, _, err := other.store.Get(tb.t.Context(), key)
			if err != nil {
				tb.t.Fatal(err)
			}
			tb.replace(key, func([]byte) []byte { return data })
		}, false, []check.Kind{check.KindCheckpoint, check.KindMissing}},
		{"a checksum is wrong", func(tb *table) {
			tb.replace(root+"/_delta_log/00000000000000000002.crc", func(d []byte) []byte {
				return bytes.Replace(d, []byte(`"numFiles":2`), []byte(`"numFiles":9`), 1)
			})
		}, false, []check.Kind{check.KindChecksum}},
		{"a file is missing", func(tb *table) { tb.remove(root + "/date=2026-11-22/shard=1/1.parquet") }, true, []check.Kind{check.KindMissing}},
		{"a file is cut", func(tb *table) {
			tb.replace(root+"/date=2026-11-22/shard=1/1.parquet", func(d []byte) []byte { return d[:len(d)-1] })
		}, false, []check.Kind{check.KindSize}},
		{"a byte is flipped", func(tb *table) { tb.replace(root+"/date=2026-11-22/shard=1/1.parquet", flip) }, true, []check.Kind{check.KindChunk}},
		{"statistics lie", func(tb *table) {
			tb.file(func(a *action.Add) {
				a.Stats = string(bytes.Replace([]byte(a.Stats), []byte(`"numRecords":3`), []byte(`"numRecords":4`), 1))
			})
		}, true, []check.Kind{check.KindChunk}},
		{"no tags", func(tb *table) { tb.file(func(a *action.Add) { a.Tags = "" }) }, true, []check.Kind{check.KindTags}},
		{"a shard that is not", func(tb *table) {
			tb.file(func(a *action.Add) {
				a.PartitionValues = action.ObjectOf(map[string]string{"date": "2026-11-22", "shard": "10"})
			})
		}, false, []check.Kind{check.KindShards}},
		{"another day", func(tb *table) {
			tb.file(func(a *action.Add) {
				a.PartitionValues = action.ObjectOf(map[string]string{"date": "2026-11-23", "shard": "1"})
			})
		}, false, []check.Kind{check.KindPartition}},
		{"rows stored twice", func(tb *table) {
			a := tb.file(nil)
			tb.n--
			tb.file(func(b *action.Add) {
				b.Path = "date=2026-11-22/shard=1/again.parquet"
				b.Size = a.Size
			})
			data, _, err := tb.store.Get(tb.t.Context(), root+"/"+a.Path)
			if err != nil {
				tb.t.Fatal(err)
			}
			if _, err := tb.store.Put(tb.t.Context(), root+"/date=2026-11-22/shard=1/again.parquet", bytes.NewReader(data)); err != nil {
				tb.t.Fatal(err)
			}
		}, true, []check.Kind{check.KindOverlap}},
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
