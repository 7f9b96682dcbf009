package main

import (
	"context"
	"errors"
	"path/filepath"
)

// checkpoint1M: memory and time of a checkpoint of a million files, from a
// snapshot that is loaded already.
func (b *bench) checkpoint1M(ctx context.Context) error {
	const n = 1_000_000
	store, err := b.table(ctx, "ours", n)
	if err != nil {
		return err
	}
	foreign, err := b.table(ctx, "foreign", n)
	if err != nil {
		return err
	}
	p, err := b.startOurs(ctx, false)
	ours, _, err := checkpoint(p, err, request{Do: "load", Store: store, Root: root})
	if err != nil {
		return err
	}
	p, err = b.startPeer(ctx, "delta-rs", false)
	peer, _, err := checkpoint(p, err, request{Do: "load", Path: filepath.Join(foreign, root)})
	if err != nil {
		return err
	}
	b.line("checkpoint1M/delta-rs", seconds(ours.Seconds), seconds(peer.Seconds), peer.Seconds/ours.Seconds)
	b.note("store requests of ours: %s", ours.Requests)
	b.note("heap of ours: the snapshot %s, at most %s meanwhile, garbage included", megabytes(ours.Heap), megabytes(ours.HeapPeak))
	b.note("resident set: ours %s before and at most %s (×%.2f), delta-rs %s and %s (×%.2f)",
		megabytes(ours.Resident), megabytes(ours.Peak), float64(ours.Peak)/float64(ours.Resident),
		megabytes(peer.Resident), megabytes(peer.Peak), float64(peer.Peak)/float64(peer.Resident))
	b.target("peak at most 1.3 times the snapshot's, resident", float64(ours.Peak) <= 1.3*float64(ours.Resident))
	b.target("peak at most 1.3 times the snapshot's, heap", float64(ours.HeapPeak) <= 1.3*float64(ours.Heap))
	return nil
}

// checkpoint loads a table and writes a checkpoint of it.
func checkpoint(p *process, err error, load request) (result, loaded answer, _ error) {
	if err != nil {
		return result, loaded, err
	}
	loaded, err = p.ask(load)
	if err == nil {
		result, err = p.ask(request{Do: "checkpoint"})
	}
	return result, loaded, errors.Join(err, p.stop())
}
