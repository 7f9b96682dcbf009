//go:build unix

package txlog_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cardinalsin/internal/faultproxy"
	"cardinalsin/storage"
	"cardinalsin/storage/storetest"
	"cardinalsin/txlog"
)

// Sixteen processes commit to one table, each through a proxy that loses its
// requests and responses, holds them back, answers conflicts, throttling and
// errors, and cuts bodies; two of the processes are killed on the way. Then
// versions are contiguous; each transaction is in the log exactly once, or not
// and reported so, or at most once and reported as unknown; and commits and
// reads are linearizable. CARDINAL_SEED repeats choices and faults, if not the
// schedule.
func TestSixteenProcesses(t *testing.T) {
	const processes, lanes, operations, killed = 16, 2, 20, 2
	seed := rand.Uint64()
	if text := os.Getenv("CARDINAL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	server := storetest.StartS3(t)
	fmt.Printf("sixteen processes on %s: CARDINAL_SEED=%d\n", server.Program, seed)
	t.Cleanup(func() {
		if t.Failed() {
			fmt.Printf("failed with CARDINAL_SEED=%d\n", seed)
		}
	})

	plain := job{
		Seed: seed, Lanes: lanes, Operations: operations,
		Endpoint: server.Endpoint, Region: server.Region, Bucket: server.Bucket,
		AccessKey: server.AccessKey, SecretKey: server.SecretKey,
	}
	store, err := plain.store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := setUpShared(t, store)

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	outputs := make([][]event, processes)
	struck := map[faultproxy.Kind]int{}
	requests := 0
	var proxies []*faultproxy.Proxy
	var group sync.WaitGroup
	for i := range processes {
		p, err := faultproxy.New(server.Endpoint, faultproxy.Options{Seed: seed + uint64(i), Rules: commitFaults()})
		if err != nil {
			t.Fatal(err)
		}
		proxies = append(proxies, p)
		j := plain
		j.Worker, j.Endpoint = i, p.URL
		killAfter := -1
		if i < killed {
			killAfter = 2 + rand.New(rand.NewPCG(seed, uint64(i))).IntN(2*lanes*operations)
		}
		group.Go(func() { outputs[i] = runWorker(t, self, j, killAfter) })
	}
	group.Wait()
	took := time.Since(began)
	for _, p := range proxies {
		if err := p.Close(); err != nil { // what is late arrives now
			t.Error(err)
		}
		requests += p.Requests()
		for kind, n := range p.Counts() {
			struck[kind] += n
		}
	}
	h := newHistory(t, outputs, first)
	t.Logf("%d requests in %v, struck: %v; operations: %v", requests, took.Round(time.Millisecond), struck, h.outcomes())
	h.checkLog(t, store)
	h.checkConflicts(t)
	h.checkLinearizable(t)
}

// commitFaults strike about every fifth request.
func commitFaults() []faultproxy.Rule {
	conditional, get := faultproxy.Conditional, http.MethodGet
	return []faultproxy.Rule{
		{Kind: faultproxy.LoseResponse, When: conditional, Probability: 0.05},
		{Kind: faultproxy.LoseRequest, When: conditional, Probability: 0.03},
		{Kind: faultproxy.Late, When: conditional, MaxDelay: 300 * time.Millisecond, Probability: 0.04},
		{Kind: faultproxy.AnswerBefore, When: conditional, Status: http.StatusConflict, Code: "ConditionalRequestConflict", Probability: 0.03},
		{Kind: faultproxy.AnswerBefore, Status: http.StatusServiceUnavailable, Code: "SlowDown", Probability: 0.01},
		{Kind: faultproxy.AnswerBefore, Status: http.StatusTooManyRequests, Code: "SlowDown", Probability: 0.01},
		{Kind: faultproxy.AnswerAfter, When: conditional, Status: http.StatusInternalServerError, Code: "InternalError", Probability: 0.03},
		{Kind: faultproxy.CutRequest, When: conditional, Probability: 0.02},
		{Kind: faultproxy.Delay, MaxDelay: 60 * time.Millisecond, Probability: 0.04},
		{Kind: faultproxy.LoseResponse, Method: get, Probability: 0.02},
		{Kind: faultproxy.CutResponse, Method: get, Probability: 0.03},
	}
}

// setUpShared makes the table with what the workers share, and returns its
// version.
func setUpShared(t *testing.T, store storage.Store) *txlog.Snapshot {
	t.Helper()
	l := create(t, store, txlog.Options{})
	tx := l.Begin(latest(t, l), txlog.Operation{Name: "TEST"})
	tx.SetDomain(registerDomain, register{}.String())
	for i := range sharedFiles {
		tx.Add(add(fmt.Sprintf("shared/%d/0", i)))
	}
	s, err := tx.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// runWorker runs this test binary as a worker, and returns what it recorded.
// With killAfter ≥ 0 it kills it after so many events.
func runWorker(t *testing.T, self string, j job, killAfter int) []event {
	text, err := json.Marshal(j)
	if err != nil {
		t.Error(err)
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), workerEnv+"="+string(text))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return nil
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return nil
	}
	var events []event
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			if killAfter < 0 {
				t.Errorf("worker %d: %q: %v", j.Worker, lines.Text(), err)
			}
			continue // a line that the kill has cut
		}
		events = append(events, e)
		if len(events) == killAfter {
			if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("kill worker %d: %v", j.Worker, err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Errorf("worker %d: %v", j.Worker, err)
	}
	if err := cmd.Wait(); err != nil && killAfter < 0 {
		t.Errorf("worker %d: %v: %s", j.Worker, err, strings.TrimSpace(stderr.String()))
	}
	return events
}
