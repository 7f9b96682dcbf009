package txlog_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	gocmp "github.com/google/go-cmp/cmp"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

// distant is a store that is delay away: half of it before a request is done
// and half after, each up to a tenth longer.
type distant struct {
	storage.Store
	delay    time.Duration
	requests atomic.Int64
}

func (d *distant) trip(ctx context.Context) {
	if d.delay == 0 {
		return
	}
	half := d.delay / 2
	select {
	case <-time.After(half + rand.N(half/10+1)):
	case <-ctx.Done():
	}
}

func (d *distant) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	d.requests.Add(1)
	d.trip(ctx)
	defer d.trip(ctx)
	return d.Store.Get(ctx, key)
}

func (d *distant) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	d.requests.Add(1)
	d.trip(ctx)
	defer d.trip(ctx)
	return d.Store.Put(ctx, key, body)
}

func (d *distant) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	d.requests.Add(1)
	d.trip(ctx)
	defer d.trip(ctx)
	return d.Store.PutIfAbsent(ctx, key, data)
}

func (d *distant) List(ctx context.Context, prefix, after string) iter.Seq2[storage.ObjectInfo, error] {
	d.requests.Add(1)
	d.trip(ctx)
	return d.Store.List(ctx, prefix, after)
}

// committing runs committers over one Log until the time is up and returns
// how many commits each made.
func committing(t testing.TB, l *txlog.Log, who string, committers int, span time.Duration) []int {
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	made := make([]int, committers)
	var wg sync.WaitGroup
	for c := range committers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := appendFile(ctx, l, nil, fmt.Sprintf("%s-%d-%d", who, c, made[c])); err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				made[c]++
			}
		})
	}
	wg.Wait()
	time.Sleep(time.Second) // until the commit loop has ended
	return made
}

func sum(n []int) int {
	total := 0
	for _, v := range n {
		total += v
	}
	return total
}

// With a round trip a request, throughput is the size of an entry over one
// round trip: 64 committers of one process reach 40 times the rate of one, each
// entry costs one request, and nobody is left behind.
func TestGroupCommit(t *testing.T) {
	rate := map[int]int{}
	for _, committers := range []int{1, 2, 64} {
		synctest.Test(t, func(t *testing.T) {
			inner := mem.New(mem.Options{})
			create(t, inner, txlog.Options{})
			store := &distant{Store: inner, delay: 30 * time.Millisecond}
			l := open(t, store)
			store.requests.Store(0)
			made := committing(t, l, "c", committers, 8*time.Second)
			rate[committers] = sum(made)
			versions := int64(latest(t, open(t, inner)).Version())
			t.Logf("%d committers: %d commits in %d versions, %d requests", committers, sum(made), versions, store.requests.Load())
			// The last entry's answer may not be awaited any more.
			if n := store.requests.Load(); n > versions+1 {
				t.Errorf("%d committers: %d requests for %d versions", committers, n, versions)
			}
			if slices.Max(made)-slices.Min(made) > 3 {
				t.Errorf("%d committers made %v", committers, made)
			}
		})
	}
	if rate[2]*10 < rate[1]*19 || rate[64] < 40*rate[1] {
		t.Errorf("commits by number of committers: %v", rate)
	}
}

// Processes that commit all the time share the log: without a pause of whoever
// wins, one of them would get every version.
func TestProcessesShareTheLog(t *testing.T) {
	for _, processes := range []int{2, 4, 16} {
		synctest.Test(t, func(t *testing.T) {
			inner := mem.New(mem.Options{})
			create(t, inner, txlog.Options{})
			made := make([]int, processes)
			var wg sync.WaitGroup
			for p := range processes {
				l := open(t, &distant{Store: inner, delay: 30 * time.Millisecond})
				wg.Go(func() { made[p] = sum(committing(t, l, fmt.Sprint(p), 4, 20*time.Second)) })
			}
			wg.Wait()
			t.Logf("%d processes: %v", processes, made)
			if fair := sum(made) / processes; slices.Min(made) < fair/4 || fair == 0 {
				t.Errorf("%d processes: %v", processes, made)
			}
		})
	}
}

// Who comes to a log that another process keeps busy, and that process has seen
// nobody for long, is let in within seconds.
func TestNewcomerIsLetIn(t *testing.T) {
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			inner := mem.New(mem.Options{})
			create(t, inner, txlog.Options{})
			busy := open(t, &distant{Store: inner, delay: 30 * time.Millisecond})
			var wg sync.WaitGroup
			wg.Go(func() { committing(t, busy, "busy", 2, 25*time.Second) })
			time.Sleep(5 * time.Second)
			l := open(t, &distant{Store: inner, delay: 30 * time.Millisecond})
			start := time.Now()
			if _, err := appendFile(t.Context(), l, nil, "new"); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("the newcomer waited %v", took)
			}
			wg.Wait()
		})
	}
}

// held is a log whose first entry is on its way until release; what comes
// meanwhile waits in the queue.
func held(t *testing.T) (l *txlog.Log, release func()) {
	t.Helper()
	store := &gate{Store: mem.New(mem.Options{})}
	l = create(t, store, txlog.Options{})
	store.hold = make(chan struct{})
	go func() {
		if _, err := appendFile(context.Background(), l, nil, "first"); err != nil {
			t.Error(err)
		}
	}()
	synctest.Wait()
	return l, func() { close(store.hold) }
}

// A transaction that may not share the entry with one before it waits for the
// next; those behind it do not wait with it, unless they touch what it does.
func TestOneThatMustWaitHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, release := held(t)
		type result struct {
			s   *txlog.Snapshot
			err error
		}
		results := make([]chan result, 6)
		for i, build := range []func(*txlog.Transaction){
			func(tx *txlog.Transaction) { tx.SetDomain("d", "1") },
			func(tx *txlog.Transaction) { tx.SetDomain("d", "2"); tx.SetDomain("e", "1") },
			func(tx *txlog.Transaction) { tx.Add(add("a")) },
			func(tx *txlog.Transaction) { tx.SetDomain("e", "2") }, // behind the second, which waits
			func(tx *txlog.Transaction) { // a change of the schema goes along
				tx.AddColumns(action.Field{Name: "pod", Type: action.PrimitiveType("string"), Nullable: true})
			},
			func(tx *txlog.Transaction) { tx.Add(add("b")) },
		} {
			tx := l.Begin(nil, txlog.Operation{Name: "TEST"})
			build(tx)
			results[i] = make(chan result, 1)
			go func() {
				s, err := tx.Commit(t.Context())
				results[i] <- result{s, err}
			}()
			synctest.Wait()
		}
		release()
		for i, want := range []action.Version{2, 3, 2, 4, 2, 2} {
			r := <-results[i]
			if r.err != nil {
				t.Fatal(r.err)
			}
			if r.s.Version() != want {
				t.Errorf("transaction %d is in version %d, want %d", i, r.s.Version(), want)
			}
		}
		if d, _ := latest(t, l).Domain("e"); d != "2" {
			t.Errorf("e is %s: the later was overtaken", d)
		}
	})
}

// Who gives up while it waits for the entry before is out of the queue, and
// knows that it was not committed. The others are.
func TestGivingUpInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, release := held(t)
		ctx, cancel := context.WithCancel(t.Context())
		gone, stays := make(chan error, 1), make(chan error, 1)
		go func() { _, err := appendFile(ctx, l, nil, "gone"); gone <- err }()
		go func() { _, err := appendFile(t.Context(), l, nil, "stays"); stays <- err }()
		synctest.Wait()
		if n := l.Waiting(); n != 2 {
			t.Fatalf("%d wait", n)
		}
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) || errors.Is(err, storage.ErrUnknownOutcome) {
			t.Errorf("got %v", err)
		}
		release()
		if err := <-stays; err != nil {
			t.Error(err)
		}
		if d := gocmp.Diff([]string{"first", "stays"}, paths(latest(t, l))); d != "" {
			t.Error(d)
		}
	})
}

// The queue is bounded, in transactions and in what they hold.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, release := held(t)
		defer release()
		ctx, cancel := context.WithCancel(t.Context())
		l.Weigh(txlog.MaxQueueActions - 2)
		defer l.Weigh(2 - txlog.MaxQueueActions)
		fits, exceeds := make(chan error, 1), make(chan error, 1)
		go func() { _, err := appendFile(ctx, l, nil, "a"); fits <- err }()
		synctest.Wait()
		go func() {
			tx := l.Begin(nil, txlog.Operation{Name: "TEST"})
			tx.Add(add("b"))
			tx.Add(add("c"))
			_, err := tx.Commit(ctx)
			exceeds <- err
		}()
		if err := <-exceeds; !errors.Is(err, txlog.ErrQueueFull) {
			t.Errorf("got %v", err)
		}
		cancel()
		if err := <-fits; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if l.Waiting() != 0 {
			t.Errorf("%d wait", l.Waiting())
		}
	})
}

// BenchmarkCommit measures commits a second, with 30 ms a request and without,
// and what each costs in requests.
func BenchmarkCommit(b *testing.B) {
	for _, delay := range []time.Duration{0, 30 * time.Millisecond} {
		for _, committers := range []int{1, 64} {
			b.Run(fmt.Sprintf("delay=%v/committers=%d", delay, committers), func(b *testing.B) {
				inner := mem.New(mem.Options{})
				create(b, inner, txlog.Options{})
				store := &distant{Store: inner, delay: delay}
				l := open(b, store)
				store.requests.Store(0)
				var left, failed atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				b.ResetTimer()
				for range committers {
					wg.Go(func() {
						for n := left.Add(-1); n >= 0; n = left.Add(-1) {
							if _, err := appendFile(b.Context(), l, nil, fmt.Sprint(n)); err != nil {
								failed.Add(1)
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				if failed.Load() > 0 {
					b.Errorf("%d failed", failed.Load())
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
				b.ReportMetric(float64(store.requests.Load())/float64(b.N), "requests/commit")
			})
		}
	}
}

// mute is a store that applies a put, loses its answer, and then refuses reads.
type mute struct {
	storage.Store
	on bool
}

func (m *mute) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	info, err := m.Store.PutIfAbsent(ctx, key, data)
	if m.on && err == nil {
		return info, storage.ErrUnknownOutcome
	}
	return info, err
}

func (m *mute) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	if m.on {
		return nil, storage.ObjectInfo{}, storage.ErrPermission
	}
	return m.Store.Get(ctx, key)
}

// Where it cannot be found out any more whether a put was applied, the commit
// ends as unknown, whether or not the caller has a deadline; the next load
// settles it.
func TestUnknownOutcomeThatCannotBeReadBack(t *testing.T) {
	store := &mute{Store: mem.New(mem.Options{})}
	l := create(t, store, txlog.Options{})
	store.on = true
	_, err := appendFile(context.Background(), l, nil, "a")
	if !errors.Is(err, storage.ErrUnknownOutcome) || !errors.Is(err, storage.ErrPermission) {
		t.Errorf("got %v", err)
	}
	store.on = false
	if d := gocmp.Diff([]string{"a"}, paths(latest(t, l))); d != "" {
		t.Error(d)
	}
}

// What an entry of 64 and a restore ask of the store, beside TestRequestCosts.
func TestGroupCosts(t *testing.T) {
	datadriven.RunTest(t, "testdata/costs_group", func(t *testing.T, d *datadriven.TestData) string {
		var calls []string
		synctest.Test(t, func(t *testing.T) {
			g := &gate{Store: mem.New(mem.Options{})}
			recording := false
			var mu sync.Mutex
			l := create(t, meter.New(g, meter.Options{OnCall: func(e meter.Event) {
				mu.Lock()
				defer mu.Unlock()
				if e.Op != storage.OpNow && recording { // no request
					calls = append(calls, fmt.Sprintf("%s %s %s", e.Op, strings.TrimPrefix(e.Key, root+"/"), meter.Outcome(e.Err)))
				}
			}}), txlog.Options{})
			record := func() {
				mu.Lock()
				defer mu.Unlock()
				recording = true
			}
			switch d.Cmd {
			case "group":
				g.hold = make(chan struct{})
				record()
				var wg sync.WaitGroup
				for i := range 65 { // one goes out at once
					if i == 1 {
						synctest.Wait()
					}
					wg.Go(func() {
						if _, err := appendFile(t.Context(), l, nil, fmt.Sprint(i)); err != nil {
							t.Error(err)
						}
					})
				}
				synctest.Wait()
				close(g.hold)
				wg.Wait()
			case "restore":
				for _, p := range []string{"a", "b"} {
					putFile(t, g, p)
				}
				a, b := add("a"), add("b")
				commit(t, l, func(tx *txlog.Transaction) { tx.Add(a); tx.Add(b) })
				commit(t, l, func(tx *txlog.Transaction) { tx.Remove(a.Tombstone(true)); tx.Add(add("c")) })
				record()
				plan, err := l.PlanRestore(t.Context(), 1)
				if err != nil {
					t.Fatal(err)
				}
				calls = append(calls, "planned")
				if _, err := plan.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		})
		// Commits are fetched side by side.
		for from := 0; from < len(calls); from++ {
			to := from
			for to < len(calls) && strings.HasPrefix(calls[to], "get _delta_log/0") && strings.HasSuffix(calls[to], " ok") {
				to++
			}
			slices.Sort(calls[from:to])
		}
		return strings.Join(calls, "\n") + "\n"
	})
}
