//go:build crash

package crash

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

var outage = flag.Duration("outage", time.Minute, "how long the store is away")

const (
	// outageHead is the room for samples in memory; the load of the outage is
	// several times that.
	outageHead = 8 << 20
	// outageMemory bounds the whole process: the head, its runtime, and what
	// all senders have on their way.
	outageMemory = 400 << 20
	// idleRate bounds the requests a second with which the programs try a
	// store that does not answer, herdRate those with which they come back.
	idleRate, herdRate = 20, 400
)

// TestOutage takes the store away under load: whatever is acknowledged
// meanwhile is stored afterwards, once, memory stays bounded, and the store is
// not overrun when it comes back. Once the program lives through it, once it
// is killed in the middle and finds all in its log.
func TestOutage(t *testing.T) {
	if *binary == "" || *writer == "" {
		t.Fatal("-binary and -writer are required; run `make crash`")
	}
	for _, tc := range []struct {
		name   string
		killed bool
		length time.Duration
	}{
		{"lived through", false, *outage},
		{"killed in the middle", true, *outage / 4},
	} {
		t.Run(tc.name, func(t *testing.T) { testOutage(t, tc.killed, tc.length) })
	}
}

func testOutage(t *testing.T, killed bool, length time.Duration) {
	p, place := throughProxy(t)
	args := []string{
		"--store", place.url, "--wal-dir", t.TempDir(), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--log-level", "error",
		"--flush-age", "1s", "--flush-bytes", strconv.Itoa(outageHead / 4), "--max-head-bytes", strconv.Itoa(outageHead),
	}
	l := newLedger()
	senders := newSenders("", l)
	s := launch(t, place.env, *writer, args...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := dial(t, s)
	loaded := make(chan struct{})
	go func() {
		load(ctx, c, senders, 0)
		close(loaded)
	}()

	before := p.watch(5 * time.Second)
	ackedBefore := l.acknowledged()
	p.down.Store(true)
	// A request that fails on a connection which was idle is sent again by
	// net/http on the next idle one, so the first drains them all at once.
	time.Sleep(time.Second)
	during := p.watch(length - time.Second)
	ackedDuring := l.acknowledged() - ackedBefore
	peak := s.peakMemory()
	if killed {
		s.kill()
		cancel()
		<-loaded
		p.down.Store(false)
		s = launch(t, place.env, *writer, args...)
		loadBriefly(t, s, senders)
		peak = max(peak, s.peakMemory())
	} else {
		p.down.Store(false)
		after := p.watch(10 * time.Second)
		peak = max(peak, s.peakMemory())
		t.Logf("requests a second, at most: %d before, %d during, %d after", before, during, after)
		if after > max(herdRate, 2*before) {
			t.Errorf("%d requests in the busiest second after the outage, %d before it", after, before)
		}
		cancel()
		<-loaded
	}
	c.close()
	t.Logf("%v; %d samples in the %v without a store; peak memory %d MiB", l, ackedDuring, length, peak>>20)
	if during > idleRate {
		t.Errorf("%d requests in the busiest second of the outage", during)
	}
	if peak > outageMemory {
		t.Errorf("the process took %d MiB", peak>>20)
	}
	if ackedDuring == 0 {
		t.Error("nothing was acknowledged without the store")
	}
	for _, r := range l.refused[:min(len(l.refused), 10)] {
		t.Errorf("refused for good: %s", r)
	}
	s.stop()
	verifyTables(t, place, l, true)
}

// watch waits, and returns the most requests of any second.
func (p *proxy) watch(d time.Duration) (most int64) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		from := p.passed.Load()
		time.Sleep(time.Second)
		most = max(most, p.passed.Load()-from)
	}
	return most
}

func (l *ledger) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// peakMemory is the most that the process ever had in memory, in bytes.
func (s *server) peakMemory() int64 {
	s.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return kib << 10
		}
	}
	s.t.Fatal("no peak memory in its status")
	return 0
}
