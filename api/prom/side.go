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

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/promql"
	promstorage "github.com/prometheus/prometheus/storage"

	"cardinalsin/ingest"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// SideTable opens the reader of a table that stands beside the one that is
// queried, of its exemplars or of its metadata. release gives it back, once.
// txlog.ErrNotTable means that there is none yet. Nil is a table that is never
// there.
type SideTable func(context.Context) (r *reader.Reader, release func(), err error)

// view opens the table at the version that ctx asks for. ok is false where
// there is no table.
func (t SideTable) view(ctx context.Context) (v *reader.View, release func(), ok bool, err error) {
	if t == nil {
		return nil, nil, false, nil
	}
	r, giveBack, err := t(ctx)
	if errors.Is(err, txlog.ErrNotTable) {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, err
	}
	at, _ := ctx.Value(atKey{}).(txlog.At)
	if v, err = r.At(ctx, at); err != nil {
		giveBack()
		return nil, nil, false, err
	}
	return v, func() { v.Close(); giveBack() }, true, nil
}

// exemplars is the table of exemplars as Prometheus' API sees it.
type exemplars struct {
	table      SideTable
	maxSamples int
	queryBytes int64
	memory     *Memory
}

// ExemplarQuerier implements storage.ExemplarQueryable.
func (e exemplars) ExemplarQuerier(ctx context.Context) (promstorage.ExemplarQuerier, error) {
	return exemplarQuerier{e, ctx}, nil
}

// exemplarQuerier keeps the context of its query: upstream's Select has none.
type exemplarQuerier struct {
	exemplars
	ctx context.Context
}

// Select implements storage.ExemplarQuerier: series in the order of their
// labels, each with its exemplars in the order of time. start and end are ms
// since the epoch, both inclusive.
func (q exemplarQuerier) Select(start, end int64, sets ...[]*labels.Matcher) ([]exemplar.QueryResult, error) {
	view, release, ok, err := q.table.view(q.ctx)
	if err != nil {
		return nil, tableError{err}
	}
	out := []exemplar.QueryResult{}
	if !ok {
		return out, nil
	}
	defer release()
	bySeries := map[string]map[series.ID][]exemplar.Exemplar{}
	of := map[string]labels.Labels{}
	n := 0
	held := holdingOf(q.ctx)
	if held == nil {
		held = &holding{memory: q.memory, most: q.queryBytes}
		defer held.giveBack()
	}
	for _, matchers := range sets {
		for row, err := range view.Select(q.ctx, selector(start, end, matchers)) {
			if err != nil {
				return nil, tableError{err}
			}
			if n += len(row.Samples); q.maxSamples > 0 && n > q.maxSamples {
				return nil, promql.ErrTooManySamples("loading exemplars")
			}
			found := ingest.ExemplarsOf(row)
			if len(found) == 0 {
				continue
			}
			if err := held.hold(2*labelBytes(row.Labels) + anExemplar*int64(len(found))); err != nil {
				return nil, tableError{err}
			}
			key := string(found[0].Series.Bytes(nil))
			if bySeries[key] == nil {
				bySeries[key], of[key] = map[series.ID][]exemplar.Exemplar{}, found[0].Series
			}
			// A row is a label set; that of another selector is the same.
			list := make([]exemplar.Exemplar, len(found))
			for i, e := range found {
				list[i] = exemplar.Exemplar{Labels: e.Labels, Value: e.Value, Ts: e.Time.Millis(), HasTs: true}
			}
			bySeries[key][series.IDOf(row.Labels)] = list
		}
	}
	for key, rows := range bySeries {
		r := exemplar.QueryResult{SeriesLabels: of[key]}
		for _, list := range rows {
			r.Exemplars = append(r.Exemplars, list...)
		}
		slices.SortFunc(r.Exemplars, exemplar.Compare)
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b exemplar.QueryResult) int { return labels.Compare(a.SeriesLabels, b.SeriesLabels) })
	return out, nil
}

// metadataHandler answers GET /metadata in Prometheus' form. Upstream's own
// asks scrape targets, which a table has not got. Of a metric that changed,
// what was said last comes first.
func metadataHandler(table SideTable, maxSamples int, logger *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		found, err := findMetadata(r, table, maxSamples)
		code, body := http.StatusOK, map[string]any{"status": "success", "data": found}
		if err != nil {
			kind := "bad_data"
			if code = http.StatusBadRequest; !errors.Is(err, errBadParameter) {
				kind, code = "internal", http.StatusInternalServerError
				if c, ok := statusOf(0, err); ok {
					code = c
				}
				logger.Error("metadata query failed", "err", err)
			}
			body = map[string]any{"status": "error", "errorType": kind, "error": err.Error()}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		// A client that is gone is no concern of ours.
		_ = json.NewEncoder(w).Encode(body)
	})
}

// errBadParameter: the request asks for what nobody can answer.
var errBadParameter = errors.New("invalid parameter")

// findMetadata reads metadata by metric. limit and limit_per_metric have
// upstream's meaning: negative is none, and 0 none of the latter.
func findMetadata(r *http.Request, table SideTable, maxSamples int) (map[string][]metadata.Metadata, error) {
	limits := map[string]int{"limit": -1, "limit_per_metric": -1}
	for name := range limits {
		if s := r.FormValue(name); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil {
				return nil, fmt.Errorf("%w: %s must be a number", errBadParameter, name)
			}
			limits[name] = n
		}
	}
	out := map[string][]metadata.Metadata{}
	view, release, ok, err := table.view(r.Context())
	if err != nil {
		return nil, tableError{err}
	}
	if !ok {
		return out, nil
	}
	defer release()
	sel := series.Selector{Range: series.AllTime}
	if metric := r.FormValue("metric"); metric != "" {
		sel.Matchers = []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, labels.MetricName, metric)}
	}
	type said struct {
		series.Metadata
		last series.Timestamp
	}
	byMetric := map[string][]said{}
	n := 0
	for row, err := range view.Select(r.Context(), sel) {
		if err != nil {
			return nil, tableError{err}
		}
		if n += len(row.Samples); maxSamples > 0 && n > maxSamples {
			return nil, promql.ErrTooManySamples("loading metadata")
		}
		if len(row.Samples) == 0 {
			continue
		}
		m := said{ingest.MetadataOf(row.Labels), row.Samples[len(row.Samples)-1].Time}
		byMetric[m.Metric] = append(byMetric[m.Metric], m)
	}
	names := make([]string, 0, len(byMetric))
	for name := range byMetric {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if limits["limit"] >= 0 && len(out) >= limits["limit"] {
			break
		}
		list := byMetric[name]
		slices.SortFunc(list, func(a, b said) int {
			return cmp.Or(cmp.Compare(b.last, a.last), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.Help, b.Help))
		})
		for _, m := range list {
			if k := limits["limit_per_metric"]; k > 0 && len(out[name]) >= k {
				break
			}
			out[name] = append(out[name], metadata.Metadata{Type: model.MetricType(cmp.Or(m.Type, string(model.MetricTypeUnknown))), Unit: m.Unit, Help: m.Help})
		}
	}
	return out, nil
}
