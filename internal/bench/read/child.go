package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"syscall"
	"time"

	"cardinalsin/internal/bench/harness"
)

// The sides that a child can play.
const (
	ours       = "ours"
	oursHTTP   = "ours-http"
	oursCold   = "ours-cold"
	coldSQL    = "ours-cold-sql"
	oursHead   = "ours-head"
	oursSQL    = "ours-sql"
	prometheus = "prometheus"
	promHead   = "prometheus-head"
	plainSQL   = "duckdb"
)

// request asks a child to load a dataset or to answer questions of it.
type request struct {
	Side    string  `json:"side"`
	Load    bool    `json:"load"`
	Dataset string  `json:"dataset"`
	Scale   int     `json:"scale"`
	Dir     string  `json:"dir"` // of this side's data
	Queries []query `json:"queries"`
	Budget  float64 `json:"budget"`  // seconds that a query is repeated for
	Profile string  `json:"profile"` // file of a processor profile of the questions; empty: none
	// Turns is a file that two children hold in turns while they work, so that
	// what else the machine does comes to both. Empty: one child, alone.
	Turns string `json:"turns"`
}

// query is one question, of which only some fields are set.
type query struct {
	Name  string        `json:"name"`
	Exprs []string      `json:"exprs"` // PromQL, asked in turn
	SQL   string        `json:"sql"`
	Label string        `json:"label"` // label values
	Start time.Time     `json:"start"`
	End   time.Time     `json:"end"`
	Step  time.Duration `json:"step"`  // 0: an instant query at End
	Limit int           `json:"limit"` // of label values
}

// result is what a question has found, to see that sides agree.
type result struct {
	Series int     `json:"series"` // or rows, or values
	Points int     `json:"points"`
	Sum    float64 `json:"sum"` // of all values
}

// measured is how a question went.
type measured struct {
	result
	First  float64 `json:"first"`  // seconds of the first time
	Median float64 `json:"median"` // of the times after the first
	Runs   int     `json:"runs"`
	// Turns are the medians of each turn after the first, to be compared with
	// those of a peer that had the turns between.
	Turns    []float64 `json:"turns"`
	Error    string    `json:"error"`
	Requests int64     `json:"requests"` // to the store, of the first time
	Bytes    int64     `json:"bytes"`
	Calls    string    `json:"calls"` // what the requests of the first time were, where they are noted
}

func (m measured) time() time.Duration { return time.Duration(m.Median * float64(time.Second)) }
func (m measured) first() time.Duration {
	return time.Duration(m.First * float64(time.Second))
}

// and is how a question went in two processes, this one first.
func (m measured) and(next measured) measured {
	if m.Runs == 0 && m.Error == "" {
		return next
	}
	if m.Error == "" {
		m.Error = next.Error
	}
	if m.Runs += next.Runs; m.Error == "" {
		m.Turns = slices.Concat(m.Turns, next.Turns)
		m.Median = median(m.Turns)
	}
	return m
}

// answer is a child's.
type answer struct {
	Queries []measured `json:"queries"`
	Open    measured   `json:"open"` // Bytes: of a load, the size of the data
	Base    int64      `json:"base"` // resident set when open
	Peak    int64      `json:"peak"` // highest resident set
}

// opened is an open side.
type opened struct {
	ask   func(context.Context, query) (result, error)
	count func() (requests, bytes int64) // nil: nothing is counted
	calls func() []call                  // since it was last asked; nil: they are not noted
	turns *turns
	close func() error
}

// serve is the child: one request, one answer.
func serve(ctx context.Context, in io.Reader, out io.Writer) error {
	var r request
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return err
	}
	a, err := r.run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(a)
}

var errSide = errors.New("unknown side")

func (r *request) dataset() dataset {
	for _, d := range []dataset{live(r.Scale), headData(r.Scale), long(r.Scale), cpu(r.Scale)} {
		if d.name == r.Dataset {
			return d
		}
	}
	return dataset{}
}

// load tells how large the data are, 0 where all that is in the folder counts.
func (r *request) load(ctx context.Context) (int64, error) {
	switch r.Side {
	case ours:
		return loadOurs(ctx, r.dataset(), r.Dir)
	case prometheus:
		return 0, loadPrometheus(ctx, r.dataset(), r.Dir)
	}
	return 0, fmt.Errorf("%w: %q", errSide, r.Side)
}

func (r *request) open(ctx context.Context) (*opened, error) {
	switch r.Side {
	case ours:
		return openEngine(ctx, r.Dir)
	case oursHTTP:
		return openHTTP(ctx, r.Dir)
	case oursCold:
		return openCold(ctx, r.Dir, false)
	case coldSQL:
		return openCold(ctx, r.Dir, true)
	case oursHead:
		return openOursHead(ctx, r.dataset(), r.Dir)
	case oursSQL:
		return openSQL(ctx, r.Dir)
	case prometheus:
		return openTSDB(r.Dir)
	case promHead:
		return openTSDBHead(ctx, r.dataset(), r.Dir)
	case plainSQL:
		return openDuckDB(ctx, r.Dir)
	}
	return nil, fmt.Errorf("%w: %q", errSide, r.Side)
}

func (r *request) run(ctx context.Context) (a answer, err error) {
	if r.Load {
		if a.Open.Bytes, err = r.load(ctx); err != nil {
			return a, err
		}
		u, err := harness.UsageOf(os.Getpid())
		a.Peak = u.Peak
		return a, err
	}
	debug.SetGCPercent(gcPercent)
	turns, err := openTurns(r.Turns)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, turns.close()) }()
	var o *opened
	var begin time.Time
	err = turns.take(func() (err error) {
		begin = time.Now()
		o, err = r.open(ctx)
		return err
	})
	if err != nil {
		return a, err
	}
	o.turns = turns
	defer func() { err = errors.Join(err, o.close()) }()
	a.Open.First = time.Since(begin).Seconds()
	if o.count != nil {
		a.Open.Requests, a.Open.Bytes = o.count()
	}
	if o.calls != nil {
		a.Open.Calls = describe(o.calls())
	}
	u, err := harness.UsageOf(os.Getpid())
	if err != nil {
		return a, err
	}
	a.Base = u.Resident
	if r.Profile != "" {
		stop, failed := profile(r.Profile)
		if failed != nil {
			return a, failed
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	for _, q := range r.Queries {
		a.Queries = append(a.Queries, o.measure(ctx, q, time.Duration(r.Budget*float64(time.Second))))
	}
	u, err = harness.UsageOf(os.Getpid())
	a.Peak = u.Peak
	return a, err
}

// profile starts a profile of the processor's time.
func profile(file string) (stop func() error, err error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

// gcPercent is GOGC of cardinal's server and of Prometheus'.
const gcPercent = 75

// turns is taken by one of two children at a time; nil is always free.
type turns struct{ file *os.File }

func openTurns(path string) (*turns, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	return &turns{f}, err
}

// take does work in the child's turn. Whoever has had one waits a moment for
// the other to begin.
func (t *turns) take(work func() error) error {
	if t == nil {
		return work()
	}
	if err := syscall.Flock(int(t.file.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("take a turn: %w", err)
	}
	err := work()
	if e := syscall.Flock(int(t.file.Fd()), syscall.LOCK_UN); e != nil {
		err = errors.Join(err, fmt.Errorf("give the turn: %w", e))
	}
	time.Sleep(time.Millisecond)
	return err
}

func (t *turns) close() error {
	if t == nil {
		return nil
	}
	return t.file.Close()
}

// leastRuns and maxRuns bound how often a question is asked, patience how long
// it may take, and turn how long it is asked over and over.
const (
	leastRuns = 4 // with the first, so that the median is of three
	maxRuns   = 10_000
	patience  = time.Minute
	turn      = 20 * time.Millisecond // or one question
)

// measure asks a question once, and then again until the budget is used up. A question that fails says so in what it returns: the
// others can still be measured.
func (o *opened) measure(ctx context.Context, q query, budget time.Duration) (m measured) {
	var requests, bytes int64
	if o.count != nil {
		requests, bytes = o.count()
	}
	var times []float64
	once := func() error {
		start := time.Now()
		patient, done := context.WithTimeout(ctx, patience)
		defer done()
		found, err := o.ask(patient, q)
		if err != nil {
			return err
		}
		times = append(times, time.Since(start).Seconds())
		if len(times) > 1 {
			return nil
		}
		m.result, m.First = found, times[0]
		if o.count != nil {
			m.Requests, m.Bytes = o.count()
			m.Requests, m.Bytes = m.Requests-requests, m.Bytes-bytes
		}
		if o.calls != nil {
			m.Calls = describe(o.calls())
		}
		return nil
	}
	for spent := time.Duration(0); len(times) < leastRuns || len(m.Turns) == 0 || len(times) <= maxRuns && spent < budget; {
		before := len(times)
		err := o.turns.take(func() error {
			start := time.Now()
			defer func() { spent += time.Since(start) }()
			for {
				if err := once(); err != nil || time.Since(start) > turn {
					return err
				}
			}
		})
		if err != nil {
			m.Error = err.Error()
			return m
		}
		if before > 0 {
			m.Turns = append(m.Turns, median(times[before:]))
		}
	}
	m.Runs, m.Median = len(times)-1, median(times[1:])
	return m
}

// median is the upper one of an even number.
func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}
