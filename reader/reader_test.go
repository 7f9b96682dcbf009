package reader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/index"
	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/txlog"
)

func TestTimeTravel(t *testing.T) {
	e := newEnv(t, "k")
	a, b, c := one(1, lbl("m", "k", "a"), 1), one(2, lbl("m", "k", "a"), 2), one(3, lbl("m", "k", "c"), 3)
	fa := e.upload(t, "fa", a)
	e.commit(t, nil, []file{fa})
	e.clock.advance(time.Minute)
	between := e.clock.Now()
	e.clock.advance(time.Minute)
	e.commit(t, []file{fa}, []file{e.upload(t, "fb", b)})
	head := newHead(c)
	r := e.start(t, Options{Head: func() HeadView { return head }})

	mustQuery(t, r, txlog.Latest(), rowsOf(b, c))
	mustQuery(t, r, txlog.AtVersion(2), rowsOf(b)) // a version by its number has no head
	mustQuery(t, r, txlog.AtVersion(1), rowsOf(a))
	mustQuery(t, r, txlog.AtTime(between), rowsOf(a))
	mustQuery(t, r, txlog.AtVersion(0), "")

	for _, at := range []txlog.At{txlog.AtVersion(3), txlog.AtVersion(-1), txlog.AtTime(between.Add(-time.Hour))} {
		if _, err := query(r, at); !errors.Is(err, txlog.ErrVersionNotFound) {
			t.Errorf("a version that never was: %v", err)
		}
	}
	v := &vacuum{env: e}
	v.announce(t)
	_, err := query(r, txlog.AtVersion(1))
	var gone *txlog.VacuumedError
	if !errors.As(err, &gone) || gone.Version != 1 || gone.Oldest != 2 {
		t.Errorf("version 1 behind the watermark: %v", err)
	}
	mustQuery(t, r, txlog.AtVersion(2), rowsOf(b))
}

// TestPinFollowsTheViews: the pin stands at the oldest open view, and goes up
// when it closes.
func TestPinFollowsTheViews(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t, "k")
	r := e.start(t, Options{})
	pinned := func() int64 {
		t.Helper()
		e.clock.advance(lease.TTL / 3)
		if err := e.pins.Renew(ctx); err != nil {
			t.Fatal(err)
		}
		pins, err := lease.ListPins(ctx, e.inner, root+"/_cardinal/pins")
		if err != nil || len(pins) != 1 {
			t.Fatalf("pins %v, %v; want one", pins, err)
		}
		return pins[0].MinVersion
	}
	open := func() *View {
		t.Helper()
		v, err := r.At(ctx, txlog.Latest())
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	first := open()
	e.write(t, "fa", one(1, lbl("m"), 1))
	e.write(t, "fb", one(1, lbl("m"), 2))
	second := open()
	if got := pinned(); got != 0 {
		t.Errorf("with a view at 0 open the pin stands at %d", got)
	}
	first.Close()
	first.Close()
	if got := pinned(); got != 2 {
		t.Errorf("with a view at 2 open the pin stands at %d", got)
	}
	second.Close()
}

func TestViewRefuses(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t, "k")
	e.write(t, "fa", one(1, lbl("m", "k", "a"), 1), one(1, lbl("m", "k", "b"), 1))
	r := e.start(t, Options{})
	open := func(t *testing.T) *View {
		t.Helper()
		v, err := r.At(ctx, txlog.Latest())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Close)
		return v
	}
	last := func(seq iter.Seq2[series.Series, error], each func()) (err error) {
		for _, err = range seq {
			each()
		}
		return err
	}

	t.Run("closed", func(t *testing.T) {
		v := open(t)
		v.Close()
		if _, err := collect(v.Select(ctx, everything)); !errors.Is(err, ErrClosed) {
			t.Errorf("err = %v", err)
		}
		if err := v.Check(); !errors.Is(err, ErrClosed) {
			t.Errorf("check = %v", err)
		}
	})
	t.Run("pin lost", func(t *testing.T) {
		v, err := New(e.log, e.pins, Options{}).At(ctx, txlog.Latest()) // another: this one keeps the file
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		chosen, err := v.Choose(ctx, everything)
		if err != nil {
			t.Fatal(err)
		}
		columns := func() error { return last(rowsIn(chosen.Columns(ctx)), func() {}) }
		if err := columns(); err != nil { // now all of it is kept
			t.Fatal(err)
		}
		e.clock.advance(lease.TTL + 1)
		for name, seq := range map[string]func() error{
			"Select":      func() error { return last(v.Select(ctx, everything), func() {}) },
			"Columns":     columns,
			"Choose":      func() error { _, err := v.Choose(ctx, everything); return err },
			"LabelNames":  func() error { _, err := v.LabelNames(ctx, everything, 0); return err },
			"LabelValues": func() error { _, err := v.LabelValues(ctx, "k", everything, 0); return err },
			"Check":       v.Check,
		} {
			if err := seq(); !errors.Is(err, lease.ErrPinLost) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	// What is kept is read beside the merge, or, of one file that the index
	// covers, in place.
	for _, indexed := range []bool{false, true} {
		t.Run(fmt.Sprintf("pin lost on the way, indexed=%t", indexed), func(t *testing.T) {
			e := newEnv(t, "k")
			var rows []series.Series
			for i := range 2000 {
				rows = append(rows, one(1, lbl("m", "k", fmt.Sprint(i)), 1))
			}
			e.write(t, "fa", rows...)
			opts, sel := Options{}, everything
			if indexed {
				e.index(t)
				opts.Index = index.New(e.admin, index.Options{})
				sel.Matchers = []*series.Matcher{equal(series.MetricName, "m")}
			}
			v, err := e.start(t, opts).At(ctx, txlog.Latest())
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			chosen, err := v.Choose(ctx, sel)
			if err != nil {
				t.Fatal(err)
			}
			if n := chosen.Rows(); indexed != (n == int64(len(rows))) {
				t.Fatalf("the index found %d rows", n)
			}
			// The first time all is read, the second what is kept is used.
			for _, lose := range []func(){func() {}, func() { e.clock.advance(lease.TTL + 1) }} {
				err = last(rowsIn(chosen.Columns(ctx)), sync.OnceFunc(lose))
			}
			if !errors.Is(err, lease.ErrPinLost) {
				t.Errorf("err = %v", err)
			}
		})
	}
	t.Run("context ends", func(t *testing.T) {
		v := open(t)
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if err := last(v.Select(ctx, everything), func() {}); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("context ends on the way", func(t *testing.T) {
		e := newEnv(t, "k")
		var rows []series.Series
		for i := range 1000 {
			rows = append(rows, one(1, lbl("m", "k", fmt.Sprint(i)), 1))
		}
		e.write(t, "fa", rows...)
		ctx, cancel := context.WithCancel(ctx)
		v, err := e.start(t, Options{}).At(ctx, txlog.Latest())
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if err := last(v.Select(ctx, everything), cancel); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("no file", func(t *testing.T) {
		if err := e.inner.Delete(ctx, root+"/fa"); err != nil {
			t.Fatal(err)
		}
		err := last(open(t).Select(ctx, everything), func() {})
		if !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), root+"/fa") {
			t.Errorf("a missing file under a live pin: %v", err)
		}
	})
	t.Run("no file, no pin", func(t *testing.T) {
		_, err := query(New(e.log, nil, Options{}), txlog.Latest())
		if !errors.Is(err, storage.ErrNotFound) || errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("a missing file without a pin: %v", err)
		}
	})
}

// TestDamage: whatever byte of a file changes, the answer is right or an error
// that names the file, and never a part.
func TestDamage(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t, "k")
	rows := []series.Series{one(1, lbl("m", "k", "a"), 1, 2, 3), one(2, lbl("m", "k", "b"), 4)}
	e.write(t, "fa", rows...)
	r := e.start(t, Options{FooterBytes: 1}) // so that it reads the file every time
	data, _, err := e.inner.Get(ctx, root+"/fa")
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		if _, err := e.inner.Put(ctx, root+"/fa", bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	noticed := 0
	for i := range data {
		bad := slices.Clone(data)
		bad[i] ^= 0x41
		put(bad)
		got, err := query(r, txlog.Latest())
		switch {
		case err == nil && got == rowsOf(rows...):
		case (errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrUnsupported)) && strings.Contains(err.Error(), root+"/fa"):
			noticed++
		default:
			t.Fatalf("byte %d changed: %q, %v", i, got, err)
		}
	}
	if noticed < len(data)/2 {
		t.Errorf("only %d of %d changed bytes were noticed", noticed, len(data))
	}
	put(data[:len(data)-1])
	if _, err := query(r, txlog.Latest()); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("cut file: %v", err)
	}
}

func TestUnsupportedFiles(t *testing.T) {
	e := newEnv(t)
	f := e.upload(t, "fa", one(1, lbl("m"), 1))
	f.add.DeletionVector = &action.DeletionVector{StorageType: "u", PathOrInlineDV: "x", SizeInBytes: 1, Cardinality: 1}
	e.commit(t, nil, []file{f})
	if _, err := query(e.start(t, Options{}), txlog.Latest()); !errors.Is(err, txlog.ErrUnsupported) {
		t.Errorf("deletion vector: %v", err)
	}
	e = newEnv(t)
	f = e.upload(t, "fa", one(1, lbl("m"), 1))
	f.add.Tags = action.ObjectOf(map[string]string{chunk.TagOrder: "?"})
	e.commit(t, nil, []file{f})
	if _, err := query(e.start(t, Options{}), txlog.Latest()); !errors.Is(err, chunk.ErrTags) {
		t.Errorf("damaged tags: %v", err)
	}
	e = newEnv(t)
	f = e.upload(t, "fa", one(1, lbl("m"), 1))
	f.add.Path = "file:///etc/passwd"
	e.commit(t, nil, []file{f})
	if _, err := query(e.start(t, Options{}), txlog.Latest()); !errors.Is(err, txlog.ErrUnsupported) {
		t.Errorf("file outside the table: %v", err)
	}
}

// TestFaultSweep fails each request of a query in turn: the answer is whole or
// an error, and the next query is whole.
func TestFaultSweep(t *testing.T) {
	for _, mode := range fault.Modes {
		t.Run(mode.String(), func(t *testing.T) {
			for i := 0; ; i++ {
				e := newEnv(t, "k")
				rows := []series.Series{one(1, lbl("m", "k", "a"), 1), one(2, lbl("m", "k", "b"), 2)}
				e.write(t, "fa", rows[0])
				e.write(t, "fb", rows[1])
				r := e.start(t, Options{})
				e.store.FailAt(i, mode)
				got, err := query(r, txlog.Latest())
				if e.store.Fired() == 0 && err == nil {
					break
				}
				if err == nil && got != rowsOf(rows...) {
					t.Fatalf("request %d: %q", i, got)
				}
				e.store.Clear()
				mustQuery(t, r, txlog.Latest(), rowsOf(rows...))
				mustQuery(t, r, txlog.AtVersion(1), rowsOf(rows[0]))
			}
		})
	}
}

// TestNoGoroutineOutlivesItsSelection: also when the consumer stops early.
func TestNoGoroutineOutlivesItsSelection(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t, "k")
	for i := range 10 {
		var rows []series.Series
		for k := range 100 {
			rows = append(rows, one(1, lbl("m", "k", fmt.Sprint(k)), int64(i)))
		}
		e.write(t, fmt.Sprintf("f%d", i), rows...)
	}
	v, err := e.start(t, Options{}).At(ctx, txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	before := runtime.NumGoroutine()
	for stop := range 5 {
		n := 0
		for _, err := range v.Select(ctx, everything) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n > stop*30 {
				break
			}
		}
		if after := runtime.NumGoroutine(); after > before {
			t.Fatalf("stopped after %d series: %d goroutines, %d before", n, after, before)
		}
	}
}

func TestReadsInFlightAreBounded(t *testing.T) {
	e := newEnv(t, "k")
	for i := range 12 {
		e.write(t, fmt.Sprintf("f%d", i), one(1, lbl("m", "k", fmt.Sprint(i)), 1))
	}
	r := e.start(t, Options{Reads: 3})
	var mu sync.Mutex
	now, most := 0, 0
	count := func(d int) {
		mu.Lock()
		defer mu.Unlock()
		now += d
		most = max(most, now)
	}
	e.store.Inject(fault.Fault{
		Op: storage.OpGetRange, Times: -1, Delay: time.Millisecond,
		OnCall:   func(context.Context, fault.Call) { count(1); time.Sleep(time.Millisecond) },
		OnReturn: func(context.Context, fault.Call, error) { count(-1) },
	})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := query(r, txlog.Latest()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if most != 3 {
		t.Errorf("%d reads in flight, want 3", most)
	}
}

func TestLabels(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t, "k")
	// x has no column: it lies in the overflow map.
	e.write(t, "fa", one(1, lbl("m", "k", "a", "x", "1"), 1), one(1, lbl("n", "k", "b"), 1))
	e.write(t, "fb", one(1, lbl("m", "k", "a", "x", "1"), 2), one(1, lbl("m", "x", "2"), 2))
	head := newHead(one(1, lbl("m", "k", "c", "h", "1"), 1_000))
	v, err := e.start(t, Options{Head: func() HeadView { return head }}).At(ctx, txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	m := series.Selector{Range: series.AllTime, Matchers: []*series.Matcher{labels.MustNewMatcher(labels.MatchEqual, series.MetricName, "m")}}
	early := series.Selector{Range: series.TimeRange{Min: day, Max: day + 1}}

	names := func(sel series.Selector) []string {
		got, err := v.LabelNames(ctx, sel, 0)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	values := func(name string, sel series.Selector) []string {
		got, err := v.LabelValues(ctx, name, sel, 0)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, c := range []struct {
		what      string
		got, want []string
	}{
		{"all names", names(everything), []string{"__name__", "h", "k", "x"}},
		{"names of the first µs", names(early), []string{"__name__", "k", "x"}},
		{"metrics", values(series.MetricName, everything), []string{"m", "n"}},
		{"k of m", values("k", m), []string{"a", "c"}},
		{"x of m", values("x", m), []string{"1", "2"}},
		{"nothing", values("nothing", everything), []string{}},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Errorf("%s: %s", c.what, d)
		}
	}
	var got []string
	for l, err := range v.Series(ctx, m) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, l.String())
	}
	slices.Sort(got)
	want := []string{`{__name__="m", h="1", k="c"}`, `{__name__="m", k="a", x="1"}`, `{__name__="m", x="2"}`}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("series of m: %s", d)
	}
}

// TestQueriesThroughVacuum: queries that run while files are compacted and
// vacuumed at once, with no retention, all see every row.
func TestQueriesThroughVacuum(t *testing.T) {
	e := newEnv(t, "k")
	rows := []series.Series{one(1, lbl("m", "k", "a"), 1, 2), one(2, lbl("m", "k", "b"), 3)}
	live := e.upload(t, "f", rows...)
	e.commit(t, nil, []file{live})
	r := e.start(t, Options{})
	stop := make(chan struct{})
	var queries sync.WaitGroup
	var counts [2]int // answers, refusals of a past version
	var mu sync.Mutex
	for i := range 4 {
		queries.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				at := txlog.Latest()
				if i == 0 {
					at = txlog.AtVersion(e.snapshot(t).Version())
				}
				got, err := query(r, at)
				mu.Lock()
				switch {
				case err == nil && got == rowsOf(rows...):
					counts[0]++
				case i == 0 && refused(err):
					counts[1]++
				default:
					t.Errorf("query: %q, %v", got, err)
				}
				mu.Unlock()
			}
		})
	}
	for i := range 12 {
		next := e.upload(t, fmt.Sprintf("f%d", i), rows...)
		e.commit(t, []file{live}, []file{next})
		live = next
		v := &vacuum{env: e}
		v.announce(t)
		v.collect(t)
		v.sweep(t)
	}
	close(stop)
	queries.Wait()
	t.Logf("%d answers, %d refusals", counts[0], counts[1])
	if counts[0] == 0 {
		t.Error("no query had an answer")
	}
}

// brokenHead lacks samples that were acknowledged.
type brokenHead struct {
	memHead
	err error
}

func (h brokenHead) Err() error { return h.err }

// TestIncompleteHead: a head with a gap fails the latest version, and nobody
// who reads a past one.
func TestIncompleteHead(t *testing.T) {
	ctx := context.Background()
	e := newEnv(t)
	e.write(t, "fa", one(1, lbl("m"), 1))
	gap := errors.New("gap")
	r := e.start(t, Options{Head: func() HeadView { return brokenHead{newHead(), gap} }})
	if _, err := r.At(ctx, txlog.Latest()); !errors.Is(err, gap) {
		t.Fatalf("latest version: got %v", err)
	}
	v, err := r.At(ctx, txlog.AtVersion(1))
	if err != nil {
		t.Fatalf("past version: %v", err)
	}
	v.Close()
}
