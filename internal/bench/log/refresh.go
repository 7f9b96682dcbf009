package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
)

// refreshes is how many commits each size is refreshed after; the peer, which
// needs seconds at the largest, leaves after some.
const (
	refreshes     = 401
	peerRefreshes = 11
)

// refresh: one commit of 10 adds, then a refresh, at three sizes of the table,
// which take turns, so that whatever else the machine does strikes all.
func (b *bench) refresh(ctx context.Context) (err error) {
	var tables []*refreshed
	defer func() {
		for _, t := range tables {
			for _, p := range t.processes {
				err = errors.Join(err, p.stop())
			}
		}
	}()
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		t := &refreshed{name: map[int]string{1_000: "refresh1k", 100_000: "refresh100k", 1_000_000: "refresh1M"}[n]}
		tables = append(tables, t)
		if err := t.open(ctx, b, n); err != nil {
			return err
		}
	}
	for i := range refreshes {
		for _, t := range tables {
			if err := t.round(i); err != nil {
				return err
			}
		}
	}
	least, most := math.Inf(1), 0.0
	for _, t := range tables {
		ours, peer := median(t.times[0]), median(t.times[1])
		least, most = min(least, ours), max(most, ours)
		b.line(t.name+"/delta-rs", seconds(ours), seconds(peer), peer/ours)
		b.target("ahead of delta-rs", ours < peer)
		b.note("store requests of ours: %s", t.requests)
		b.target("one GET for the commit and one that finds no next", t.requests == "get=2")
	}
	b.note("of the three sizes the slowest takes %.2f times the quickest", most/least)
	b.target("flat within 20 %", most <= 1.2*least)
	return nil
}

// refreshed is one table: a process of ours that commits, one that follows,
// and the peer, which follows, too.
type refreshed struct {
	name      string
	processes []*process
	times     [2][]float64 // seconds, of ours and of the peer
	requests  string       // of ours, the last time
}

func (t *refreshed) open(ctx context.Context, b *bench, n int) error {
	store, err := b.table(ctx, "ours", n)
	if err != nil {
		return err
	}
	load := request{Do: "load", Store: store, Root: root, Path: filepath.Join(store, root)}
	for _, start := range []func() (*process, error){
		func() (*process, error) { return b.startOurs(ctx, false) }, // commits
		func() (*process, error) { return b.startOurs(ctx, false) },
		func() (*process, error) { return b.startPeer(ctx, "delta-rs", false) },
	} {
		p, err := start()
		if err != nil {
			return err
		}
		t.processes = append(t.processes, p)
		if _, err = p.ask(load); err != nil {
			return err
		}
	}
	return nil
}

// round commits and lets both follow; neither is always the first to read.
func (t *refreshed) round(i int) error {
	committed, err := t.processes[0].ask(request{Do: "commit", N: 10})
	if err != nil {
		return err
	}
	for turn := range 2 {
		who := (i + turn) % 2
		if who == 1 && i >= peerRefreshes {
			continue
		}
		a, err := t.processes[1+who].ask(request{Do: "refresh"})
		if err != nil {
			return err
		}
		if a.Version != committed.Version {
			return fmt.Errorf("%w: a refresh comes to version %d of %d", errChild, a.Version, committed.Version)
		}
		t.times[who] = append(t.times[who], a.Seconds)
		if who == 0 {
			t.requests = a.Requests
		}
	}
	return nil
}
