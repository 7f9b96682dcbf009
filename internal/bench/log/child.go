package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"cardinalsin/storage/meter"
	"cardinalsin/storage/storeurl"
	"cardinalsin/txlog"
)

// request is one line that the driver sends to a child, ours or a peer's.
type request struct {
	Do string `json:"do"` // load, refresh, commit, checkpoint
	// Store and Root name the table for ours; Path is the same for a peer.
	Store   string            `json:"store,omitempty"`
	Root    string            `json:"root,omitempty"`
	Path    string            `json:"path,omitempty"`
	Options map[string]string `json:"options,omitempty"` // a peer's storage options
	Threads int               `json:"threads,omitempty"` // 0: as it likes
	N       int               `json:"n,omitempty"`       // adds of a commit
	Count   bool              `json:"count,omitempty"`   // a peer is to count the files that it loaded
}

// answer is one line of a child.
type answer struct {
	Error      string  `json:"error,omitempty"`
	Seconds    float64 `json:"seconds"`
	Version    int64   `json:"version"`
	Files      int64   `json:"files"`
	Heap       int64   `json:"heap"`        // bytes that the operation left on the heap; ours only
	HeapPeak   int64   `json:"heap_peak"`   // highest use of the heap meanwhile, garbage included; ours only
	Resident   int64   `json:"resident"`    // growth of the resident set
	Peak       int64   `json:"peak"`        // highest resident set meanwhile
	StatsBytes int64   `json:"stats_bytes"` // of all files' statistics; ours only
	Requests   string  `json:"requests"`    // store requests by kind; ours only
}

// process is a child that answers requests.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// start runs a command that answers requests; oneCore pins it to one core.
func start(ctx context.Context, oneCore bool, env []string, command ...string) (*process, error) {
	if oneCore {
		command = append([]string{"taskset", "-c", "0"}, command...)
		env = append(env, "GOMAXPROCS=1")
	}
	p := &process{cmd: exec.CommandContext(ctx, command[0], command[1:]...)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewScanner(out)
	return p, p.cmd.Start()
}

func (b *bench) startOurs(ctx context.Context, oneCore bool, env ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(ctx, oneCore, env, self, "child")
}

// startPeer runs "delta-rs" or "kernel".
func (b *bench) startPeer(ctx context.Context, peer string, oneCore bool, env ...string) (*process, error) {
	return start(ctx, oneCore, env, b.python, b.peers, peer)
}

var errChild = errors.New("child failed")

// ask sends one request and waits for its answer.
func (p *process) ask(r request) (answer, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return answer{}, err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return answer{}, err
	}
	if !p.out.Scan() {
		return answer{}, fmt.Errorf("%w: %q ended without an answer: %w", errChild, p.cmd.Args, errors.Join(p.out.Err(), p.stop()))
	}
	var a answer
	if err := json.Unmarshal(p.out.Bytes(), &a); err != nil {
		return answer{}, fmt.Errorf("%w: answer %q: %w", errChild, p.out.Bytes(), err)
	}
	if a.Error != "" {
		return answer{}, fmt.Errorf("%w: %s", errChild, a.Error)
	}
	return a, nil
}

func (p *process) stop() error { return errors.Join(p.in.Close(), p.cmd.Wait()) }

// once runs a child for one request.
func once(p *process, err error, r request) (answer, error) {
	if err != nil {
		return answer{}, err
	}
	a, err := p.ask(r)
	return a, errors.Join(err, p.stop())
}

// child answers requests with our log until its input ends.
func child(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	encoder := json.NewEncoder(out)
	var w worker
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return err
		}
		a, err := w.do(ctx, r)
		if err != nil {
			a.Error = err.Error()
		}
		if err := encoder.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

// worker is the table that a child has open.
type worker struct {
	log   *txlog.Log
	meter *meter.Store
	snap  *txlog.Snapshot
	next  int // of the names of files
}

func (w *worker) do(ctx context.Context, r request) (answer, error) {
	switch r.Do {
	case "load":
		return w.load(ctx, r)
	case "refresh":
		return w.timed(func() (err error) {
			w.snap, err = w.log.Snapshot(ctx, txlog.Latest())
			return err
		})
	case "commit":
		tx := w.log.Begin(nil, txlog.Operation{Name: "WRITE", BlindAppend: true})
		for range r.N {
			tx.Add(flushedAt(w.next, fmt.Sprintf("c%d", os.Getpid())))
			w.next++
		}
		return w.timed(func() (err error) {
			w.snap, err = tx.Commit(ctx)
			return err
		})
	case "checkpoint":
		return w.checkpoint(ctx)
	}
	return answer{}, fmt.Errorf("%w: unknown request %q", errChild, r.Do)
}

// timed runs one operation on the open table.
func (w *worker) timed(fn func() error) (answer, error) {
	before := w.meter.Snapshot()
	begin := time.Now()
	err := fn()
	a := answer{Seconds: time.Since(begin).Seconds(), Requests: requests(w.meter.Snapshot().Since(before))}
	if err != nil {
		return a, err
	}
	a.Version, a.Files = int64(w.snap.Version()), int64(w.snap.NumFiles())
	return a, nil
}

func (w *worker) load(ctx context.Context, r request) (answer, error) {
	store, err := storeurl.Open(ctx, r.Store)
	if err != nil {
		return answer{}, err
	}
	w.meter = meter.New(store, meter.Options{})
	heap, resident := liveHeap(), status("VmRSS")
	a, err := w.timed(func() (err error) {
		if w.log, err = txlog.Open(ctx, w.meter, r.Root, txlog.Options{CheckpointEvery: 1 << 40}); err == nil {
			w.snap, err = w.log.Snapshot(ctx, txlog.Latest())
		}
		return err
	})
	if err != nil {
		return a, err
	}
	a.Peak = status("VmHWM")
	a.Heap = liveHeap() - heap
	a.Resident = status("VmRSS") - resident
	for f := range w.snap.Files() {
		a.StatsBytes += int64(len(f.Stats))
	}
	runtime.KeepAlive(w.log)
	return a, nil
}

// checkpoint commits, so that there is something to do, and measures the
// checkpoint alone: Heap is what the snapshot held before it.
func (w *worker) checkpoint(ctx context.Context) (answer, error) {
	if _, err := w.do(ctx, request{Do: "commit", N: 1}); err != nil {
		return answer{}, err
	}
	heap := liveHeap()
	debug.FreeOSMemory()
	resident := status("VmRSS")
	// The kernel forgets the peak so far (proc(5), clear_refs).
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return answer{}, err
	}
	stop, peak := make(chan struct{}), make(chan int64)
	go func() { peak <- watchHeap(stop) }()
	a, err := w.timed(func() (err error) {
		w.snap, err = w.log.Checkpoint(ctx)
		return err
	})
	close(stop)
	a.HeapPeak = <-peak
	a.Heap, a.Resident, a.Peak = heap, resident, status("VmHWM")
	return a, err
}

// watchHeap returns the highest use of the heap, garbage included, until stop.
func watchHeap(stop <-chan struct{}) int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	var peak uint64
	for {
		metrics.Read(sample)
		peak = max(peak, sample[0].Value.Uint64())
		select {
		case <-stop:
			return int64(peak)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// liveHeap is what the heap holds after a collection.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// status reads one size, in bytes, from proc(5)'s status; 0 if it is not there.
func status(name string) int64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}

// requests prints the calls by kind, in the order of storage.Ops.
func requests(s meter.Snapshot) string {
	var parts []string
	for _, op := range billed {
		if n := s[op].Requests; n > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", op, n))
		}
	}
	return strings.Join(parts, " ")
}
