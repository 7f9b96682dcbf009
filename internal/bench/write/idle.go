package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// idleFor is how long nothing is written: longer than the age at which a
// flush is due, and than any pause between two looks at the store.
const idleFor = 30 * time.Second

// idle counts the store requests of a server to which nothing comes any more.
func (b *bench) idle(ctx context.Context) (err error) {
	dir := b.folder("idle")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := b.ours(dir, "--flush-age", "1s")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	in := b.requests(workload{series: 1000, perPost: 1000, rounds: 2})
	if _, err := send(ctx, s.url(), in, load{clients: 1, warm: 1, limit: time.Minute}, func() error { return nil }); err != nil {
		return err
	}
	calls := func() (float64, error) {
		all, err := s.counters(ctx)
		return all["cardinal_store_calls_total"], err
	}
	time.Sleep(5 * time.Second) // the flush, and what comes after it
	before, err := calls()
	if err != nil {
		return err
	}
	used, err := s.Usage()
	if err != nil {
		return err
	}
	time.Sleep(idleFor)
	after, err := calls()
	if err != nil {
		return err
	}
	now, err := s.Usage()
	if err != nil {
		return err
	}
	b.Line("idle", fmt.Sprintf("%.0f", after-before), "-", 0)
	b.Note("store requests in %v without writes, after %.0f before; processor time %v", idleFor, before, now.CPU-used.CPU)
	b.Target("an idle tenant makes no store request", before > 0 && after == before)
	return nil
}
