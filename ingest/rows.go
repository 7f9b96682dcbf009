package ingest

import (
	"fmt"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
	"cardinalsin/writer"
)

// ExemplarLabelPrefix marks an exemplar's own labels in the label set of its
// row. No series that has exemplars may have a label of that prefix.
const ExemplarLabelPrefix = "__exemplar__"

// ExemplarsTable names the table that holds the exemplars of another: one row
// an exemplar, its label set the series' and, prefixed, the exemplar's own. So
// a trace id costs disk only, and a resent exemplar replaces itself.
func ExemplarsTable(table string) string { return table + "_exemplars" }

// MetadataTable names the table that holds the metadata of another's metrics:
// labels __name__, type, unit and help, the empty ones absent; value 1;
// timestamp the start of the UTC day on which it was last sent.
func MetadataTable(table string) string { return table + "_metadata" }

// The labels of a row of metadata.
const (
	typeLabel = "type"
	unitLabel = "unit"
	helpLabel = "help"
)

// ExemplarsOf is what a series of the exemplars' table says.
func ExemplarsOf(s series.Series) []series.Exemplar {
	of, own := labels.NewScratchBuilder(16), labels.NewScratchBuilder(4)
	s.Labels.Range(func(l labels.Label) {
		if name, ok := strings.CutPrefix(l.Name, ExemplarLabelPrefix); ok {
			own.Add(name, l.Value)
			return
		}
		of.Add(l.Name, l.Value)
	})
	e := series.Exemplar{Series: of.Labels(), Labels: own.Labels()}
	out := make([]series.Exemplar, len(s.Samples))
	for i, p := range s.Samples {
		e.Time, e.Nanos, e.Value = p.Time, p.Nanos, p.Value
		out[i] = e
	}
	return out
}

// MetadataOf is what a series of the metadata's table says.
func MetadataOf(l series.Labels) series.Metadata {
	return series.Metadata{Metric: l.Get(series.MetricName), Type: l.Get(typeLabel), Unit: l.Get(unitLabel), Help: l.Get(helpLabel)}
}

// maxExemplarDays bounds the days that the exemplars of one request span, so
// that the writer of their table can always take them with one commit.
const maxExemplarDays = 64

// ExemplarRows makes the rows of exemplars, and checks them. Errors: those of
// series.Validate, writer.ErrInvalidSample, ErrLimit.
func ExemplarRows(exemplars []series.Exemplar) (series.Batch, error) {
	if len(exemplars) == 0 {
		return nil, nil
	}
	rows := make(series.Batch, len(exemplars))
	days := map[series.Date]struct{}{}
	b := labels.NewScratchBuilder(16)
	for i := range exemplars {
		e := &exemplars[i]
		l, err := exemplarLabels(e, &b)
		if err == nil {
			err = writer.CheckSample(&series.Sample{Time: e.Time, Nanos: e.Nanos})
		}
		if err != nil {
			return nil, fmt.Errorf("exemplar %d of %.300s: %w", i, e.Series, err)
		}
		days[e.Time.Date()] = struct{}{}
		rows[i] = series.Series{Labels: l, Samples: []series.Sample{{Time: e.Time, Nanos: e.Nanos, Value: e.Value}}}
	}
	if len(days) > maxExemplarDays {
		return nil, fmt.Errorf("%w: exemplars of %d days, at most %d in one request", ErrLimit, len(days), maxExemplarDays)
	}
	return rows, nil
}

// exemplarLabels is the label set of an exemplar's row, valid.
func exemplarLabels(e *series.Exemplar, b *labels.ScratchBuilder) (series.Labels, error) {
	if err := series.Validate(e.Series); err != nil {
		return series.Labels{}, err
	}
	b.Reset()
	err := e.Series.Validate(func(l labels.Label) error {
		if strings.HasPrefix(l.Name, ExemplarLabelPrefix) {
			return fmt.Errorf("%w: %.200q: exemplars' own labels are kept under that prefix", series.ErrInvalidLabel, l.Name)
		}
		b.Add(l.Name, l.Value)
		return nil
	})
	if err != nil {
		return series.Labels{}, err
	}
	err = e.Labels.Validate(func(l labels.Label) error {
		if l.Name == "" {
			return fmt.Errorf("%w: empty name", series.ErrInvalidLabel)
		}
		b.Add(ExemplarLabelPrefix+l.Name, l.Value)
		return nil
	})
	if err != nil {
		return series.Labels{}, err
	}
	b.Sort()
	l := b.Labels()
	return l, series.Validate(l)
}

// MetadataRow is the row of one metric's metadata on a day. Errors: those of
// series.Validate.
func MetadataRow(m series.Metadata, day series.Date) (series.Series, error) {
	b := labels.NewScratchBuilder(4)
	b.Add(series.MetricName, m.Metric)
	b.Add(helpLabel, m.Help)
	b.Add(typeLabel, m.Type)
	b.Add(unitLabel, m.Unit)
	l := b.Labels().WithoutEmpty()
	if err := series.Validate(l); err != nil {
		return series.Series{}, fmt.Errorf("metadata of %.200q: %w", m.Metric, err)
	}
	return series.Series{Labels: l, Samples: []series.Sample{{Time: day.Start(), Value: 1}}}, nil
}
