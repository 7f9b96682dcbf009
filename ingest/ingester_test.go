package ingest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/txlog"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

func lbl(pairs ...string) series.Labels { return labels.FromStrings(pairs...) }

// raw builds a label set as it is given, as decoders do.
func raw(pairs ...string) series.Labels {
	b := labels.NewScratchBuilder(4)
	for i := 0; i < len(pairs); i += 2 {
		b.Add(pairs[i], pairs[i+1])
	}
	return b.Labels()
}

// one is a series with n samples.
func one(n int, ls series.Labels) series.Series {
	s := series.Series{Labels: ls}
	for i := range n {
		s.Samples = append(s.Samples, series.Sample{Time: series.Timestamp(i), Value: 1})
	}
	return s
}

func request(b ...series.Series) *ingest.Request { return &ingest.Request{Samples: b} }

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 23, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// TestRefused: each fault has its condition and reason, and leaves nothing,
// not even a table, whatever else the request holds.
func TestRefused(t *testing.T) {
	good := one(1, lbl("__name__", "up"))
	exemplar := func(e series.Exemplar) *ingest.Request {
		return &ingest.Request{Samples: series.Batch{good}, Exemplars: []series.Exemplar{{Series: good.Labels}, e}}
	}
	var scattered []series.Exemplar
	for d := range 65 {
		scattered = append(scattered, series.Exemplar{Series: good.Labels, Time: series.Date(d).Start()})
	}
	for name, c := range map[string]struct {
		tenant  string
		request *ingest.Request
		limits  ingest.Limits
		want    error
		reason  ingest.Reason
		status  int
	}{
		"tenant with a slash":       {"a/b", request(good), ingest.Limits{}, ingest.ErrInvalidTenant, "invalid_tenant", 400},
		"tenant that climbs":        {"..", request(good), ingest.Limits{}, ingest.ErrInvalidTenant, "invalid_tenant", 400},
		"hidden tenant":             {"_delta_log", request(good), ingest.Limits{}, ingest.ErrInvalidTenant, "invalid_tenant", 400},
		"long tenant":               {strings.Repeat("a", 129), request(good), ingest.Limits{}, ingest.ErrInvalidTenant, "invalid_tenant", 400},
		"tenant with a nul":         {"a\x00", request(good), ingest.Limits{}, ingest.ErrInvalidTenant, "invalid_tenant", 400},
		"no metric name":            {"", request(good, one(1, lbl("a", "b"))), ingest.Limits{}, series.ErrNoMetricName, "no_metric_name", 400},
		"faulty series, no samples": {"", request(one(0, lbl("a", "b"))), ingest.Limits{}, series.ErrNoMetricName, "no_metric_name", 400},
		"time":                      {"", request(series.Series{Labels: good.Labels, Samples: []series.Sample{{Time: series.MaxTimestamp + 1}}}), ingest.Limits{}, writer.ErrInvalidSample, "invalid_sample", 400},
		"exemplar without a series": {"", exemplar(series.Exemplar{}), ingest.Limits{}, series.ErrNoMetricName, "no_metric_name", 400},
		"exemplar of a series with its prefix": {"", exemplar(series.Exemplar{Series: lbl("__name__", "a", "__exemplar__b", "c")}),
			ingest.Limits{}, series.ErrInvalidLabel, "invalid_label", 400},
		"exemplar with a nameless label": {"", exemplar(series.Exemplar{Series: good.Labels, Labels: raw("", "x")}), ingest.Limits{}, series.ErrInvalidLabel, "invalid_label", 400},
		"exemplar with a label twice":    {"", exemplar(series.Exemplar{Series: good.Labels, Labels: raw("a", "x", "a", "y")}), ingest.Limits{}, series.ErrDuplicateLabel, "duplicate_label", 400},
		"exemplar of no time":            {"", exemplar(series.Exemplar{Series: good.Labels, Nanos: 1000}), ingest.Limits{}, writer.ErrInvalidSample, "invalid_sample", 400},
		"exemplars of many days":         {"", &ingest.Request{Samples: series.Batch{good}, Exemplars: scattered}, ingest.Limits{}, ingest.ErrLimit, "limit", 400},
		"metadata of nothing":            {"", &ingest.Request{Samples: series.Batch{good}, Metadata: []series.Metadata{{Help: "x"}}}, ingest.Limits{}, series.ErrNoMetricName, "no_metric_name", 400},
		"metadata that is no text":       {"", &ingest.Request{Samples: series.Batch{good}, Metadata: []series.Metadata{{Metric: "a", Help: "\xff"}}}, ingest.Limits{}, series.ErrInvalidLabel, "invalid_label", 400},
		"many samples":                   {"", request(one(2, good.Labels), one(2, good.Labels)), ingest.Limits{MaxSamplesPerRequest: 3}, ingest.ErrLimit, "limit", 400},
		"many exemplars":                 {"", exemplar(series.Exemplar{Series: good.Labels}), ingest.Limits{MaxSamplesPerRequest: 1}, ingest.ErrLimit, "limit", 400},
		"many labels":                    {"", request(good, one(1, lbl("__name__", "a", "b", "c"))), ingest.Limits{MaxLabelNames: 1}, ingest.ErrLimit, "limit", 400},
		"long label name":                {"", request(one(1, lbl("__name__", "a", "abcdefghi", "c"))), ingest.Limits{MaxLabelNameLength: 8}, ingest.ErrLimit, "limit", 400},
		"long label value":               {"", request(one(1, lbl("__name__", "abc"))), ingest.Limits{MaxLabelValueLength: 2}, ingest.ErrLimit, "limit", 400},
		"long label value of an exemplar": {"", exemplar(series.Exemplar{Series: good.Labels, Labels: lbl("a", "abc")}),
			ingest.Limits{MaxLabelValueLength: 2}, ingest.ErrLimit, "limit", 400},
		"many series":         {"", request(good, one(1, lbl("__name__", "b"))), ingest.Limits{MaxSeries: 1}, ingest.ErrSeriesLimit, "series_limit", 429},
		"more than the burst": {"", request(one(11, good.Labels)), ingest.Limits{SamplesPerSecond: 1}, ingest.ErrLimit, "limit", 400},
	} {
		t.Run(name, func(t *testing.T) {
			s := ingesttest.New(t, ingesttest.Options{Limits: c.limits})
			err := s.Append(context.Background(), c.tenant, c.request)
			if !errors.Is(err, c.want) {
				t.Errorf("err = %v, want %v", err, c.want)
			}
			if reason, status := ingest.Classify(err); reason != c.reason || status != c.status {
				t.Errorf("%v is %s, %d", err, reason, status)
			}
			if s.Refused(c.reason) != 1 || s.Tables() != 0 {
				t.Errorf("%d refused, %d tables", s.Refused(c.reason), s.Tables())
			}
		})
	}
}

// TestRefusedByTheWriter: what only the writer finds leaves no exemplars and
// no metadata either, also where the tables are there.
func TestRefusedByTheWriter(t *testing.T) {
	s := ingesttest.New(t, ingesttest.Options{})
	r := request(one(1, lbl("__name__", "up")))
	r.Exemplars = []series.Exemplar{{Series: lbl("__name__", "up"), Value: 1}}
	r.Metadata = []series.Metadata{{Metric: "up", Type: "gauge"}}
	if err := s.Append(context.Background(), "", r); err != nil {
		t.Fatal(err)
	}
	bad := request(one(1, lbl("__name__", "up", "a", "\xff")))
	bad.Exemplars = []series.Exemplar{{Series: lbl("__name__", "up"), Time: 7}}
	bad.Metadata = []series.Metadata{{Metric: "down"}}
	if err := s.Append(context.Background(), "", bad); !errors.Is(err, series.ErrInvalidLabel) {
		t.Errorf("err = %v", err)
	}
	if len(s.Samples("")) != 1 || len(s.Exemplars("")) != 1 || len(s.Metadata("")) != 1 {
		t.Errorf("%d series, %d exemplars, %d metadata", len(s.Samples("")), len(s.Exemplars("")), len(s.Metadata("")))
	}
}

// TestSeriesLimit: the series that are active go on, and others get their
// place when they have been silent for the window.
func TestSeriesLimit(t *testing.T) {
	c := newClock()
	s := ingesttest.New(t, ingesttest.Options{Now: c.Now, Limits: ingest.Limits{MaxSeries: 2}})
	a, b, d := one(1, lbl("__name__", "a")), one(1, lbl("__name__", "b")), one(1, lbl("__name__", "d"))
	send := func(want error, b ...series.Series) {
		t.Helper()
		if err := s.Append(context.Background(), "", request(b...)); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("err = %v, want %v", err, want)
		}
	}
	send(nil, a, b)
	send(ingest.ErrSeriesLimit, a, d)
	send(nil, b, a, b)
	c.advance(11 * time.Minute)
	send(nil, a)
	send(ingest.ErrSeriesLimit, d) // b was seen in the last window
	c.advance(11 * time.Minute)
	send(nil, d)
	send(nil, a)
	send(ingest.ErrSeriesLimit, b)
	c.advance(25 * time.Minute)
	send(nil, b, d)
	if got := len(s.Samples("")); got != 3 {
		t.Errorf("%d series", got)
	}
	// One that was active in both windows counts once.
	s = ingesttest.New(t, ingesttest.Options{Now: c.Now, Limits: ingest.Limits{MaxSeries: 3}})
	send(nil, a, b)
	c.advance(11 * time.Minute)
	send(nil, a)
	send(nil, d)
	if err := s.Append(context.Background(), "other", request(a, b)); err != nil {
		t.Errorf("another tenant: %v", err)
	}
}

// TestRate: a tenant may send its burst at once and its rate from then on.
func TestRate(t *testing.T) {
	c := newClock()
	s := ingesttest.New(t, ingesttest.Options{Now: c.Now, Limits: ingest.Limits{SamplesPerSecond: 2, Burst: 4}})
	send := func(want error, n int) {
		t.Helper()
		err := s.Append(context.Background(), "", request(one(n, lbl("__name__", "a"))))
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("err = %v, want %v", err, want)
		}
	}
	send(nil, 4)
	send(ingest.ErrRate, 1)
	c.advance(time.Second)
	send(ingest.ErrRate, 3)
	send(nil, 2)
	send(ingest.ErrLimit, 5)
	c.advance(time.Hour)
	send(nil, 4)
	send(ingest.ErrRate, 1)
}

// TestMetadataOnceADay: what this day has is not written again, whoever sends
// it; the next day has it anew, under its own time.
func TestMetadataOnceADay(t *testing.T) {
	c := newClock()
	s := ingesttest.New(t, ingesttest.Options{Now: c.Now})
	send := func(m ...series.Metadata) {
		t.Helper()
		if err := s.Append(context.Background(), "", &ingest.Request{Metadata: m}); err != nil {
			t.Fatal(err)
		}
	}
	version := func() int64 {
		t.Helper()
		s.Flush()
		view, err := s.Reader("", "metrics_metadata").At(context.Background(), txlog.Latest())
		if err != nil {
			t.Fatal(err)
		}
		defer view.Close()
		return int64(view.Version())
	}
	a, b := series.Metadata{Metric: "a", Type: "counter"}, series.Metadata{Metric: "a", Type: "gauge", Help: "other"}
	send(a, a, b)
	first := version()
	send(b, a)
	if version() != first {
		t.Error("metadata of the same day was written again")
	}
	c.advance(2 * time.Hour)
	send(a)
	if version() != first+1 {
		t.Error("metadata of another day was not written")
	}
	if d := cmp.Diff([]series.Metadata{a, b}, sorted(s.Metadata(""))); d != "" {
		t.Error(d)
	}
	if s.Tables() != 1 {
		t.Errorf("%d tables", s.Tables())
	}
}

func sorted(m []series.Metadata) []series.Metadata {
	if len(m) == 2 && m[0].Type > m[1].Type {
		m[0], m[1] = m[1], m[0]
	}
	return m
}

// TestMetadataOfAFailedRequest is written by the next try.
func TestMetadataOfAFailedRequest(t *testing.T) {
	s := ingesttest.New(t, ingesttest.Options{})
	r := request(one(1, lbl("__name__", "up")))
	if err := s.Append(context.Background(), "", r); err != nil {
		t.Fatal(err)
	}
	r.Metadata = []series.Metadata{{Metric: "up", Type: "gauge"}}
	s.FailWith(wal.ErrFull)
	if err := s.Append(context.Background(), "", r); !errors.Is(err, wal.ErrFull) {
		t.Fatalf("err = %v", err)
	}
	s.FailWith(nil)
	if err := s.Append(context.Background(), "", r); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r.Metadata, s.Metadata("")); d != "" {
		t.Error(d)
	}
}

// TestEmptyRequest makes no table.
func TestEmptyRequest(t *testing.T) {
	s := ingesttest.New(t, ingesttest.Options{})
	if err := s.Append(context.Background(), "", request(one(0, lbl("__name__", "a")))); err != nil || s.Tables() != 0 {
		t.Errorf("err = %v, %d tables", err, s.Tables())
	}
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err    error
		reason ingest.Reason
		status int
	}{
		{ingest.ErrMalformed, "malformed", 400},
		{ingest.ErrTooLarge, "too_large", 413},
		{ingest.ErrUnsupported, "unsupported", 400},
		{ingest.ErrInvalidHistogram, "invalid_histogram", 400},
		{ingest.ErrInvalidTenant, "invalid_tenant", 400},
		{ingest.ErrLimit, "limit", 400},
		{ingest.ErrSeriesLimit, "series_limit", 429},
		{ingest.ErrRate, "rate", 429},
		{series.ErrUnsortedLabels, "unsorted_labels", 400},
		{writer.ErrTooManyPartitions, "too_many_days", 400},
		{wal.ErrRecordTooLarge, "too_large", 413},
		{writer.ErrOverloaded, "overloaded", 429},
		{wal.ErrFull, "wal_full", 503},
		{wal.ErrFailed, "unavailable", 503},
		{writer.ErrClosed, "unavailable", 503},
		{txlog.ErrFenced, "unavailable", 503},
		{storage.ErrUnavailable, "unavailable", 503},
		{context.Canceled, "unavailable", 503},
	} {
		t.Run(c.err.Error(), func(t *testing.T) {
			if reason, status := ingest.Classify(fmt.Errorf("append: %w", c.err)); reason != c.reason || status != c.status {
				t.Errorf("%s, %d %s", reason, status, http.StatusText(status))
			}
		})
	}
}
