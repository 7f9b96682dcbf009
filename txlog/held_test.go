package txlog_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"sync"
	"testing"
	"time"

	"cardinalsin/action"
	"cardinalsin/storage/mem"
	"cardinalsin/txlog"
)

// digest is all that a snapshot says.
func digest(s *txlog.Snapshot) uint64 {
	h := fnv.New64a()
	fmt.Fprintln(h, s.Version(), s.Time(), s.NumFiles(), s.NumTombstones(), s.Bytes(), *s.Protocol(), *s.Metadata(), *s.Schema())
	for a := range s.Files() {
		fmt.Fprintln(h, *a)
	}
	for r := range s.Tombstones() {
		fmt.Fprintln(h, *r)
	}
	for t := range s.Transactions() {
		fmt.Fprintln(h, t)
	}
	for d, c := range s.Domains() {
		fmt.Fprintln(h, d, c)
	}
	return h.Sum64()
}

// A snapshot that somebody holds never changes, whatever is committed,
// refreshed, checkpointed, forgotten by a vacuum or restored meanwhile, by
// this process or another; snapshots share most of what they hold. The race
// detector looks on.
func TestHeldSnapshotsStayAsTheyAre(t *testing.T) {
	store := mem.New(mem.Options{})
	l := create(t, store, txlog.Options{CheckpointEvery: 8})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	held := make(chan *txlog.Snapshot, 1000)
	keep := func(s *txlog.Snapshot) {
		select {
		case held <- s:
		default:
		}
	}
	for who := range 2 {
		log := l
		if who == 1 {
			log = open(t, store)
		}
		for part := range 2 {
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					name := fmt.Sprintf("%d-%d-", who, part)
					tx := log.Begin(nil, txlog.Operation{Name: "TEST"})
					a := add(name + fmt.Sprint(n))
					a.Stats = fmt.Sprintf(`{"numRecords":%d}`, n)
					tx.Add(a)
					if n > 3 {
						old := add(name + fmt.Sprint(n-3))
						tx.Remove(old.Tombstone(true))
					}
					tx.SetTransaction(name, int64(n))
					tx.SetDomain("d"+name, fmt.Sprint(n))
					if n%5 == 0 {
						tx.AddColumns(action.Field{Name: "c" + name + fmt.Sprint(n), Type: action.PrimitiveType("string"), Nullable: true})
					}
					s, err := tx.Commit(context.Background())
					if err != nil {
						t.Error(err)
						return
					}
					keep(s)
					if n%7 == 0 && part == 0 && who == 0 { // forget the tombstones so far
						tx := log.Begin(nil, txlog.Operation{Name: "VACUUM END"})
						tx.SetDomain(txlog.VacuumDomain, txlog.EncodeVacuumed(s.Version(), s.Time().UnixMilli()))
						if _, err := tx.Commit(context.Background()); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				s, err := log.Snapshot(context.Background(), txlog.Latest())
				if err != nil {
					t.Error(err)
					return
				}
				keep(s)
				if err := log.Upkeep(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var looked int
	var mu sync.Mutex
	for range 3 {
		wg.Go(func() {
			kept := map[*txlog.Snapshot]uint64{}
			for ctx.Err() == nil {
				select {
				case s := <-held:
					kept[s] = digest(s)
				default:
				}
				for s, was := range kept {
					if is := digest(s); is != was {
						t.Errorf("version %d has changed", s.Version())
					}
				}
				for s := range kept { // a few of all ages
					if len(kept) <= 20 {
						break
					}
					delete(kept, s)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			looked += len(kept)
		})
	}
	wg.Wait()
	// What was held throughout is what a process finds that travels there.
	fresh := open(t, store)
	close(held)
	compared := 0
	for s := range held {
		if compared++; compared > 20 {
			break
		}
		then, err := fresh.Snapshot(t.Context(), txlog.AtVersion(s.Version()))
		if err != nil {
			t.Fatal(err)
		}
		if d := then.FirstDifference(s); d != "" {
			t.Errorf("version %d: loaded and held differ: %s", s.Version(), d)
		}
	}
	if looked == 0 || compared == 0 {
		t.Errorf("%d snapshots were looked at, %d compared", looked, compared)
	}
	t.Logf("up to version %d", latest(t, fresh).Version())
}
