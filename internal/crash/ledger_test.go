//go:build crash

package crash

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"testing"
)

// metric names of the load. Influx makes its own name from measurement and
// field, so the others follow it.
const (
	floatMetric     = "load_v"
	histogramMetric = "load_h"
)

// id names one sample of the load; no two batches share one.
type id struct {
	protocol  string
	sender    int
	series    int
	histogram bool
	nanos     int64
}

// batch is one request of the load, in no protocol's form.
type batch struct {
	tenant   string
	protocol string
	sender   int
	samples  []sample
	// exemplar belongs to the first sample.
	exemplar string // its trace id, 32 hex digits; empty for none
	help     string // metadata of floatMetric; empty for none
}

type sample struct {
	series    int
	histogram bool
	nanos     int64
	value     float64 // of a histogram, its sum
}

func (b *batch) id(s sample) id {
	return id{b.protocol, b.sender, s.series, s.histogram, s.nanos}
}

// generator makes the batches of one sender. Its state lives through the
// kills, so that it never repeats itself.
type generator struct {
	tenant    string
	ledger    *ledger
	resends   bool
	protocol  string
	sender    int
	step      int64 // ns between samples: what the protocol can carry
	exemplars bool
	metadata  bool
	histogram bool

	sent    int64
	pending *batch // what is to be sent again
}

const (
	seriesPerBatch  = 10
	samplesPerBatch = 20
	// helpEvery is how many batches share a help text: metadata changes
	// seldom.
	helpEvery = 10
	// epoch is where the load's timestamps begin.
	epoch = 1_790_000_000_000_000_000
)

func (g *generator) next() *batch {
	if g.pending != nil {
		return g.pending
	}
	b := &batch{tenant: g.tenant, protocol: g.protocol, sender: g.sender}
	n := g.sent
	g.sent++
	for i := range samplesPerBatch {
		nanos := epoch + (n*samplesPerBatch+int64(i))*g.step
		s := sample{series: i % seriesPerBatch, nanos: nanos, value: value(nanos, g.sender)}
		s.histogram = g.histogram && s.series == seriesPerBatch-1
		b.samples = append(b.samples, s)
	}
	if g.exemplars {
		b.exemplar = fmt.Sprintf("%08x%08x%016x", hash(g.protocol), g.sender, n+1)
	}
	if g.metadata {
		b.help = fmt.Sprintf("%s %d %d", g.protocol, g.sender, n/helpEvery)
	}
	return b
}

// settle notes how it went with a batch.
func (g *generator) settle(b *batch, err error) {
	g.pending = nil
	if errors.Is(err, errRefused) {
		g.ledger.refuse(b, err)
		return
	}
	g.ledger.record(b, err == nil)
	if err != nil && g.resends {
		g.pending = b
	}
}

// value looks random, so that a value at a wrong place is seen.
func value(nanos int64, sender int) float64 {
	x := uint64(nanos)*0x9e3779b97f4a7c15 + uint64(sender)
	x ^= x >> 29
	return math.Float64frombits(x>>12|0x3ff0000000000000) - 1
}

func hash(s string) (h uint32) {
	for _, c := range []byte(s) {
		h = h*31 + uint32(c)
	}
	return h
}

// ledger is what the servers have promised.
type ledger struct {
	mu sync.Mutex // guards all below
	// acked must be there, unsure may: it was sent, and the answer was none or
	// not final.
	acked, unsure         map[id]float64
	exemplars, exemplarsU map[string]bool
	help, helpU           map[string]bool
	byProtocol            map[string]int // batches acknowledged
	refused               []string       // final refusals; the load deserves none
}

func newLedger() *ledger {
	return &ledger{
		acked: map[id]float64{}, unsure: map[id]float64{},
		exemplars: map[string]bool{}, exemplarsU: map[string]bool{},
		help: map[string]bool{}, helpU: map[string]bool{},
		byProtocol: map[string]int{},
	}
}

func (l *ledger) record(b *batch, acknowledged bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	samples, exemplars, help := l.unsure, l.exemplarsU, l.helpU
	if acknowledged {
		samples, exemplars, help = l.acked, l.exemplars, l.help
		l.byProtocol[b.protocol]++
	}
	for _, s := range b.samples {
		samples[b.id(s)] = s.value
	}
	if b.exemplar != "" {
		exemplars[b.exemplar] = true
	}
	if b.help != "" {
		help[b.help] = true
	}
}

func (l *ledger) refuse(b *batch, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.refused) == 10 {
		return // one tells as much
	}
	l.refused = append(l.refused, fmt.Sprintf("%s: %v", b.protocol, err))
}

func (l *ledger) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d samples, %d exemplars, %d metadata acknowledged, %d samples unanswered, batches %v", len(l.acked), len(l.exemplars), len(l.help), len(l.unsure), l.byProtocol)
}

// compareSamples holds what is stored against what was promised.
func (l *ledger) compareSamples(t *testing.T, when string, stored map[id][]float64) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	lost, wrong, doubled, unknown := map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	for k, v := range l.acked {
		if len(stored[k]) == 0 {
			lost[k.protocol]++
		}
		for _, got := range stored[k] {
			if got != v && !k.histogram {
				wrong[k.protocol]++
			}
		}
	}
	for k, got := range stored {
		if len(got) > 1 {
			doubled[k.protocol]++
		}
		if _, acked := l.acked[k]; acked {
			continue
		}
		v, sent := l.unsure[k]
		switch {
		case !sent:
			unknown[k.protocol]++
		case got[0] != v && !k.histogram:
			wrong[k.protocol]++
		}
	}
	if len(lost)+len(wrong)+len(doubled)+len(unknown) > 0 {
		t.Errorf("%s, of %d acknowledged and %d stored: lost %v, wrong %v, doubled %v, never sent %v", when, len(l.acked), len(stored), lost, wrong, doubled, unknown)
	}
}

// compareSet does the same for exemplars and metadata.
func compareSet(t *testing.T, what string, acked, unsure map[string]bool, stored map[string]int) {
	t.Helper()
	lost, doubled, unknown := 0, 0, 0
	for k := range acked {
		if stored[k] == 0 {
			lost++
		}
	}
	for k, n := range stored {
		if n > 1 {
			doubled++
		}
		if !acked[k] && !unsure[k] {
			unknown++
		}
	}
	if lost+doubled+unknown > 0 {
		t.Errorf("%s, of %d acknowledged and %d stored: %d lost, %d doubled, %d never sent", what, len(acked), len(stored), lost, doubled, unknown)
	}
}

// parseID reads a row of sampleColumns.
func parseID(rec []string) (k id, v float64, err error) {
	k.protocol, k.histogram = rec[1], rec[0] == histogramMetric
	if k.sender, err = strconv.Atoi(rec[2]); err != nil {
		return k, 0, err
	}
	if k.series, err = strconv.Atoi(rec[3]); err != nil {
		return k, 0, err
	}
	if k.nanos, err = strconv.ParseInt(rec[4], 10, 64); err != nil || k.histogram {
		return k, 0, err
	}
	v, err = strconv.ParseFloat(rec[5], 64)
	return k, v, err
}
