package writer

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// trace collects what happens, in order.
type trace struct {
	mu    sync.Mutex
	lines []string
}

func (tr *trace) logf(format string, args ...any) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.lines = append(tr.lines, fmt.Sprintf(format, args...))
}

var uuids = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

var callNumber = regexp.MustCompile(`call \d+: `)

func (tr *trace) take() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	out := strings.Join(tr.lines, "\n")
	tr.lines = nil
	if out == "" {
		return "nothing"
	}
	return uuids.ReplaceAllString(out, "<uuid>")
}

// TestTrace pins the exact calls, on the store and on the WAL, that each
// operation makes: the order is what durability rests on, the number what
// requests cost.
//
//	append        lines "name label=value … @µs=value", one batch
//	flush, close, head, table
//	split at=KEY  another process splits the shard map
//	fail op=OP mode=MODE   the next such call fails
//	crash         the process ends and starts again
func TestTrace(t *testing.T) {
	datadriven.Walk(t, "testdata/trace", func(t *testing.T, path string) {
		tr := &trace{}
		clock := func() time.Time { return time.Unix(1_700_000_000, 0) }
		store := mem.New(mem.Options{Now: clock})
		createTable(t, store)
		dir := t.TempDir()
		var calls *fault.Store
		var w *Writer
		start := func() {
			calls = fault.New(store)
			calls.Inject(fault.Fault{Times: -1, Mode: fault.Pass, OnReturn: func(_ context.Context, c fault.Call, err error) {
				tr.logf("%s", strings.TrimSpace(fmt.Sprintf("store %s %s", c.Op, c.Key))+outcome(err))
			}})
			l, err := wal.Open(dir, wal.Options{Events: wal.Events{
				SyncEnd: func(int64, time.Duration, error) { tr.logf("disk  fsync") },
			}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() }) // an abandoned one, after a crash
			log := openTable(t, calls)
			tr.take()
			w = openWriter(t, log, &spyWAL{Log: l, after: func(call string) error {
				tr.logf("wal   %s", call)
				return nil
			}}, Options{Uploads: 1, Now: clock, Events: Events{FlushEnd: func(e FlushEvent) {
				tr.logf("event flush %d–%d: %d rows in %d files, version %d, %d conflicts%s", e.First, e.Last, e.Rows, e.Files, e.Version, e.Conflicts, outcome(e.Err))
			}}})
		}
		start()
		tr.take()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "append":
				return result(tr, w.Append(t.Context(), parseBatch(t, d.Input)))
			case "flush":
				return result(tr, w.Flush(t.Context()))
			case "close":
				return result(tr, w.Close(t.Context()))
			case "head":
				return viewRows(w.Head()).String()
			case "table":
				return tableRows(t, store).String()
			case "split":
				var at string
				d.ScanArgs(t, "at", &at)
				key, err := strconv.ParseUint(at, 0, 64)
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				splitMap(t, store, shard.Key(key))
				return ""
			case "fail":
				var op, mode string
				d.ScanArgs(t, "op", &op)
				d.ScanArgs(t, "mode", &mode)
				i := slices.IndexFunc(fault.Modes, func(m fault.Mode) bool { return m.String() == mode })
				if i < 0 {
					d.Fatalf(t, "unknown mode %q", mode)
				}
				calls.Inject(fault.Fault{Op: storage.Op(op), Mode: fault.Modes[i]})
				return ""
			case "crash":
				dir = copyDir(t, dir)
				start()
				return tr.take()
			}
			d.Fatalf(t, "unknown command %s", d.Cmd)
			return ""
		})
	})
}

func outcome(err error) string {
	if err == nil {
		return ""
	}
	return ": failed"
}

func result(tr *trace, err error) string {
	out := tr.take()
	if err != nil {
		out += "\nerror: " + callNumber.ReplaceAllString(uuids.ReplaceAllString(err.Error(), "<uuid>"), "")
	}
	return out
}

func parseBatch(t *testing.T, in string) series.Batch {
	var b series.Batch
	for line := range strings.Lines(in) {
		words := strings.Fields(line)
		pairs := []string{series.MetricName, words[0]}
		var samples []series.Sample
		for _, word := range words[1:] {
			name, value, _ := strings.Cut(word, "=")
			if us, ok := strings.CutPrefix(name, "@"); ok {
				offset, err := strconv.ParseInt(us, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				v, err := strconv.ParseFloat(value, 64)
				if err != nil {
					t.Fatal(err)
				}
				samples = append(samples, at0(offset, v))
				continue
			}
			pairs = append(pairs, name, value)
		}
		b = append(b, series.Series{Labels: labels.FromStrings(pairs...), Samples: samples})
	}
	return b
}

// splitMap cuts the first shard of the table's map, as another process would.
func splitMap(t testing.TB, store storage.Store, boundary shard.Key) {
	t.Helper()
	log := openTable(t, store)
	snap, err := log.Snapshot(t.Context(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	conf, _ := snap.Domain(shard.Domain)
	m, err := shard.Parse(conf)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = m.Split(m.Shards[0].ID, boundary); err != nil {
		t.Fatal(err)
	}
	tx := log.Begin(snap, txlog.Operation{Name: "SPLIT"})
	tx.SetDomain(shard.Domain, m.Encode())
	tx.Require(txlog.DomainUnchanged(shard.Domain))
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}
