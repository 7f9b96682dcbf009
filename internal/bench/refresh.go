package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// refreshes is how many commits each size is refreshed after; the peer, which
// needs seconds at the largest, leaves after some.
const (
	refreshes     = 41
	peerRefreshes = 11
)

// refresh: one commit of 10 adds, then a refresh, at three sizes of the table.
func (b *bench) refresh(ctx context.Context) error {
	var all []float64
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		ours, err := b.refreshAt(ctx, n)
		if err != nil {
			return err
		}
		all = append(all, ours)
	}
	least, most := min(all[0], all[1], all[2]), max(all[0], all[1], all[2])
	b.note("of the three sizes the slowest takes %.2f times the quickest", most/least)
	b.target("flat within 20 %", most <= 1.2*least)
	return nil
}

func (b *bench) refreshAt(ctx context.Context, n int) (_ float64, err error) {
	store, err := b.table(ctx, "ours", n)
	if err != nil {
		return 0, err
	}
	var processes [3]*process
	defer func() {
		for _, p := range processes {
			if p != nil {
				err = errors.Join(err, p.stop())
			}
		}
	}()
	load := request{Do: "load", Store: store, Root: root, Path: filepath.Join(store, root)}
	for i, start := range []func() (*process, error){
		func() (*process, error) { return b.startOurs(ctx, false) }, // commits
		func() (*process, error) { return b.startOurs(ctx, false) },
		func() (*process, error) { return b.startPeer(ctx, "delta-rs", false) },
	} {
		if processes[i], err = start(); err != nil {
			return 0, err
		}
		if _, err = processes[i].ask(load); err != nil {
			return 0, err
		}
	}
	var times [2][]float64
	var requests string
	for i := range refreshes {
		committed, err := processes[0].ask(request{Do: "commit", N: 10})
		if err != nil {
			return 0, err
		}
		for turn := range 2 {
			who := (i + turn) % 2 // neither is always the first to read
			if who == 1 && i >= peerRefreshes {
				continue
			}
			a, err := processes[1+who].ask(request{Do: "refresh"})
			if err != nil {
				return 0, err
			}
			if a.Version != committed.Version {
				return 0, fmt.Errorf("%w: a refresh comes to version %d of %d", errChild, a.Version, committed.Version)
			}
			times[who] = append(times[who], a.Seconds)
			if who == 0 {
				requests = a.Requests
			}
		}
	}
	ours, peer := median(times[0]), median(times[1])
	name := map[int]string{1_000: "refresh1k", 100_000: "refresh100k", 1_000_000: "refresh1M"}[n]
	b.line(name+"/delta-rs", seconds(ours), seconds(peer), peer/ours)
	b.target("ahead of delta-rs", ours < peer)
	b.note("store requests of ours: %s", requests)
	b.target("one GET for the commit and one that finds no next", requests == "get=2")
	return ours, nil
}
