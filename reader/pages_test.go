package reader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
	"cardinalsin/index"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
)

// near is the store, which counts what is read of it, and damages it.
type near struct {
	reads  atomic.Int64
	damage atomic.Bool
}

func (n *near) ReadRange(ctx context.Context, store storage.Store, key string, _, offset, length int64) ([]byte, error) {
	n.reads.Add(1)
	data, err := store.GetRange(ctx, key, offset, length)
	if err == nil && n.damage.Load() {
		data = bytes.Clone(data)
		for i := range data {
			data[i] ^= 0x55
		}
	}
	return data, err
}

// columnsOf reads what a selector picks as Floats, in a view of its own.
func columnsOf(t *testing.T, r *Reader, sel series.Selector) (string, error) {
	t.Helper()
	v, err := r.At(t.Context(), txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	chosen, err := v.Choose(t.Context(), sel)
	if err != nil {
		t.Fatal(err)
	}
	return collect(rowsIn(chosen.Columns(t.Context())))
}

// TestPagesAreKept: what a query decoded serves the next one, up to the bound,
// unless so much was asked for that all else would go.
func TestPagesAreKept(t *testing.T) {
	const (
		count   = 60
		samples = 150
		aSeries = 16 * samples // decoded
		path    = "date=2026-01-02/shard=1/f"
	)
	e := newEnv(t, "k")
	random := rand.New(rand.NewSource(1))
	var rows []series.Series
	for i := range count {
		s := series.Series{Labels: lbl("m", "k", fmt.Sprintf("k%02d", i))}
		for j := range samples {
			s.Samples = append(s.Samples, series.Sample{Time: day + series.Timestamp(j), Value: random.Float64()})
		}
		rows = append(rows, s)
	}
	e.write(t, path, rows...)
	if a := e.upload(t, "unused", rows...); a.add.Size <= 64<<10 {
		t.Fatalf("a file of %d bytes is kept whole", a.add.Size)
	}
	e.index(t)
	of := func(i int) series.Selector {
		return series.Selector{Range: series.AllTime, Matchers: []*series.Matcher{equal("k", fmt.Sprintf("k%02d", i))}}
	}
	all := series.Selector{Range: series.AllTime, Matchers: []*series.Matcher{equal(series.MetricName, "m")}}
	start := func(t *testing.T, limit int64, covered bool) (*near, *Reader, *chunk.Pages, func(sel series.Selector, want ...series.Series) int64) {
		n, pages := &near{}, chunk.NewPages(limit)
		r := e.start(t, Options{Ranges: n, Pages: pages})
		if covered {
			r.opts.Index = index.New(e.log, index.Options{})
		}
		ask := func(sel series.Selector, want ...series.Series) int64 {
			t.Helper()
			before := n.reads.Load()
			got, err := columnsOf(t, r, sel)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(rowsOf(want...), got); d != "" {
				t.Fatalf("-want +got:\n%s", d)
			}
			if b := pages.Bytes(); b > limit {
				t.Errorf("%d bytes are kept, the bound is %d", b, limit)
			}
			return n.reads.Load() - before
		}
		return n, r, pages, ask
	}

	t.Run("the next query reads nothing", func(t *testing.T) {
		_, _, pages, ask := start(t, 1<<20, true)
		if n := ask(of(7), rows[7]); n == 0 {
			t.Error("the first query reads nothing")
		}
		if b := pages.Bytes(); b < aSeries {
			t.Errorf("%d bytes are kept of a series of %d", b, aSeries)
		}
		if n := ask(of(7), rows[7]); n != 0 {
			t.Errorf("%d reads of what is kept", n)
		}
		if n := ask(of(40), rows[40]); n == 0 {
			t.Error("what was not asked for before is not read")
		}
		ask(all, rows...)
		if n := ask(all, rows...); n != 0 {
			t.Errorf("%d reads of what is kept", n)
		}
		other := e.start(t, Options{Pages: pages})
		other.opts.Index = index.New(e.log, index.Options{})
		near := &near{}
		other.opts.Ranges = near
		if got, err := columnsOf(t, other, of(7)); err != nil || got != rowsOf(rows[7]) {
			t.Errorf("another reader got %q, %v", got, err)
		}
		if n := near.reads.Load(); n > 2 {
			t.Errorf("another reader with the same pages read %d ranges, not a footer only", n)
		}
	})
	t.Run("the last used stay within the bound", func(t *testing.T) {
		_, _, pages, ask := start(t, 6*aSeries, true)
		ask(of(7), rows[7])
		for i := 20; i < 50; i++ {
			if ask(of(i), rows[i]) == 0 && i%2 == 0 { // neighbours share row groups
				t.Errorf("series %d was not read", i)
			}
		}
		if b := pages.Bytes(); b < 2*aSeries {
			t.Errorf("%d bytes are kept, though %d may be", b, pages.Limit())
		}
		if n := ask(of(49), rows[49]); n != 0 {
			t.Errorf("%d reads of what was used last", n)
		}
		if n := ask(of(7), rows[7]); n == 0 {
			t.Error("what was used first is kept beyond the bound")
		}
	})
	t.Run("a selection above half the bound is not kept", func(t *testing.T) {
		_, _, pages, ask := start(t, 6*aSeries, true)
		ask(of(7), rows[7])
		before := pages.Bytes()
		first := func(last int) series.Selector { // k00 to it
			return series.Selector{Range: series.AllTime, Matchers: []*series.Matcher{labels.MustNewMatcher(labels.MatchRegexp, "k", fmt.Sprintf("k0[0-%d]", last))}}
		}
		ask(all, rows...)
		ask(first(3), rows[:4]...)
		if b := pages.Bytes(); b != before {
			t.Errorf("%d bytes are kept, %d before", b, before)
		}
		if n := ask(of(7), rows[7]); n != 0 {
			t.Errorf("%d reads of what was kept before", n)
		}
		if ask(first(2), rows[:3]...); pages.Bytes() < before+3*aSeries {
			t.Errorf("%d bytes are kept, %d before half the bound", pages.Bytes(), before)
		}
	})
	t.Run("a large file that the index does not cover is not kept, a small one is", func(t *testing.T) {
		for limit, keeps := range map[int64]bool{64*count*samples - 64: false, 64 * count * samples: true} {
			_, _, pages, ask := start(t, limit, false)
			ask(of(7), rows[7])
			if b := pages.Bytes(); b > 0 != keeps {
				t.Errorf("%d bytes are kept of a bound of %d", b, limit)
			}
		}
	})
	t.Run("a damaged file is forgotten", func(t *testing.T) {
		n, r, pages, ask := start(t, 1<<20, true)
		ask(of(7), rows[7]) // its footer is kept
		before := pages.Bytes()
		n.damage.Store(true)
		if _, err := columnsOf(t, r, of(40)); !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Fatalf("err = %v", err)
		}
		if r.footers.has(root + "/" + path) {
			t.Error("the footer is still kept")
		}
		if b := pages.Bytes(); b != before {
			t.Errorf("%d bytes are kept, %d before the damage", b, before)
		}
		n.damage.Store(false)
		ask(of(40), rows[40])
		ask(of(7), rows[7])
	})
}
