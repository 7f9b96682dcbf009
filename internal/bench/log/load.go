package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// uncounted stands for the number of files where a peer was not asked to count.
const uncounted = -1

// load300k: the archive of 300,000 adds in one JSON commit, on one core.
func (b *bench) load300k(ctx context.Context) error {
	dir := filepath.Join(b.dir, "300k")
	if err := unpack(b.archive, dir); err != nil {
		return err
	}
	logs, err := filepath.Glob(filepath.Join(dir, "*", "_delta_log"))
	if err != nil {
		return err
	}
	if len(logs) != 1 {
		return fmt.Errorf("%w: the archive holds %d tables", errChild, len(logs))
	}
	ours, err := b.loads(ctx, "load300k", dir, filepath.Base(filepath.Dir(logs[0])), 300_000, 5, true)
	if err != nil {
		return err
	}
	perFile := float64(ours.Heap-ours.StatsBytes) / float64(ours.Files)
	b.target("≤ 0.6 s on one core", ours.Seconds <= 0.6)
	b.note("the snapshot takes %.0f bytes a live file (no statistics in this table)", perFile)
	b.target("≤ 150 bytes a live file beside statistics", perFile <= 150)
	return nil
}

// load1M: a table of ours of a million files, from its checkpoint.
func (b *bench) load1M(ctx context.Context) error {
	store, err := b.table(ctx, "ours", 1_000_000)
	if err != nil {
		return err
	}
	ours, err := b.loads(ctx, "load1M", store, root, 1_000_000, 3, false)
	if err != nil {
		return err
	}
	b.target("≤ 2 s", ours.Seconds <= 2)
	b.note("the snapshot takes %.0f bytes a live file, %.0f of them its statistics as JSON would have them",
		float64(ours.Heap)/float64(ours.Files), float64(ours.StatsBytes)/float64(ours.Files))
	return nil
}

// loads has everybody load a table some times, taking turns, and prints the
// best of each.
func (b *bench) loads(ctx context.Context, name, store, table string, files int64, runs int, oneCore bool) (ours answer, err error) {
	peers := []string{"delta-rs", "kernel"}
	best := map[string]answer{}
	var worst float64
	keep := func(who string, a answer) error {
		if a.Files != files && a.Files != uncounted {
			return fmt.Errorf("%w: %s finds %d files of %d", errChild, who, a.Files, files)
		}
		if old, ok := best[who]; !ok || a.Seconds < old.Seconds {
			best[who] = a
		}
		return nil
	}
	for i := range runs {
		p, err := b.startOurs(ctx, oneCore)
		a, err := once(p, err, request{Do: "load", Store: store, Root: table})
		if err != nil {
			return answer{}, err
		}
		worst = math.Max(worst, a.Seconds)
		if err := keep("ours", a); err != nil {
			return answer{}, err
		}
		for _, peer := range peers {
			r := request{Do: "load", Path: filepath.Join(store, table), Count: i == 0}
			if oneCore {
				r.Threads = 1
			}
			p, err := b.startPeer(ctx, peer, oneCore)
			a, err := once(p, err, r)
			if err != nil {
				return answer{}, err
			}
			if err := keep(peer, a); err != nil {
				return answer{}, err
			}
		}
	}
	ours = best["ours"]
	for _, peer := range peers {
		b.line(name+"/"+peer, seconds(ours.Seconds), seconds(best[peer].Seconds), best[peer].Seconds/ours.Seconds)
		b.target("ahead of "+peer, ours.Seconds < best[peer].Seconds)
	}
	b.note("best of %d (worst of ours %s); store requests of ours: %s", runs, seconds(worst), ours.Requests)
	b.note("resident set: ours +%s with a peak of %s, delta-rs +%s, kernel +%s", megabytes(ours.Resident), megabytes(ours.Peak),
		megabytes(best["delta-rs"].Resident), megabytes(best["kernel"].Resident))
	return ours, nil
}

// unpack extracts a .tar.zst into dir.
func unpack(archive, dir string) (err error) {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := zstd.NewReader(f)
	if err != nil {
		return err
	}
	defer z.Close()
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", archive, err)
		}
		if !fs.ValidPath(filepath.Clean(h.Name)) {
			return fmt.Errorf("%w: %s holds %q", errChild, archive, h.Name)
		}
		path := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeReg:
			err = extract(path, t)
		}
		if err != nil {
			return err
		}
	}
}

func extract(path string, from io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, from)
	return err
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[len(s)/2]
}
