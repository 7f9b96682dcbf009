package ingest

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"golang.org/x/time/rate"

	"cardinalsin/series"
)

// Limits bound what a tenant may send. 0 is no limit; the bounds of the
// formats hold anyway.
type Limits struct {
	// MaxSeries bounds the series that got samples lately: within the last 10
	// to 20 minutes. More are told to wait. It costs some 40 bytes for each.
	MaxSeries int `yaml:"max_series"`
	// MaxLabelNames bounds the labels of a series.
	MaxLabelNames int `yaml:"max_label_names_per_series"`
	// MaxLabelNameLength and MaxLabelValueLength are in bytes.
	MaxLabelNameLength  int `yaml:"max_label_name_length"`
	MaxLabelValueLength int `yaml:"max_label_value_length"`
	// MaxSamplesPerRequest bounds the samples of a request, and its exemplars.
	MaxSamplesPerRequest int `yaml:"max_samples_per_request"`
	// SamplesPerSecond is the mean rate of samples and exemplars, and Burst
	// what may come at once; default ten seconds' worth.
	SamplesPerSecond float64 `yaml:"samples_per_second"`
	Burst            int     `yaml:"burst"`
}

// activeWindow is how long a series counts at least after its last sample.
const activeWindow = 10 * time.Minute

// tenant is what an Ingester knows of a tenant. Losing it costs nothing but
// metadata written again, and a limit that starts anew.
type tenant struct {
	used atomic.Int64 // UnixNano of the last request

	mu            sync.Mutex // guards the rest
	limiter       *rate.Limiter
	active, older map[series.ID]struct{} // series of this window and the last
	rotated       time.Time
	day           series.Date
	seen          map[series.Metadata]struct{} // kept for this day
	seenBytes     int
}

// maxTenants bounds the tenants whose state is kept.
const maxTenants = 10_000

// tenant returns a tenant's state; known means that an earlier request of it
// was accepted. The state of another is only kept once one is.
func (in *Ingester) tenant(name string) (t *tenant, known bool) {
	in.mu.Lock()
	t, known = in.tenants[name]
	in.mu.Unlock()
	if !known {
		t = &tenant{}
	}
	t.used.Store(in.opts.Now().UnixNano())
	return t, known
}

// keep remembers a tenant, in place of the one that was silent for longest if
// there are too many.
func (in *Ingester) keep(name string, t *tenant) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, ok := in.tenants[name]; ok {
		return // a request at the same time was quicker
	}
	if len(in.tenants) >= maxTenants {
		oldest := ""
		for name, t := range in.tenants {
			if oldest == "" || t.used.Load() < in.tenants[oldest].used.Load() {
				oldest = name
			}
		}
		delete(in.tenants, oldest)
	}
	in.tenants[name] = t
}

// admit holds a request against the limits. Errors: ErrLimit, ErrRate,
// ErrSeriesLimit.
func (t *tenant) admit(r *Request, samples int, l Limits, now time.Time) error {
	if l == (Limits{}) {
		return nil
	}
	for _, n := range []int{samples, len(r.Exemplars)} {
		if l.MaxSamplesPerRequest > 0 && n > l.MaxSamplesPerRequest {
			return fmt.Errorf("%w: %d samples in one request, at most %d", ErrLimit, n, l.MaxSamplesPerRequest)
		}
	}
	if l.MaxLabelNames+l.MaxLabelNameLength+l.MaxLabelValueLength > 0 {
		for i := range r.Samples {
			if err := l.checkLabels(r.Samples[i].Labels); err != nil {
				return fmt.Errorf("series %d: %.300s: %w", i, r.Samples[i].Labels, err)
			}
		}
		for i := range r.Exemplars {
			for _, ls := range []series.Labels{r.Exemplars[i].Series, r.Exemplars[i].Labels} {
				if err := l.checkLabels(ls); err != nil {
					return fmt.Errorf("exemplar %d of %.300s: %w", i, r.Exemplars[i].Series, err)
				}
			}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.admitSeries(r.Samples, l.MaxSeries, now); err != nil {
		return err
	}
	return t.admitRate(samples+len(r.Exemplars), l, now)
}

// checkLabels holds a label set against the limits.
func (l *Limits) checkLabels(ls series.Labels) error {
	n := 0
	return ls.Validate(func(label labels.Label) error {
		if label.Value == "" {
			return nil // it counts as absent
		}
		n++
		switch {
		case l.MaxLabelNames > 0 && n > l.MaxLabelNames:
			return fmt.Errorf("%w: more than %d labels", ErrLimit, l.MaxLabelNames)
		case l.MaxLabelNameLength > 0 && len(label.Name) > l.MaxLabelNameLength:
			return fmt.Errorf("%w: label name %.200q of %d bytes, at most %d", ErrLimit, label.Name, len(label.Name), l.MaxLabelNameLength)
		case l.MaxLabelValueLength > 0 && len(label.Value) > l.MaxLabelValueLength:
			return fmt.Errorf("%w: value of label %.200q of %d bytes, at most %d", ErrLimit, label.Name, len(label.Value), l.MaxLabelValueLength)
		}
		return nil
	})
}

// admitSeries counts the series that a batch adds to those active, and adds
// them if there is room for all. mu is held.
func (t *tenant) admitSeries(b series.Batch, limit int, now time.Time) error {
	if limit <= 0 {
		t.active, t.older = nil, nil
		return nil
	}
	if age := now.Sub(t.rotated); t.active == nil || age >= activeWindow {
		t.older = t.active
		if age >= 2*activeWindow {
			t.older = nil
		}
		t.active, t.rotated = map[series.ID]struct{}{}, now
	}
	total := len(t.active) + len(t.older) // disjoint
	ids := make([]series.ID, len(b))
	added := map[series.ID]struct{}{}
	for i := range b {
		id := series.IDOf(b[i].Labels.WithoutEmpty())
		ids[i] = id
		_, active := t.active[id]
		_, older := t.older[id]
		if !active && !older {
			added[id] = struct{}{}
		}
	}
	if len(added) > 0 && total+len(added) > limit {
		return fmt.Errorf("%w: %d are active, the request has %d new ones, at most %d", ErrSeriesLimit, total, len(added), limit)
	}
	for _, id := range ids {
		t.active[id] = struct{}{}
		delete(t.older, id) // so that the two sets are disjoint
	}
	return nil
}

// admitRate takes n tokens. mu is held.
func (t *tenant) admitRate(n int, l Limits, now time.Time) error {
	if l.SamplesPerSecond <= 0 {
		t.limiter = nil
		return nil
	}
	burst := l.Burst
	if burst <= 0 {
		burst = max(1, int(10*l.SamplesPerSecond))
	}
	if t.limiter == nil {
		t.limiter = rate.NewLimiter(rate.Limit(l.SamplesPerSecond), burst)
	}
	if t.limiter.Limit() != rate.Limit(l.SamplesPerSecond) || t.limiter.Burst() != burst {
		t.limiter.SetLimitAt(now, rate.Limit(l.SamplesPerSecond))
		t.limiter.SetBurstAt(now, burst)
	}
	if n > burst {
		return fmt.Errorf("%w: %d samples in one request, at most %d come at once", ErrLimit, n, burst)
	}
	if !t.limiter.AllowN(now, n) {
		return fmt.Errorf("%w: %v samples a second", ErrRate, l.SamplesPerSecond)
	}
	return nil
}

// Bounds of the metadata that is known to be kept already; what does not fit
// is written again each time.
const (
	maxSeen      = 1 << 16
	maxSeenBytes = 16 << 20
)

// unseen makes the rows of the metadata that this day's does not have yet. All
// of it is checked.
func (t *tenant) unseen(metadata []series.Metadata, now time.Time) (series.Batch, error) {
	if len(metadata) == 0 {
		return nil, nil
	}
	day := series.FromTime(now).Date()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.day != day || t.seen == nil {
		t.day, t.seen, t.seenBytes = day, map[series.Metadata]struct{}{}, 0
	}
	var rows series.Batch
	fresh := map[series.Metadata]struct{}{}
	for _, m := range metadata {
		if _, ok := t.seen[m]; ok {
			continue
		}
		if _, ok := fresh[m]; ok {
			continue
		}
		fresh[m] = struct{}{}
		row, err := MetadataRow(m, day)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// remember notes what is durable under the day of now.
func (t *tenant) remember(metadata []series.Metadata, now time.Time) {
	day := series.FromTime(now).Date()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.day != day || t.seen == nil {
		return // another request has begun the next day
	}
	for _, m := range metadata {
		size := len(m.Metric) + len(m.Type) + len(m.Unit) + len(m.Help)
		if _, ok := t.seen[m]; ok || len(t.seen) >= maxSeen || t.seenBytes+size > maxSeenBytes {
			continue
		}
		t.seenBytes += size
		// Its memory may be that of a whole request.
		t.seen[series.Metadata{
			Metric: strings.Clone(m.Metric), Type: strings.Clone(m.Type),
			Unit: strings.Clone(m.Unit), Help: strings.Clone(m.Help),
		}] = struct{}{}
	}
}
