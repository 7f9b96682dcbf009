//go:build unix

package txlog_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"golang.org/x/sys/unix"

	"cardinalsin/action"
	"cardinalsin/storage"
	"cardinalsin/storage/retry"
	"cardinalsin/storage/s3"
	"cardinalsin/txlog"
)

// workerEnv tells the test binary that it is a worker; it holds a job.
const workerEnv = "CARDINAL_TXLOG_WORKER"

// TestMain lets the test binary be one of the processes of
// TestSixteenProcesses.
func TestMain(m *testing.M) {
	if text := os.Getenv(workerEnv); text != "" {
		if err := work(text, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// job is what a worker is told.
type job struct {
	Worker                                         int
	Seed                                           uint64
	Lanes, Operations                              int // operations a lane
	Endpoint, Region, Bucket, AccessKey, SecretKey string
}

func (j job) store(ctx context.Context) (storage.Store, error) {
	s, err := s3.Open(ctx, s3.Options{
		Bucket: j.Bucket, Endpoint: j.Endpoint, Region: j.Region, PathStyle: true,
		Credentials:  credentials.NewStaticCredentialsProvider(j.AccessKey, j.SecretKey, ""),
		StallTimeout: 10 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return retry.New(s, retry.Options{MinDelay: 5 * time.Millisecond, MaxDelay: 100 * time.Millisecond}), nil
}

// Domains and files that the workers share.
const (
	registerDomain = "test.register"
	sharedFiles    = 8
)

// register is the shared domain's configuration: a count, and the operation
// that made it so.
type register struct {
	Value int64
	By    string
}

func registerOf(s *txlog.Snapshot) (register, error) {
	var r register
	text, ok := s.Domain(registerDomain)
	if !ok {
		return r, fmt.Errorf("version %d has no register", int64(s.Version()))
	}
	return r, json.Unmarshal([]byte(text), &r)
}

func (r register) String() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // a number and a string
	}
	return string(text)
}

// event is one line of a worker's output: an invocation, or its outcome.
type event struct {
	ID      string
	Kind    string // append, increment, swap or read
	At      int64  // ns of a monotonic clock that all processes share
	Outcome string `json:",omitempty"` // empty for an invocation
	Error   string `json:",omitempty"`
	Base    int64  `json:",omitempty"` // increment: the register it builds on
	Version int64  `json:",omitempty"` // committed or read
	Value   int64  `json:",omitempty"` // read: the register
}

// Outcomes.
const (
	committed = "committed"
	conflict  = "conflict" // a requirement failed: not in the log
	notDone   = "failed"   // not in the log
	unknown   = "unknown"  // in the log once, or not
	untyped   = "untyped"  // an error that nobody could act upon
)

func outcomeOf(err error) string {
	switch {
	case err == nil:
		return committed
	case errors.Is(err, storage.ErrUnknownOutcome):
		return unknown
	case errors.Is(err, txlog.ErrConflict), errors.Is(err, txlog.ErrFenced):
		return conflict
	case errors.Is(err, storage.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return notDone
	}
	return untyped
}

func monotonicNow() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every unix has this clock
	}
	return ts.Nano()
}

// lane is one sequence of operations; a worker runs several at once, so that
// entries hold several transactions.
type lane struct {
	name   string
	log    *txlog.Log
	rng    *rand.Rand
	record func(event)
}

func work(text string, out io.Writer) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	ctx := context.Background()
	store, err := j.store(ctx)
	if err != nil {
		return err
	}
	var log *txlog.Log
	for try := 1; ; try++ {
		log, err = txlog.Open(ctx, store, root, txlog.Options{CheckpointEvery: 16})
		if err == nil {
			break
		}
		if try == 20 || outcomeOf(err) != notDone {
			return fmt.Errorf("try %d: %w", try, err)
		}
	}
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	record := func(e event) {
		mu.Lock()
		defer mu.Unlock()
		if err := enc.Encode(e); err != nil {
			panic(err) // nobody listens any more
		}
	}
	var group sync.WaitGroup
	for n := range j.Lanes {
		group.Go(func() {
			l := &lane{
				name: fmt.Sprintf("w%02d.%d", j.Worker, n), log: log, record: record,
				rng: rand.New(rand.NewPCG(j.Seed, uint64(j.Worker*j.Lanes+n))),
			}
			for i := range j.Operations {
				l.operate(ctx, fmt.Sprintf("%s.%02d", l.name, i))
			}
		})
	}
	group.Wait()
	return nil
}

// operate does one operation, and now and then the log's upkeep.
func (l *lane) operate(ctx context.Context, id string) {
	// Some callers have little patience: their context ends within a commit.
	patience := 30 * time.Second
	if l.rng.IntN(6) == 0 {
		patience = time.Duration(1+l.rng.IntN(40)) * time.Millisecond
	}
	base, err := l.read(ctx, id+".read")
	if err != nil {
		return // as recorded
	}
	tx := l.log.Begin(base, txlog.Operation{Name: "TEST"})
	kind, from := "append", int64(0)
	switch l.rng.IntN(5) {
	case 0, 1:
		t, _ := base.Transaction(l.name)
		tx.Require(txlog.TransactionAt(l.name, t.Version))
		tx.SetTransaction(l.name, t.Version+1)
		tx.Add(add("append/" + id))
	case 2, 3:
		was, err := registerOf(base)
		if err != nil {
			panic(err) // set up before any worker began
		}
		kind, from = "increment", was.Value
		tx.Require(txlog.DomainUnchanged(registerDomain))
		tx.SetDomain(registerDomain, register{was.Value + 1, id}.String())
	default:
		kind = "swap"
		old := l.anyShared(base)
		tx.Require(txlog.FilesLive(old.Key()))
		tx.Remove(old.Tombstone(false))
		tx.Add(add(sharedName(old.Path) + "/" + id))
	}
	l.record(event{ID: id, Kind: kind, Base: from, At: monotonicNow()})
	commitCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s, err := tx.Commit(commitCtx)
	e := event{ID: id, Kind: kind, Base: from, Outcome: outcomeOf(err), Error: textOf(err)}
	if err == nil {
		e.Version = int64(s.Version())
	}
	e.At = monotonicNow()
	l.record(e)
	if l.rng.IntN(4) == 0 {
		if err := l.log.Upkeep(ctx); err != nil && outcomeOf(err) == untyped {
			l.record(event{ID: id + ".upkeep", Kind: "upkeep", Outcome: untyped, Error: textOf(err), At: monotonicNow()})
		}
	}
}

// read takes the latest snapshot.
func (l *lane) read(ctx context.Context, id string) (*txlog.Snapshot, error) {
	l.record(event{ID: id, Kind: "read", At: monotonicNow()})
	s, err := l.log.Snapshot(ctx, txlog.Latest())
	at := monotonicNow()
	if err != nil {
		l.record(event{ID: id, Kind: "read", At: at, Outcome: outcomeOf(err), Error: textOf(err)})
		return nil, err
	}
	r, err := registerOf(s)
	if err != nil {
		return nil, err
	}
	l.record(event{ID: id, Kind: "read", At: at, Outcome: committed, Version: int64(s.Version()), Value: r.Value})
	return s, nil
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// sharedName is what stays of a shared file's path as it is swapped.
func sharedName(path string) string {
	parts := strings.SplitN(path, "/", 3)
	return parts[0] + "/" + parts[1]
}

func (l *lane) anyShared(s *txlog.Snapshot) *action.Add {
	name := "shared/" + strconv.Itoa(l.rng.IntN(sharedFiles)) + "/"
	for a := range s.Files() {
		if strings.HasPrefix(a.Path, name) {
			return a
		}
	}
	panic("no version lacks a shared file: " + name)
}
