package scrape

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/series"
)

// target is a program to scrape, whose answer can change.
type target struct {
	*httptest.Server
	mu          sync.Mutex
	contentType string
	body        []byte
	scrapes     int
}

func newTarget(t *testing.T, contentType, body string) *target {
	tg := &target{}
	tg.say(contentType, body)
	tg.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		tg.mu.Lock()
		defer tg.mu.Unlock()
		tg.scrapes++
		w.Header().Set("Content-Type", tg.contentType)
		_, _ = w.Write(tg.body) // a scraper that is gone is no concern of the target
	}))
	t.Cleanup(tg.Close)
	return tg
}

func (tg *target) say(contentType, body string) {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	tg.contentType, tg.body = contentType, []byte(body)
}

func (tg *target) address() string { return strings.TrimPrefix(tg.URL, "http://") }

const (
	text        = "text/plain; version=0.0.4"
	openMetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8"
	protobuf    = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)

// scraping runs a configuration until the test ends, or stop is called.
func scraping(t *testing.T, sink ingest.Sink, config, dir string) (stop func()) {
	t.Helper()
	c, err := Parse([]byte(config), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c, sink, Options{ReloadEvery: 50 * time.Millisecond}) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// eventually waits until ok, and else fails with what it says.
func eventually(t *testing.T, ok func() (bool, string)) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		good, says := ok()
		if good {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(says)
		}
	}
}

// find returns the samples of the one series that has these labels.
func find(sink *ingesttest.Sink, pairs ...string) []series.Sample {
	for _, s := range sink.Samples("") {
		all := true
		for i := 0; i < len(pairs); i += 2 {
			all = all && s.Labels.Get(pairs[i]) == pairs[i+1]
		}
		if all {
			return s.Samples
		}
	}
	return nil
}

// ofTarget leaves out what upstream says of the scrape itself.
func ofTarget(list []series.Metadata) []series.Metadata {
	return slices.DeleteFunc(list, func(m series.Metadata) bool {
		return m.Metric == "up" || strings.HasPrefix(m.Metric, "scrape_")
	})
}

const fast = "global: {scrape_interval: 50ms, scrape_timeout: 50ms}\n"

// TestScrape: everything that a target says in OpenMetrics is kept, from the
// head and from chunks; what it says no more is marked stale.
func TestScrape(t *testing.T) {
	const start = 1_700_000_000
	body := fmt.Sprintf(`# TYPE requests counter
# HELP requests What came in.
requests_total{code="200"} 5 # {trace_id="abc"} 1 %d.5
requests_created{code="200"} %d
# TYPE temperature_celsius gauge
# UNIT temperature_celsius celsius
temperature_celsius{place="in \"here\""} NaN
# TYPE latency histogram
# HELP latency How long.
latency_bucket{le="1.0"} 2 # {span_id="1"} 0.5
latency_bucket{le="+Inf"} 3
latency_count 3
latency_sum 4.5
# EOF
`, start, start)
	tg := newTarget(t, openMetrics, body)
	sink := ingesttest.New(t, ingesttest.Options{})
	stop := scraping(t, sink, fast+"scrape_configs: [{job_name: a, static_configs: [{targets: ['"+tg.address()+"'], labels: {zone: z}}]}]", "")
	eventually(t, func() (bool, string) {
		got := find(sink, "__name__", "requests_total", "job", "a", "instance", tg.address(), "zone", "z", "code", "200")
		return len(got) >= 3, fmt.Sprintf("requests_total: %v", got)
	})
	tg.say(openMetrics, "# EOF\n")
	eventually(t, func() (bool, string) {
		got := find(sink, "__name__", "temperature_celsius")
		return len(got) > 0 && math.Float64bits(got[len(got)-1].Value) == value.StaleNaN, fmt.Sprintf("not marked stale: %v", got)
	})
	stop()

	for _, where := range []string{"head", "chunks"} {
		first := find(sink, "__name__", "requests_total")[0]
		if first.Value != 5 || first.Start != start*1_000_000_000 {
			t.Errorf("%s: requests_total is %+v", where, first)
		}
		if got := find(sink, "__name__", "requests_created"); got != nil {
			t.Errorf("%s: the start is there as a series, too: %v", where, got)
		}
		if got := find(sink, "__name__", "temperature_celsius"); math.Float64bits(got[0].Value) != value.NormalNaN {
			t.Errorf("%s: temperature is %x", where, math.Float64bits(got[0].Value))
		}
		if got := find(sink, "__name__", "latency_bucket", "le", "1.0"); len(got) == 0 || got[0].Value != 2 {
			t.Errorf("%s: bucket %v", where, got)
		}
		for _, name := range []string{"up", "scrape_duration_seconds", "scrape_samples_scraped", "scrape_series_added"} {
			if got := find(sink, "__name__", name, "job", "a"); len(got) == 0 {
				t.Errorf("%s: no %s", where, name)
			}
		}
		var exemplars []string
		for _, e := range sink.Exemplars("") {
			exemplars = append(exemplars, fmt.Sprintf("%s %s %v", e.Series.Get("__name__"), e.Labels, e.Value))
			if e.Series.Get("__name__") == "requests_total" && e.Time.Millis() != start*1000+500 {
				t.Errorf("%s: exemplar at %v", where, e.Time)
			}
		}
		slices.Sort(exemplars)
		// One each, though every scrape had them: that of the bucket has no
		// time of its own.
		if d := cmp.Diff([]string{`latency_bucket {span_id="1"} 0.5`, `requests_total {trace_id="abc"} 1`}, exemplars); d != "" {
			t.Errorf("%s: exemplars: %s", where, d)
		}
		want := []series.Metadata{
			{Metric: "latency", Type: "histogram", Help: "How long."},
			{Metric: "requests_total", Type: "counter", Help: "What came in."},
			{Metric: "temperature_celsius", Type: "gauge", Unit: "celsius"},
		}
		if d := cmp.Diff(want, ofTarget(sink.Metadata(""))); d != "" {
			t.Errorf("%s: metadata: %s", where, d)
		}
		sink.Flush()
	}
}

// TestScrapeNativeHistograms: they come in protobuf, with exemplars and start.
func TestScrapeNativeHistograms(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	family := &dto.MetricFamily{
		Name: proto.String("native"), Help: proto.String("h"), Type: dto.MetricType_HISTOGRAM.Enum(),
		Metric: []*dto.Metric{{Histogram: &dto.Histogram{
			SampleCount: proto.Uint64(5), SampleSum: proto.Float64(7.5), Schema: proto.Int32(2), ZeroThreshold: proto.Float64(0.001), ZeroCount: proto.Uint64(1),
			PositiveSpan: []*dto.BucketSpan{{Offset: proto.Int32(-1), Length: proto.Uint32(2)}}, PositiveDelta: []int64{1, 2},
			CreatedTimestamp: timestamppb.New(began),
			Exemplars: []*dto.Exemplar{{
				Label: []*dto.LabelPair{{Name: proto.String("trace_id"), Value: proto.String("x")}}, Value: proto.Float64(1.5), Timestamp: timestamppb.New(began.Add(time.Second)),
			}},
		}}},
	}
	message, err := proto.Marshal(family)
	if err != nil {
		t.Fatal(err)
	}
	tg := newTarget(t, protobuf, string(append(binary.AppendUvarint(nil, uint64(len(message))), message...)))
	sink := ingesttest.New(t, ingesttest.Options{})
	stop := scraping(t, sink, fast+"scrape_configs: [{job_name: a, scrape_native_histograms: true, static_configs: [{targets: ['"+tg.address()+"']}]}]", "")
	eventually(t, func() (bool, string) {
		got := find(sink, "__name__", "native")
		return len(got) > 0, fmt.Sprint(sink.Samples(""))
	})
	stop()
	got := find(sink, "__name__", "native")[0]
	var h prompb.Histogram
	if err := h.Unmarshal(got.Histogram); err != nil {
		t.Fatal(err)
	}
	want := &histogram.Histogram{
		Schema: 2, ZeroThreshold: 0.001, ZeroCount: 1, Count: 4, Sum: 7.5,
		PositiveSpans: []histogram.Span{{Offset: -1, Length: 2}}, PositiveBuckets: []int64{1, 2}, NegativeSpans: []histogram.Span{},
	}
	want.Count = 5
	if d := cmp.Diff(want, h.ToIntHistogram()); d != "" || got.Start != began.UnixNano() {
		t.Errorf("start %d, %s", got.Start, d)
	}
	if e := sink.Exemplars(""); len(e) != 1 || e[0].Labels.Get("trace_id") != "x" || e[0].Value != 1.5 {
		t.Errorf("exemplars %v", e)
	}
	if d := cmp.Diff([]series.Metadata{{Metric: "native", Type: "histogram", Help: "h"}}, ofTarget(sink.Metadata(""))); d != "" {
		t.Error(d)
	}
}

// TestScrapeFiles: targets that come and go in a file are taken up; the series
// of one that went are marked stale, those of one that is dead say so by up.
func TestScrapeFiles(t *testing.T) {
	one, two := newTarget(t, text, "m 1\n"), newTarget(t, text, "m 2\n")
	dead := httptest.NewServer(nil)
	dead.Close()
	dir := t.TempDir()
	list := func(targets ...string) {
		t.Helper()
		for i := range targets {
			targets[i] = fmt.Sprintf("%q", strings.TrimPrefix(targets[i], "http://"))
		}
		// As the documentation asks: at once, by a rename.
		temporary := filepath.Join(dir, "new")
		err := os.WriteFile(temporary, []byte(`[{"targets": [`+strings.Join(targets, ",")+`]}]`), 0o600)
		if err = errors.Join(err, os.Rename(temporary, filepath.Join(dir, "targets.json"))); err != nil {
			t.Fatal(err)
		}
	}
	list(one.URL, dead.URL)
	sink := ingesttest.New(t, ingesttest.Options{})
	scraping(t, sink, fast+"scrape_configs: [{job_name: f, file_sd_configs: [{files: [targets.json]}]}]", dir)
	eventually(t, func() (bool, string) {
		up, down := find(sink, "__name__", "up", "instance", one.address()), find(sink, "__name__", "up", "instance", strings.TrimPrefix(dead.URL, "http://"))
		return len(up) > 0 && up[len(up)-1].Value == 1 && len(down) > 0 && down[0].Value == 0, fmt.Sprintf("up: %v, down: %v", up, down)
	})
	list(two.URL)
	eventually(t, func() (bool, string) {
		old, fresh := find(sink, "__name__", "m", "instance", one.address()), find(sink, "__name__", "m", "instance", two.address())
		return len(fresh) > 0 && math.Float64bits(old[len(old)-1].Value) == value.StaleNaN, fmt.Sprintf("old: %v, new: %v", old, fresh)
	})
}

// TestScrapeRefused: a scrape that the sink refuses is kept whole or not at
// all, is logged, and the next one goes on.
func TestScrapeRefused(t *testing.T) {
	tg := newTarget(t, text, "m 1\n")
	sink := ingesttest.New(t, ingesttest.Options{})
	failure := errors.New("no")
	sink.FailWith(failure)
	c, err := Parse([]byte(fast+"scrape_configs: [{job_name: a, static_configs: [{targets: ['"+tg.address()+"']}]}]"), "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var said lockedBuffer
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, c, sink, Options{ReloadEvery: 50 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	}()
	eventually(t, func() (bool, string) { return sink.Refused("unavailable") >= 2, "no scrape was refused" })
	if sink.Tables() != 0 {
		t.Error("something was stored")
	}
	sink.FailWith(nil)
	eventually(t, func() (bool, string) { return len(find(sink, "__name__", "m")) > 0, "nothing came after" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(said.String(), "Scrape commit failed") {
		t.Errorf("the log says %s", said.String())
	}
}

// lockedBuffer is a buffer that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestParse(t *testing.T) {
	dir := t.TempDir()
	more := filepath.Join(dir, "more.yml")
	if err := os.WriteFile(more, []byte("scrape_configs: [{job_name: b}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		yaml string
		jobs int
		says string // "" for no error
	}{
		"empty":            {"", 0, ""},
		"one":              {"scrape_configs: [{job_name: a, static_configs: [{targets: ['x:1']}]}]", 1, ""},
		"file":             {"scrape_configs: [{job_name: a, file_sd_configs: [{files: ['x.json']}]}]", 1, ""},
		"more files":       {"scrape_config_files: [more.yml]\nscrape_configs: [{job_name: a}]", 2, ""},
		"same job twice":   {"scrape_configs: [{job_name: a}, {job_name: a}]", 0, "multiple scrape configs with job name"},
		"no YAML":          {"scrape_configs: [", 0, "yaml"},
		"unknown field":    {"scrape_configs: [{job_nam: a}]", 0, "job_nam"},
		"bad interval":     {"global: {scrape_interval: x}", 0, "not a valid duration"},
		"section":          {"remote_write: [{url: http://x}]", 0, "remote_write"},
		"rules":            {"rule_files: [x]", 0, "rule_files"},
		"other discovery":  {"scrape_configs: [{job_name: a, kubernetes_sd_configs: [{role: pod}]}]", 0, "kubernetes_sd_configs"},
		"missing job name": {"scrape_configs: [{}]", 0, "job_name is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(c.yaml), dir)
			if c.says != "" {
				if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("err = %v, want %q", err, c.says)
				}
				return
			}
			if err != nil || got.Jobs() != c.jobs {
				t.Errorf("%v, %v; want %d jobs", got, err, c.jobs)
			}
		})
	}
}

// TestAppender: what scrape loops may hand over and a table cannot take.
func TestAppender(t *testing.T) {
	name := labels.FromStrings("__name__", "m")
	bad := tsdbutil.GenerateTestHistogram(1)
	bad.PositiveBuckets = bad.PositiveBuckets[1:]
	for what, c := range map[string]struct {
		labels labels.Labels
		st, t  int64
		h      *histogram.Histogram
		err    error
		reason ingest.Reason
	}{
		"after the year 9999": {labels: name, t: math.MaxInt64, err: storage.ErrOutOfBounds, reason: "invalid_sample"},
		"start beyond range":  {labels: name, st: math.MaxInt64, err: storage.ErrOutOfBounds, reason: "invalid_sample"},
		"no metric name":      {labels: labels.FromStrings("a", "b"), err: series.ErrNoMetricName, reason: "no_metric_name"},
		"no UTF-8":            {labels: labels.FromStrings("__name__", "m", "a", "\xff"), err: series.ErrInvalidLabel, reason: "invalid_label"},
		"broken histogram":    {labels: name, h: bad, err: ingest.ErrInvalidHistogram, reason: "invalid_histogram"},
	} {
		t.Run(what, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			a := newAppendable(sink, "").AppenderV2(context.Background())
			if _, err := a.Append(0, c.labels, c.st, c.t, 1, c.h, nil, storage.AOptions{}); !errors.Is(err, c.err) {
				t.Errorf("err = %v", err)
			}
			if err := a.Commit(); err != nil || sink.Refused(c.reason) != 1 || sink.Tables() != 0 {
				t.Errorf("%v; %d refused, %d tables", err, sink.Refused(c.reason), sink.Tables())
			}
		})
	}
}

// TestAppenderRemembers: a late marker of staleness is refused where newer
// samples are, but only those of scrapes that were accepted count; exemplars
// without a time are kept once; a scrape that is rolled back leaves nothing.
func TestAppenderRemembers(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	to := newAppendable(sink, "tenant")
	name := labels.FromStrings("__name__", "m")
	late := storage.AOptions{RejectOutOfOrder: true}
	scrape := func(at int64, o storage.AOptions) error {
		a := to.AppenderV2(context.Background())
		if _, err := a.Append(0, name, 0, at, 1, nil, nil, o); err != nil {
			return errors.Join(err, a.Rollback())
		}
		return a.Commit()
	}
	sink.FailWith(errors.New("no"))
	if err := scrape(9000, storage.AOptions{}); err == nil {
		t.Fatal("no error")
	}
	sink.FailWith(nil)
	rolled := to.AppenderV2(context.Background())
	if _, err := rolled.Append(0, name, 0, 8000, 1, nil, nil, storage.AOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(rolled.Rollback(), rolled.Commit()); err != nil {
		t.Fatal(err)
	}
	bare := storage.AOptions{Exemplars: []exemplar.Exemplar{{Labels: labels.FromStrings("id", "1"), Value: 2, Ts: 1000}}}
	changed := storage.AOptions{Exemplars: []exemplar.Exemplar{{Labels: labels.FromStrings("id", "1"), Value: 3, Ts: 3000}}}
	for i, c := range []struct {
		at   int64
		o    storage.AOptions
		want error
	}{
		{-5000, late, nil},
		{1000, bare, nil},
		{2000, bare, nil},
		{3000, changed, nil},
		{2500, late, storage.ErrOutOfOrderSample},
		{3000, late, storage.ErrDuplicateSampleForTimestamp},
		{2600, storage.AOptions{}, nil}, // a target's own time may be old
		{4000, late, nil},
	} {
		if err := scrape(c.at, c.o); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%d: at %d: %v, want %v", i, c.at, err, c.want)
		}
	}
	var times []int64
	for _, s := range sink.Samples("tenant")[0].Samples {
		times = append(times, s.Time.Millis())
	}
	if d := cmp.Diff([]int64{-5000, 1000, 2000, 2600, 3000, 4000}, times); d != "" {
		t.Error(d)
	}
	var values []float64
	for _, e := range sink.Exemplars("tenant") {
		values = append(values, e.Value)
	}
	if d := cmp.Diff([]float64{2, 3}, values); d != "" {
		t.Errorf("exemplars: %s", d)
	}
	for ref, l := range to.last {
		l.seen = l.seen.Add(-2 * pruneAfter)
		to.last[ref] = l
	}
	to.pruned = to.pruned.Add(-2 * pruneAfter)
	if to.keep(nil); len(to.last) != 0 {
		t.Errorf("%d series are remembered", len(to.last))
	}
}
