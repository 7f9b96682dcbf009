package cardinalsin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/ingest"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// tenantsOn opens the tables of a store on disk.
func tenantsOn(t *testing.T, dir string, change func(*TenantsOptions)) *Tenants {
	t.Helper()
	o := TenantsOptions{Options: Options{Store: filepath.Join(dir, "store"), WALDir: filepath.Join(dir, "wal")}}
	o.WAL.Sync = wal.SyncDeferred // no fsync a sample
	if change != nil {
		change(&o)
	}
	tn, err := NewTenants(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return tn
}

func closeTenants(t *testing.T, tn *Tenants) {
	t.Helper()
	if err := tn.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// put appends one sample at a time.
func put(tn *Tenants, tenant string, at int) error {
	a, release, err := tn.Table(context.Background(), tenant, "metrics")
	if err != nil {
		return err
	}
	defer release()
	return a.Append(context.Background(), series.Batch{{
		Labels:  labels.FromStrings("__name__", "m", "tenant", tenant),
		Samples: []series.Sample{{Time: series.Timestamp(at), Value: float64(at)}},
	}})
}

// count reads the samples of a tenant.
func count(t *testing.T, tn *Tenants, tenant string) int {
	t.Helper()
	ctx := context.Background()
	db, release, err := tn.Get(ctx, tenant, "")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	view, err := db.Reader.At(ctx, txlog.Latest())
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	n := 0
	for s, err := range view.Select(ctx, series.Selector{Range: series.AllTime}) {
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Labels.Get("tenant"); got != tenant {
			t.Errorf("tenant %s reads a series of %s", tenant, got)
		}
		n += len(s.Samples)
	}
	return n
}

// TestTenantsApart: each tenant has its own table, made by its first write;
// reading makes none, and no name leads out of the store.
func TestTenantsApart(t *testing.T) {
	dir := t.TempDir()
	tn := tenantsOn(t, dir, nil)
	ctx := context.Background()
	if _, _, err := tn.Get(ctx, "a", ""); !errors.Is(err, txlog.ErrNotTable) {
		t.Errorf("a table before the first write: %v", err)
	}
	for i, tenant := range []string{"a", "a", "b"} {
		if err := put(tn, tenant, i); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := count(t, tn, "a"), count(t, tn, "b"); a != 2 || b != 1 {
		t.Errorf("%d and %d samples", a, b)
	}
	for _, name := range []string{"", "..", "../x", "a/b", "a\\b", "_x", ".x", "é", "a b", "a\n"} {
		if err := put(tn, name, 0); !errors.Is(err, ErrInvalidName) || !errors.Is(err, ingest.ErrInvalidTenant) {
			t.Errorf("tenant %q: %v", name, err)
		}
	}
	if _, _, err := tn.Get(ctx, "../a", ""); !errors.Is(err, ErrInvalidName) {
		t.Errorf("reading ../a: %v", err)
	}
	closeTenants(t, tn)
	if _, _, err := tn.Get(ctx, "a", ""); !errors.Is(err, ErrStopped) {
		t.Errorf("after Close: %v", err)
	}
	for _, sub := range []string{"store", "wal"} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			switch n := e.Name(); n {
			case "a", "b":
			case "default", ".cardinal": // the probe's, and the local store's own
			default:
				t.Errorf("%s has %s", sub, n)
			}
		}
	}
}

// TestIdleTenantCostsNothing: a table that nobody uses is flushed and closed,
// makes no request from then on, and is there again when it is wanted.
func TestIdleTenantCostsNothing(t *testing.T) {
	var calls atomic.Int64
	var now atomic.Int64 // seconds
	tn := tenantsOn(t, t.TempDir(), func(o *TenantsOptions) {
		o.OnCall = func(meter.Event) { calls.Add(1) }
		o.Now = func() time.Time { return time.Unix(now.Load(), 0) }
		o.IdleAfter = time.Minute
	})
	defer closeTenants(t, tn)
	ctx := context.Background()
	if _, err := tn.OpenDefault(ctx); err != nil {
		t.Fatal(err)
	}
	if err := put(tn, "a", 1); err != nil {
		t.Fatal(err)
	}
	opened := func() (names []string) {
		tn.Each(func(tenant, _ string, _ *DB) { names = append(names, tenant) })
		return names
	}
	now.Store(59)
	tn.closeIdle(ctx)
	if n := len(opened()); n != 2 {
		t.Errorf("%v are open", opened())
	}
	db, release, err := tn.Get(ctx, "a", "")
	if err != nil {
		t.Fatal(err)
	}
	now.Store(200)
	tn.closeIdle(ctx)
	if n := len(opened()); n != 2 {
		t.Errorf("a table in use was closed: %v", opened())
	}
	release()
	now.Store(300)
	tn.closeIdle(ctx)
	if got := opened(); len(got) != 1 || got[0] != "default" {
		t.Errorf("%v are open", got)
	}
	if err := db.Writer.Append(ctx, nil); err != nil && !errors.Is(err, writer.ErrClosed) {
		t.Error(err)
	}
	before := calls.Load()
	tn.closeIdle(ctx)
	if n := calls.Load() - before; n != 0 {
		t.Errorf("%d calls for idle tenants", n)
	}
	if n := count(t, tn, "a"); n != 1 {
		t.Errorf("%d samples", n)
	}
}

// TestMaxOpen: a table that is needed takes the place of one that is not; when
// all are in use the request is told to wait.
func TestMaxOpen(t *testing.T) {
	tn := tenantsOn(t, t.TempDir(), func(o *TenantsOptions) { o.MaxOpen = 2 })
	defer closeTenants(t, tn)
	for i := range 6 {
		if err := put(tn, fmt.Sprint("t", i%3), i); err != nil {
			t.Fatal(err)
		}
	}
	var releases []func()
	for _, tenant := range []string{"t0", "t1"} {
		_, release, err := tn.Get(context.Background(), tenant, "")
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	if err := put(tn, "t2", 9); !errors.Is(err, writer.ErrOverloaded) {
		t.Errorf("err = %v", err)
	}
	releases[0]()
	releases[0]() // once is what counts
	if err := put(tn, "t2", 9); err != nil {
		t.Error(err)
	}
	releases[1]()
	for tenant, want := range map[string]int{"t0": 2, "t1": 2, "t2": 3} {
		if n := count(t, tn, tenant); n != want {
			t.Errorf("%s has %d samples, want %d", tenant, n, want)
		}
	}
}

// TestWALsOfAllTenantsAreRecovered: what a killed process had acknowledged is
// committed by the next one, although nobody asks for that tenant.
func TestWALsOfAllTenantsAreRecovered(t *testing.T) {
	dir := t.TempDir()
	killed := tenantsOn(t, filepath.Join(dir, "killed"), nil)
	for _, tenant := range []string{"a", "b"} {
		if err := put(killed, tenant, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "next"), os.DirFS(filepath.Join(dir, "killed"))); err != nil {
		t.Fatal(err)
	}
	closeTenants(t, killed)

	tn := tenantsOn(t, filepath.Join(dir, "next"), func(o *TenantsOptions) { o.Writer.FlushAge = time.Millisecond })
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tn.Run(ctx) }()
	deadline := time.Now().Add(20 * time.Second)
	for _, tenant := range []string{"a", "b"} {
		for {
			log, err := txlog.Open(ctx, tn.store, tenant+"/metrics", txlog.Options{})
			if err != nil {
				t.Fatal(err)
			}
			s, err := log.Snapshot(ctx, txlog.Latest())
			if err != nil {
				t.Fatal(err)
			}
			if s.Version() > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s was not recovered", tenant)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	closeTenants(t, tn)
	nothingLeft(t, filepath.Join(dir, "next", "wal"))
}

func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if names, err := walTables(dir); err != nil || len(names) != 0 {
		t.Errorf("%v are left in the wal: %v", names, err)
	}
}

// TestCloseRecovers: a process that is stopped before it could recover every
// WAL leaves nothing in any either.
func TestCloseRecovers(t *testing.T) {
	dir := t.TempDir()
	killed := tenantsOn(t, filepath.Join(dir, "killed"), nil)
	if err := put(killed, "a", 1); err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(dir, "next")
	if err := os.CopyFS(next, os.DirFS(filepath.Join(dir, "killed"))); err != nil {
		t.Fatal(err)
	}
	closeTenants(t, killed)
	stopped, stop := context.WithCancel(context.Background())
	stop()
	tn := tenantsOn(t, next, nil)
	if err := tn.Run(stopped); err != nil {
		t.Error(err)
	}
	closeTenants(t, tn)
	nothingLeft(t, filepath.Join(next, "wal"))
	tn = tenantsOn(t, next, nil)
	defer closeTenants(t, tn)
	if n := count(t, tn, "a"); n != 1 {
		t.Errorf("%d samples", n)
	}
}

// TestTenantsUnderChange: tables are opened, closed as idle and pushed out by
// others while many write and read; what was acknowledged is there in the end.
func TestTenantsUnderChange(t *testing.T) {
	const tenants, writers, rounds = 6, 8, 40
	tn := tenantsOn(t, t.TempDir(), func(o *TenantsOptions) {
		o.MaxOpen = 4
		o.IdleAfter = 2 * time.Millisecond
		o.Writer.FlushAge = 5 * time.Millisecond
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tn.Run(ctx) }()
	var acked [tenants]atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				n := (w + i) % tenants
				err := put(tn, fmt.Sprint("t", n), w*rounds+i)
				switch {
				case err == nil:
					acked[n].Add(1)
				case !errors.Is(err, writer.ErrOverloaded):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	total := int64(0)
	for n := range tenants {
		want := acked[n].Load()
		total += want
		if got := count(t, tn, fmt.Sprint("t", n)); int64(got) != want {
			t.Errorf("t%d has %d samples, %d were acknowledged", n, got, want)
		}
	}
	if total < writers*rounds/2 {
		t.Errorf("only %d were acknowledged", total)
	}
	closeTenants(t, tn)
}

// TestHeadsTogether: the heads of all tables share one bound, beyond which
// each may take a batch, but no second one.
func TestHeadsTogether(t *testing.T) {
	tn := tenantsOn(t, t.TempDir(), func(o *TenantsOptions) { o.MaxHeadBytes = 1 })
	defer closeTenants(t, tn)
	for _, tenant := range []string{"a", "b"} {
		if err := put(tn, tenant, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(tn, "b", 2); !errors.Is(err, writer.ErrOverloaded) {
		t.Errorf("err = %v", err)
	}
	tn.Each(func(_, _ string, db *DB) {
		if err := db.Writer.Flush(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := put(tn, "b", 2); err != nil {
		t.Error(err)
	}
}

// TestAttach: what is built over a table is built once and closed before it.
func TestAttach(t *testing.T) {
	tn := tenantsOn(t, t.TempDir(), nil)
	if err := put(tn, "a", 1); err != nil {
		t.Fatal(err)
	}
	db, release, err := tn.Get(context.Background(), "a", "")
	if err != nil {
		t.Fatal(err)
	}
	built, closed, below := 0, 0, false
	for range 2 {
		v, err := db.Attach("key", func() (any, func() error, error) {
			built++
			// It stands on something else, which must outlive it.
			if _, err := db.Attach("below", func() (any, func() error, error) {
				return nil, func() error { below = closed == 1; return nil }, nil
			}); err != nil {
				t.Error(err)
			}
			return built, func() error { closed++; return nil }, nil
		})
		if err != nil || v != 1 {
			t.Errorf("%v, %v", v, err)
		}
	}
	release()
	closeTenants(t, tn)
	if built != 1 || closed != 1 || !below {
		t.Errorf("built %d times, closed %d times, before what it stands on: %v", built, closed, below)
	}
}

// TestFirstWriteBesideARead: who only reads finds no table, and that is no
// answer for who comes to write while it looks.
func TestFirstWriteBesideARead(t *testing.T) {
	looking := make(chan struct{})
	var once sync.Once
	var armed atomic.Bool
	tn := tenantsOn(t, t.TempDir(), func(o *TenantsOptions) {
		o.OnCall = func(meter.Event) {
			if armed.Load() {
				once.Do(func() { close(looking); time.Sleep(50 * time.Millisecond) })
			}
		}
	})
	defer closeTenants(t, tn)
	armed.Store(true)
	read := make(chan error, 1)
	go func() {
		_, _, err := tn.Get(context.Background(), "a", "")
		read <- err
	}()
	<-looking
	if err := put(tn, "a", 1); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, txlog.ErrNotTable) {
		t.Errorf("the read: %v", err)
	}
}

// TestTableInAnOutageStaysOpen: what cannot be flushed is not closed as idle,
// where nobody could read it.
func TestTableInAnOutageStaysOpen(t *testing.T) {
	tn := tenantsOn(t, t.TempDir(), func(o *TenantsOptions) { o.IdleAfter = time.Nanosecond })
	store := fault.New(mem.New(mem.Options{}))
	tn.store = meter.New(store, meter.Options{})
	if err := put(tn, "a", 1); err != nil {
		t.Fatal(err)
	}
	store.Inject(fault.Fault{Op: storage.OpPut, Times: -1, Mode: fault.Before})
	tn.closeIdle(context.Background())
	open := 0
	tn.Each(func(string, string, *DB) { open++ })
	if open != 1 {
		t.Errorf("%d tables are open", open)
	}
	store.Clear()
	if n := count(t, tn, "a"); n != 1 {
		t.Errorf("%d samples", n)
	}
	closeTenants(t, tn)
}
