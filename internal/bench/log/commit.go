package main

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cardinalsin/internal/s3server"
	"cardinalsin/storage"
	"cardinalsin/storage/meter"
	"cardinalsin/storage/storeurl"
	"cardinalsin/txlog"
)

// commits is how many versions each side commits.
const commits = 15

// commit: 10 adds a version, on disk, in memory, and on an S3 server.
func (b *bench) commit(ctx context.Context) error {
	for _, n := range []int{1_000, 100_000} {
		ours, err := b.table(ctx, "ours", n)
		if err != nil {
			return err
		}
		theirs, err := b.table(ctx, "foreign", n)
		if err != nil {
			return err
		}
		if err := b.commitIn(ctx, fmt.Sprintf("commit-disk-%dk", n/1000), ours, theirs); err != nil {
			return err
		}
	}
	if err := b.commitInMemory(ctx); err != nil {
		return err
	}
	return b.commitS3(ctx)
}

// ram is a file system in memory.
const ram = "/dev/shm"

func (b *bench) commitInMemory(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(ram, "bench-log-")
	if errors.Is(err, os.ErrNotExist) {
		b.note("commit-memory: not measured, there is no %s", ram)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ours, err := makeTable(ctx, filepath.Join(dir, "ours"), "ours", 1_000)
	if err != nil {
		return err
	}
	theirs, err := makeTable(ctx, filepath.Join(dir, "foreign"), "foreign", 1_000)
	if err != nil {
		return err
	}
	return b.commitIn(ctx, "commit-memory-1k", ours, theirs)
}

func (b *bench) commitIn(ctx context.Context, name, ours, theirs string) error {
	_, err := b.commitWith(ctx, name, nil,
		request{Do: "load", Store: ours, Root: root}, request{Do: "load", Path: filepath.Join(theirs, root)}, func() int { return 0 })
	return err
}

// commitS3 counts the requests of both in a proxy that changes nothing.
func (b *bench) commitS3(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.dir, "s3-")
	if err != nil {
		return err
	}
	server, err := s3server.Start(ctx, dir)
	if errors.Is(err, s3server.ErrNotInstalled) {
		b.note("commit-s3: not measured: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	// The server keeps a bucket as a folder of its own.
	if _, err := makeTable(ctx, filepath.Join(dir, server.Bucket, "theirs"), "foreign", 1_000); err != nil {
		return err
	}
	target, err := url.Parse(server.Endpoint)
	if err != nil {
		return err
	}
	var count atomic.Int64
	// The Host header is part of what a request's signature covers.
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		count.Add(1)
		r.SetURL(target)
		r.Out.Host = r.In.Host
	}})
	defer proxy.Close()
	counted := s3server.Server{Endpoint: proxy.URL, Region: server.Region, Bucket: server.Bucket}
	ours := counted.StoreURL("ours")
	for _, v := range server.Env() { // our own store, below, finds them there
		name, value, _ := strings.Cut(v, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if err := makeOurs(ctx, ours, 1_000); err != nil {
		return err
	}
	_, err = b.commitWith(ctx, "commit-s3-1k", server.Env(),
		request{Do: "load", Store: ours, Root: root},
		request{Do: "load", Path: "s3://" + server.Bucket + "/theirs/" + root, Options: map[string]string{
			"AWS_ENDPOINT_URL": proxy.URL, "AWS_REGION": server.Region, "AWS_ALLOW_HTTP": "true", "aws_conditional_put": "etag",
			"AWS_ACCESS_KEY_ID": server.AccessKey, "AWS_SECRET_ACCESS_KEY": server.SecretKey,
		}}, func() int { return int(count.Load()) })
	return err
}

// commitWith lets both commit, taking turns; count tells how many requests
// there were so far.
func (b *bench) commitWith(ctx context.Context, name string, env []string, ours, theirs request, count func() int) (_ float64, err error) {
	us, err := b.startOurs(ctx, false, env...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, us.stop()) }()
	peer, err := b.startPeer(ctx, "delta-rs", false, env...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, peer.stop()) }()
	if _, err := us.ask(ours); err != nil {
		return 0, err
	}
	// Ours has a checkpoint; now theirs has one, too.
	for _, r := range []request{theirs, {Do: "checkpoint"}, theirs} {
		if _, err := peer.ask(r); err != nil {
			return 0, err
		}
	}
	var times [2][]float64
	var sent [2]int
	var requests string
	for range commits {
		for who, p := range []*process{us, peer} {
			if who == 1 {
				// Through one object each commit of theirs takes longer
				// than the one before; an object just opened is quickest.
				if _, err := p.ask(theirs); err != nil {
					return 0, err
				}
			}
			before := count()
			a, err := p.ask(request{Do: "commit", N: 10})
			if err != nil {
				return 0, err
			}
			sent[who] += count() - before
			times[who] = append(times[who], a.Seconds)
			if who == 0 {
				requests = a.Requests
			}
		}
	}
	a, t := median(times[0]), median(times[1])
	b.line(name+"/delta-rs", seconds(a), seconds(t), t/a)
	b.target("ahead of delta-rs", a < t)
	b.note("store requests of ours: %s", requests)
	b.target("one conditional PUT, no LIST, no GET", requests == "put_if_absent=1")
	if sent[1] > 0 {
		b.note("requests that the server saw a commit: ours %.1f, delta-rs %.1f", float64(sent[0])/commits, float64(sent[1])/commits)
	}
	return a, nil
}

const (
	injected   = 30 * time.Millisecond
	committers = 64
)

// slowDown makes every request take longer.
func slowDown(e meter.Event) {
	if e.Op != storage.OpNow { // no request
		time.Sleep(injected)
	}
}

// groupCommit: how much more 64 committers of one process commit than one does.
func (b *bench) groupCommit(ctx context.Context) error {
	const window = 3 * time.Second
	one, _, err := commitFor(ctx, 1, window)
	if err != nil {
		return err
	}
	many, versions, err := commitFor(ctx, committers, window)
	if err != nil {
		return err
	}
	b.line("groupcommit", fmt.Sprintf("%.0f/s", many), fmt.Sprintf("%.1f/s", one), many/one)
	b.note("transactions a second of %d committers against one, %v a request; %.1f transactions a version", committers, injected, many*window.Seconds()/float64(versions))
	b.target("≥ 40", many >= 40*one)
	return nil
}

// commitFor returns the transactions a second, and the versions that held them.
func commitFor(ctx context.Context, n int, window time.Duration) (rate float64, versions int64, err error) {
	inner, err := storeurl.Open(ctx, "mem://")
	if err != nil {
		return 0, 0, err
	}
	log, err := txlog.Create(ctx, meter.New(inner, meter.Options{OnCall: slowDown}), root, txlog.CreateOptions{Schema: schema()}, txlog.Options{})
	if err != nil {
		return 0, 0, err
	}
	var done atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, n)
	begin := time.Now()
	for c := range n {
		wg.Go(func() {
			for i := 0; time.Since(begin) < window; i++ {
				tx := log.Begin(nil, txlog.Operation{Name: "WRITE", BlindAppend: true})
				tx.Add(addAt(i, fmt.Sprintf("g%d-", c)))
				if _, err := tx.Commit(ctx); err != nil {
					errs[c] = err
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(begin).Seconds()
	if err := errors.Join(errs...); err != nil {
		return 0, 0, err
	}
	snap, err := log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return 0, 0, err
	}
	if int64(snap.NumFiles()) != done.Load() {
		return 0, 0, fmt.Errorf("%w: %d files after %d commits", errChild, snap.NumFiles(), done.Load())
	}
	return float64(done.Load()) / took, int64(snap.Version()), nil
}
