//go:build crash

package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"cardinalsin/internal/crashpoint"
	"cardinalsin/internal/s3server"
)

var (
	binary  = flag.String("binary", "", "the cardinal program, built with the tag crashpoints")
	writer  = flag.String("writer", "", "the cardinal-writer program, built with the tag crashpoints")
	rounds  = flag.Int("rounds", 112, "number of kills, half of them on a local store, half on S3")
	seed    = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of the moments")
	only    = flag.String("protocol", "", "load by this protocol alone")
	perKind = flag.Int("senders", 2, "senders a protocol")
)

// anywhen is no point of the program: it is killed from outside, after a
// while.
const anywhen crashpoint.Point = "anywhen"

// points are where the programs are killed, with the pass up to which. Those
// of the write-ahead log are passed with every group of requests; of anywhen
// it is a number of milliseconds.
var points = []struct {
	crashpoint.Point
	most int
}{
	{crashpoint.WALWritten, 300},
	{crashpoint.WALSynced, 300},
	{crashpoint.Uploading, 12},
	{crashpoint.Uploaded, 8},
	{crashpoint.Committed, 8},
	{crashpoint.Truncating, 8},
	{anywhen, 1500},
}

// walBytes bounds the log of a table, and so its segments to a quarter of it:
// small, so that truncating removes some every few rounds.
const walBytes = 512 << 10

// patience is how long a server may take to come to its point.
const patience = 30 * time.Second

type trapKey struct{}

func withTrap(ctx context.Context, t *trap) context.Context {
	return context.WithValue(ctx, trapKey{}, t)
}

// newSenders makes senders for every protocol.
func newSenders(tenant string, l *ledger) (all []*generator) {
	for _, p := range protocols {
		if *only != "" && *only != p.name {
			continue
		}
		for i := range *perKind {
			g := p.generator
			g.tenant, g.ledger, g.protocol, g.sender = tenant, l, p.name, i
			all = append(all, &g)
		}
	}
	return all
}

// TestKill kills the programs at every point of the write path under load by
// all protocols, restarts them each time, and reads back: what was
// acknowledged is there, nothing twice, and the tables are sound.
func TestKill(t *testing.T) {
	if *binary == "" || *writer == "" {
		t.Fatal("-binary and -writer are required; run `make crash`")
	}
	t.Logf("seed %d", *seed)
	t.Run("file", func(t *testing.T) {
		k := &killer{dir: t.TempDir(), wal: t.TempDir(), place: store{url: "file://" + t.TempDir()}, rng: rand.New(rand.NewPCG(*seed, 0))}
		k.run(t, *rounds-*rounds/2)
	})
	t.Run("s3", func(t *testing.T) {
		p, place := throughProxy(t)
		k := &killer{dir: t.TempDir(), wal: t.TempDir(), place: place, proxy: p, rng: rand.New(rand.NewPCG(*seed, 1))}
		k.run(t, *rounds/2)
	})
}

// throughProxy starts an S3 server with a proxy before it.
func throughProxy(t *testing.T) (*proxy, store) {
	t.Helper()
	srv, err := s3server.Start(context.WithoutCancel(t.Context()), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Stop(); err != nil {
			t.Error(err)
		}
	})
	p := startProxy(t, srv.Endpoint)
	srv.Endpoint = p.url
	return p, store{url: srv.StoreURL("store"), env: srv.Env()}
}

// resending is a tenant.
const resending = "resending"

// killer runs the programs on one store, again and again.
type killer struct {
	dir, wal string
	place    store
	proxy    *proxy // nil for a local store
	rng      *rand.Rand
}

func (k *killer) run(t *testing.T, rounds int) {
	// One tenant's clients never repeat themselves, another's send again what
	// nobody answered, as most do.
	l, again := newLedger(), newLedger()
	senders := newSenders("", l)
	for _, g := range newSenders(resending, again) {
		if g.sender == 0 {
			g.resends = true
			senders = append(senders, g)
		}
	}
	died := map[crashpoint.Point]int{}
	begin := time.Now()
	for round := range rounds {
		p := points[round%len(points)]
		pass := 1 + k.rng.IntN(p.most)
		// The programs take turns with the same tables and the same log.
		turn := round / len(points)
		k.kill(t, senders, p.Point, pass, turn%3 != 0, turn%2 == 1)
		died[p.Point]++
		t.Logf("kill %3d at %s, pass %d: %v", round+1, p.Point, pass, l)
	}
	t.Logf("%d kills in %v: %v", rounds, time.Since(begin).Round(time.Second), died)
	for _, r := range append(l.refused, again.refused...) {
		t.Errorf("refused for good: %s", r)
	}
	s := launch(t, k.place.env, *binary, k.args("server")...)
	loadBriefly(t, s, senders)
	for _, g := range senders {
		if g.ledger.byProtocol[g.protocol] == 0 {
			t.Errorf("nothing was acknowledged by %s", g.protocol)
		}
	}
	verifyHead(t, s, "", l)
	verifyHead(t, s, resending, again)
	s.stop()
	verifyTables(t, k.place, l, true)
	k.place.tenant = resending
	verifyTables(t, k.place, again, false)
}

// args are the flags of a run; command is empty for cardinal-writer.
func (k *killer) args(command string) []string {
	args := []string{"--store", k.place.url, "--wal-dir", k.wal, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--flush-age", "300ms", "--log-level", "error", "--wal-max-bytes", strconv.Itoa(walBytes)}
	if command == "" {
		return args
	}
	return append([]string{command, "--compact-every", "1s", "--cache-dir", k.dir, "--flight-sql", "127.0.0.1:0"}, args...)
}

// kill runs a program under load until it passes a point for the n-th time:
// after its start, recovery included, or (late) after it serves.
func (k *killer) kill(t *testing.T, senders []*generator, point crashpoint.Point, n int, late, writerAlone bool) {
	t.Helper()
	env := k.place.env
	if point != anywhen {
		setting := fmt.Sprintf("CARDINAL_CRASHPOINT=%s:%d", point, n)
		if late {
			setting += ":SIGUSR1"
		}
		env = append([]string{setting}, env...)
	}
	var armed *trap
	if k.proxy != nil && (point == crashpoint.Uploading || point == crashpoint.Committed) {
		// The truest mid-upload and lost answer are made outside.
		env, armed = k.place.env, &trap{key: commit}
		if point == crashpoint.Uploading {
			armed.key, armed.half = chunkFile, true
		}
		armed.left.Store(int64(n))
	}
	program, args := *binary, k.args("server")
	if writerAlone {
		program, args = *writer, k.args("")
	}
	var pid sync.WaitGroup // until the process is known
	pid.Add(1)
	var victim *server
	if armed != nil {
		armed.kill = func() {
			pid.Wait()
			victim.kill()
		}
		defer k.proxy.set(nil)
		if !late {
			k.proxy.set(armed)
		}
	}
	victim = begin(t, env, program, args...)
	pid.Done()
	if point == anywhen {
		defer time.AfterFunc(time.Duration(n)*time.Millisecond, victim.kill).Stop()
	}
	if victim.ready() {
		switch {
		case late && armed != nil:
			k.proxy.set(armed)
		case late && point != anywhen:
			victim.signal(syscall.SIGUSR1)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			victim.await(patience)
			cancel()
		}()
		c := dial(t, victim)
		load(ctx, c, senders, 5*time.Millisecond)
		c.close()
		cancel()
	}
	if !victim.over() {
		t.Errorf("%s was not passed %d times within %v", point, n, patience)
		victim.kill()
		return
	}
	if !victim.killed() {
		t.Fatalf("it was to be killed at %s, pass %d, and ended with %v", point, n, victim.ended)
	}
}
