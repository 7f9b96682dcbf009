package prom

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"cardinalsin/series"
)

// maxStatusBytes bounds what one request for cardinalities holds in memory.
const maxStatusBytes = 256 << 20

// pairBytes is about what a map needs for a label and its count, beside the
// text.
const pairBytes = 64

// statusHandler answers GET /status/tsdb in Prometheus' form, for the whole
// table at the version that is asked for, head included. Upstream's own counts
// the head of a TSDB, and knows no versions. It reads the identity of all
// series, no samples. There are no chunks to count.
func statusHandler(q *Queryable, logger *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		found, err := findStatus(r, q)
		code, body := http.StatusOK, map[string]any{"status": "success", "data": found}
		if err != nil {
			var tooMany promql.ErrTooManySamples
			kind := "internal"
			code = http.StatusInternalServerError
			if c, ok := statusOf(0, err); ok {
				code = c
			}
			switch {
			case errors.Is(err, errBadParameter):
				kind, code = "bad_data", http.StatusBadRequest
			case errors.As(err, &tooMany):
				kind, code = "execution", http.StatusUnprocessableEntity
			default:
				logger.Error("status query failed", "err", err)
			}
			body = map[string]any{"status": "error", "errorType": kind, "error": err.Error()}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		// A client that is gone is no concern of ours.
		_ = json.NewEncoder(w).Encode(body)
	})
}

// findStatus counts series by label. limit has upstream's meaning and bounds.
func findStatus(r *http.Request, q *Queryable) (v1.TSDBStatus, error) {
	limit := 10
	if s := r.FormValue("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 10_000 {
			return v1.TSDBStatus{}, fmt.Errorf("%w: limit must be a number from 1 to 10000", errBadParameter)
		}
		limit = n
	}
	found, err := q.cardinalities(r.Context())
	if err != nil {
		return v1.TSDBStatus{}, err
	}
	return found.status(limit), nil
}

// cardinalities are the series that have a label, by its name and value.
type cardinalities struct {
	series uint64
	pairs  map[string]map[string]uint64
	times  series.TimeRange
	timed  bool // times is known
}

// cardinalities reads the labels of all series of a version.
func (q *Queryable) cardinalities(ctx context.Context) (c cardinalities, err error) {
	v := q.querier(0, 0)
	defer func() { err = errors.Join(err, v.Close()) }()
	view, err := v.open(ctx)
	if err != nil {
		return c, tableError{err}
	}
	c.pairs = map[string]map[string]uint64{}
	held := 0
	for s, err := range view.Series(ctx, series.Selector{Range: series.AllTime}) {
		if err != nil {
			return c, tableError{err}
		}
		c.series++
		s.Range(func(l labels.Label) {
			values := c.pairs[l.Name]
			if values == nil {
				values = map[string]uint64{}
				c.pairs[strings.Clone(l.Name)] = values
			}
			if n, ok := values[l.Value]; ok {
				values[l.Value] = n + 1
				return
			}
			// The text is cut out of the series', which is not to be kept.
			values[strings.Clone(l.Value)] = 1
			held += len(l.Value) + pairBytes
		})
		if held > maxStatusBytes {
			return c, promql.ErrTooManySamples("counting label values")
		}
	}
	if h := view.Head(); h != nil {
		c.times, c.timed = h.Range()
	}
	return c, nil
}

// status renders the limit largest of each kind, as upstream does, those of
// one size by name.
func (c cardinalities) status(limit int) v1.TSDBStatus {
	out := v1.TSDBStatus{HeadStats: v1.HeadStats{NumSeries: c.series}}
	if c.timed {
		out.HeadStats.MinTime, out.HeadStats.MaxTime = c.times.Min.Millis(), c.times.Max.Millis()
	}
	metrics, names, bytes, pairs := top{limit: limit}, top{limit: limit}, top{limit: limit}, top{limit: limit}
	for name, values := range c.pairs {
		out.HeadStats.NumLabelPairs += len(values)
		names.add(name, uint64(len(values)))
		var size uint64
		for value, n := range values {
			if name == labels.MetricName {
				metrics.add(value, n)
			}
			pairs.add(name+"="+value, n)
			size += labels.SizeOfLabels(name, value, n)
		}
		bytes.add(name, size)
	}
	out.SeriesCountByMetricName, out.LabelValueCountByLabelName = metrics.list(), names.list()
	out.MemoryInBytesByLabelName, out.SeriesCountByLabelValuePair = bytes.list(), pairs.list()
	return out
}

// top keeps the limit largest of what is added.
type top struct {
	limit int
	found []v1.TSDBStat
}

func (t *top) add(name string, value uint64) {
	if t.found = append(t.found, v1.TSDBStat{Name: name, Value: value}); len(t.found) >= 2*t.limit+1024 {
		t.cut()
	}
}

func (t *top) cut() {
	slices.SortFunc(t.found, func(a, b v1.TSDBStat) int {
		return cmp.Or(cmp.Compare(b.Value, a.Value), cmp.Compare(a.Name, b.Name))
	})
	t.found = t.found[:min(t.limit, len(t.found))]
}

// list is never nil: upstream writes an empty list.
func (t *top) list() []v1.TSDBStat {
	t.cut()
	return append([]v1.TSDBStat{}, t.found...)
}
