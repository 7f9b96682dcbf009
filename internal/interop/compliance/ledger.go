package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/internal/interop/process"
)

// ledger is what a server acknowledged. Keys are what identifies an entry in a
// table, so that what was sent twice is there once and the later wins.
type ledger struct {
	mu         sync.Mutex
	accepted   [2]int // requests by version
	refused    int
	floats     map[string]string // "labels ms" → bits
	histograms map[string]string // "labels ms" → message without time and hint
	starts     map[string]string // "labels ms" → ns
	exemplars  map[string]string // "series exemplar ms" → bits
	metadata   map[string]map[string]bool
	failed     error
}

func newLedger() *ledger {
	return &ledger{
		floats: map[string]string{}, histograms: map[string]string{}, starts: map[string]string{},
		exemplars: map[string]string{}, metadata: map[string]map[string]bool{},
	}
}

func (l *ledger) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// note adds a request that was answered with that code.
func (l *ledger) note(code int, contentType string, body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if code/100 != 2 {
		l.refused++
		return
	}
	plain, err := snappy.Decode(nil, body)
	if err == nil {
		if strings.Contains(contentType, "write.v2") {
			l.accepted[1]++
			err = l.noteV2(plain)
		} else {
			l.accepted[0]++
			err = l.noteV1(plain)
		}
	}
	l.failed = errors.Join(l.failed, err)
}

func (l *ledger) noteV1(body []byte) error {
	var req prompb.WriteRequest
	if err := req.Unmarshal(body); err != nil {
		return err
	}
	b := labels.NewScratchBuilder(0)
	for _, ts := range req.Timeseries {
		ls := ts.ToLabels(&b, nil)
		for _, s := range ts.Samples {
			l.float(ls, s.Timestamp, s.Value, 0)
		}
		for _, h := range ts.Histograms {
			if err := l.histogram(ls, h, 0); err != nil {
				return err
			}
		}
		for _, e := range ts.Exemplars {
			l.exemplar(ls, e.ToExemplar(&b, nil).Labels, e.Timestamp, e.Value)
		}
	}
	for _, m := range req.Metadata {
		l.about(m.MetricFamilyName, strings.ToLower(m.Type.String()), m.Unit, m.Help)
	}
	return nil
}

func (l *ledger) noteV2(body []byte) error {
	var req writev2.Request
	if err := req.Unmarshal(body); err != nil {
		return err
	}
	b := labels.NewScratchBuilder(0)
	for _, ts := range req.Timeseries {
		ls, err := ts.ToLabels(&b, req.Symbols)
		if err != nil {
			return err
		}
		created, err := createdOf(ts.XXX_unrecognized)
		if err != nil {
			return err
		}
		startOf := func(own int64) int64 {
			if own == 0 {
				return created
			}
			return own
		}
		for _, s := range ts.Samples {
			l.float(ls, s.Timestamp, s.Value, startOf(s.StartTimestamp))
		}
		for _, h := range ts.Histograms {
			start := startOf(h.StartTimestamp)
			h.StartTimestamp = 0
			data, err := h.Marshal()
			if err != nil {
				return err
			}
			var v1 prompb.Histogram
			if err := v1.Unmarshal(data); err != nil {
				return err
			}
			if err := l.histogram(ls, v1, start); err != nil {
				return err
			}
		}
		for _, e := range ts.Exemplars {
			x, err := e.ToExemplar(&b, req.Symbols)
			if err != nil {
				return err
			}
			l.exemplar(ls, x.Labels, e.Timestamp, e.Value)
		}
		m, err := ts.ToMetadata(req.Symbols)
		if err != nil {
			return err
		}
		if m.Type != "unknown" || m.Unit != "" || m.Help != "" {
			l.about(ls.Get(labels.MetricName), string(m.Type), m.Unit, m.Help)
		}
	}
	return nil
}

// createdOf finds a series' created timestamp, field 6 of the 2.0 drafts that
// the suite speaks, which upstream's types have given up since.
func createdOf(unknown []byte) (int64, error) {
	for len(unknown) > 0 {
		number, typ, n := protowire.ConsumeTag(unknown)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		if number == 6 && typ == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(unknown[n:])
			return int64(v), nil
		}
		size := protowire.ConsumeFieldValue(number, typ, unknown[n:])
		if size < 0 {
			return 0, protowire.ParseError(size)
		}
		unknown = unknown[n+size:]
	}
	return 0, nil
}

// key identifies a sample. A sample of one kind replaces that of another.
func (l *ledger) key(ls labels.Labels, ms int64) string {
	k := fmt.Sprintf("%s %d", ls, ms)
	delete(l.floats, k)
	delete(l.histograms, k)
	delete(l.starts, k)
	return k
}

func bits(v float64) string { return fmt.Sprintf("%016x", math.Float64bits(v)) }

func (l *ledger) float(ls labels.Labels, ms int64, v float64, start int64) {
	k := l.key(ls, ms)
	l.floats[k] = bits(v)
	if start != 0 {
		l.starts[startKey(ls.Get(labels.MetricName), ms)] = fmt.Sprint(start * 1_000_000)
	}
}

func (l *ledger) histogram(ls labels.Labels, h prompb.Histogram, start int64) error {
	k := l.key(ls, h.Timestamp)
	if start != 0 {
		l.starts[startKey(ls.Get(labels.MetricName), h.Timestamp)] = fmt.Sprint(start * 1_000_000)
	}
	text, err := histogramText(h)
	l.histograms[k] = text
	return err
}

// startKey is what SQL is asked for; the suite sends starts of one series a
// metric at a time.
func startKey(metric string, ms int64) string { return fmt.Sprintf("%s %d", metric, ms) }

// histogramText is a histogram without its time, and without the hint, which
// depends on the sample before it. A zero bucket that is absent is one of 0.
func histogramText(h prompb.Histogram) (string, error) {
	h.Timestamp, h.ResetHint, h.XXX_unrecognized = 0, prompb.Histogram_UNKNOWN, nil
	if h.ZeroCount == nil && !h.IsFloatHistogram() {
		h.ZeroCount = &prompb.Histogram_ZeroCountInt{}
	}
	data, err := h.Marshal()
	return fmt.Sprintf("%x", data), err
}

func (l *ledger) exemplar(series, own labels.Labels, ms int64, v float64) {
	l.exemplars[fmt.Sprintf("%s %s %d", series, own, ms)] = number(v)
}

// number is a value as JSON has it, in which all NaNs are one.
func number(v float64) string { return fmt.Sprint(v) }

func (l *ledger) about(metric, typ, unit, help string) {
	if l.metadata[metric] == nil {
		l.metadata[metric] = map[string]bool{}
	}
	l.metadata[metric][fmt.Sprintf("%s|%s|%s", typ, unit, help)] = true
}

// compare reads everything back and tells the first differences.
func (l *ledger) compare(ctx context.Context, server string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	got := newLedger()
	err := got.readSamples(ctx, server)
	err = errors.Join(err, got.readStarts(ctx, server))
	err = errors.Join(err, got.readExemplars(ctx, server))
	err = errors.Join(err, got.readMetadata(ctx, server))
	if err != nil {
		return err
	}
	flat := func(m map[string]map[string]bool) map[string]string {
		out := map[string]string{}
		for metric, set := range m {
			for about := range set {
				out[metric+" "+about] = "is kept"
			}
		}
		return out
	}
	return errors.Join(
		differ("samples", l.floats, got.floats), differ("histograms", l.histograms, got.histograms), differ("starts", l.starts, got.starts),
		differ("exemplars", l.exemplars, got.exemplars), differ("metadata", flat(l.metadata), flat(got.metadata)))
}

func differ(what string, want, got map[string]string) error {
	var lines []string
	for k, v := range want {
		if got[k] != v {
			lines = append(lines, fmt.Sprintf("%s: accepted %q, stored %q", k, v, got[k]))
		}
	}
	for k, v := range got {
		if _, ok := want[k]; !ok {
			lines = append(lines, fmt.Sprintf("%s: stored %q, never accepted", k, v))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	sort.Strings(lines)
	return fmt.Errorf("%d differences in %s, such as\n%s", len(lines), what, strings.Join(lines[:min(len(lines), 5)], "\n"))
}

// readSamples asks by remote read, which keeps bits and stale markers.
func (l *ledger) readSamples(ctx context.Context, server string) error {
	now := time.Now()
	req := &prompb.ReadRequest{Queries: []*prompb.Query{{
		StartTimestampMs: now.Add(-24 * time.Hour).UnixMilli(), EndTimestampMs: now.Add(time.Hour).UnixMilli(),
		Matchers: []*prompb.LabelMatcher{{Type: prompb.LabelMatcher_RE, Name: labels.MetricName, Value: ".+"}},
	}}}
	data, err := req.Marshal()
	if err != nil {
		return err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, server+"/api/v1/read", bytes.NewReader(snappy.Encode(nil, data)))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(post)
	if err != nil {
		return fmt.Errorf("remote read: %w", err)
	}
	defer resp.Body.Close()
	packed, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("remote read: %s: %.300s: %w", resp.Status, packed, err)
	}
	plain, err := snappy.Decode(nil, packed)
	if err != nil {
		return fmt.Errorf("remote read: %w", err)
	}
	var answer prompb.ReadResponse
	if err := answer.Unmarshal(plain); err != nil {
		return fmt.Errorf("remote read: %w", err)
	}
	b := labels.NewScratchBuilder(0)
	for _, r := range answer.Results {
		for _, ts := range r.Timeseries {
			ls := ts.ToLabels(&b, nil)
			for _, s := range ts.Samples {
				l.float(ls, s.Timestamp, s.Value, 0)
			}
			for _, h := range ts.Histograms {
				if err := l.histogram(ls, h, 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// readStarts asks by SQL: remote read has no starts.
func (l *ledger) readStarts(ctx context.Context, server string) error {
	body, err := json.Marshal(map[string]string{"query": "SELECT metric_name AS metric, epoch_ms(timestamp) AS ms, start_time_unix_nano AS start FROM metrics WHERE start_time_unix_nano IS NOT NULL"})
	if err != nil {
		return err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, server+"/api/v1/sql", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(post)
	if err != nil {
		return fmt.Errorf("sql: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("sql: %s: %.300s: %w", resp.Status, answer, err)
	}
	var rows []struct {
		Metric    string
		Ms, Start int64
	}
	if err := json.Unmarshal(answer, &rows); err != nil {
		return fmt.Errorf("sql: %w", err)
	}
	for _, row := range rows {
		l.starts[startKey(row.Metric, row.Ms)] = fmt.Sprint(row.Start)
	}
	return nil
}

func (l *ledger) readExemplars(ctx context.Context, server string) error {
	var answer struct {
		Data []struct {
			SeriesLabels labels.Labels
			Exemplars    []struct {
				Labels    labels.Labels
				Value     string
				Timestamp float64
			}
		}
	}
	if err := process.GetJSON(ctx, server+"/api/v1/query_exemplars?"+url.Values{"query": {`{__name__=~".+"}`}}.Encode(), &answer); err != nil {
		return fmt.Errorf("exemplars: %w", err)
	}
	for _, s := range answer.Data {
		for _, e := range s.Exemplars {
			v, err := strconv.ParseFloat(e.Value, 64)
			if err != nil {
				return fmt.Errorf("exemplars: %w", err)
			}
			l.exemplar(s.SeriesLabels, e.Labels, int64(math.Round(e.Timestamp*1000)), v)
		}
	}
	return nil
}

func (l *ledger) readMetadata(ctx context.Context, server string) error {
	var answer struct {
		Data map[string][]struct{ Type, Unit, Help string }
	}
	if err := process.GetJSON(ctx, server+"/api/v1/metadata", &answer); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	for metric, list := range answer.Data {
		for _, m := range list {
			l.about(metric, m.Type, m.Unit, m.Help)
		}
	}
	return nil
}
