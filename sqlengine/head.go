package sqlengine

import (
	"context"
	"math"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/chunk"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/shard"
)

// headRows is what DuckDB is told about the size of a head, which nobody
// counts.
const headRows = 100_000

// headBatch bounds the samples that a scan of the head holds at once, a
// single series excepted.
const headBatch = 16 << 10

// headSource is the head as rows.
type headSource struct {
	view   reader.HeadView
	sel    series.Selector
	layout *chunk.Layout
	shards *shard.Map
	names  []string       // of the columns
	list   []sourceColumn // the same, under the names used inside
	place  map[string]int // name → place in list
}

func newHeadSource(t *rowsTable) *headSource {
	kinds := map[string]kind{
		chunk.ColumnTimestamp: kindTimestamp, chunk.ColumnNanos: kindInt, chunk.ColumnStart: kindBigInt, chunk.ColumnSeriesID: kindBigInt,
		chunk.ColumnValue: kindDouble, chunk.ColumnHistogram: kindBlob, chunk.ColumnOverflow: kindTextMap, chunk.ColumnDate: kindDate,
	}
	h := &headSource{view: t.view.Head(), sel: t.sel, layout: t.layout, shards: t.shards, place: map[string]int{}}
	for i, c := range t.columns {
		h.names = append(h.names, c.name)
		h.list = append(h.list, sourceColumn{inner(i), kinds[c.name]}) // text where it is none of these
		h.place[c.name] = i
	}
	return h
}

func (h *headSource) columns() []sourceColumn { return h.list }
func (h *headSource) rows() int64             { return headRows }

// scan starts a goroutine that passes over the head: DuckDB fetches rows from
// threads that change, which an iterator that is pulled does not bear.
func (h *headSource) scan(wanted []int) (scan, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &headScan{source: h, wanted: wanted, batches: make(chan []series.Series, 1), cancel: cancel}
	s.running.Go(func() {
		defer close(s.batches)
		var batch []series.Series
		samples := 0
		send := func() bool {
			select {
			case s.batches <- batch:
				batch, samples = nil, 0
				return true
			case <-ctx.Done():
				return false
			}
		}
		for one := range h.view.Select(h.sel) {
			batch = append(batch, series.Series{Labels: one.Labels, Samples: one.AllSamples()})
			samples += len(batch[len(batch)-1].Samples)
			if samples >= headBatch && !send() {
				return
			}
		}
		if len(batch) > 0 {
			send()
		}
	})
	return s, nil
}

type headScan struct {
	source  *headSource
	wanted  []int
	batches chan []series.Series
	cancel  context.CancelFunc
	running sync.WaitGroup

	batch []series.Series
	one   int // place in batch
	next  int // sample of that series
	row   headRow
	have  bool // row is that of batch[one]
}

func (s *headScan) close() {
	s.cancel()
	s.running.Wait()
}

// headRow is what all rows of one series share.
type headRow struct {
	id       series.ID
	name     string
	shard    string
	hasShard bool
	labels   map[int]string // by place of the column
	overflow []pair
}

// rowOf places the labels of a series in columns.
func (h *headSource) rowOf(l series.Labels) headRow {
	row := headRow{id: series.IDOf(l), labels: map[int]string{}}
	l.Range(func(label labels.Label) {
		if label.Name == series.MetricName {
			row.name = label.Value
			return
		}
		if c, ok := h.layout.Column(label.Name); ok {
			if k, ok := h.place[c]; ok {
				row.labels[k] = label.Value
			}
			return
		}
		row.overflow = append(row.overflow, pair{label.Name, label.Value})
	})
	if h.shards != nil {
		row.shard, row.hasShard = string(h.shards.Of(shard.KeyOf(l, row.id))), true
	}
	return row
}

// fill implements scan.
func (s *headScan) fill(out *rowsOut) (int, error) {
	n := 0
	for n < out.max {
		if s.one >= len(s.batch) {
			batch, ok := <-s.batches
			if !ok {
				break
			}
			s.batch, s.one, s.next, s.have = batch, 0, 0, false
		}
		one := &s.batch[s.one]
		if !s.have {
			s.row, s.have = s.source.rowOf(one.Labels), true
		}
		count := min(out.max-n, len(one.Samples)-s.next)
		for i := range count {
			if err := s.write(out, n+i, i > 0, &one.Samples[s.next+i]); err != nil {
				return 0, err
			}
		}
		n += count
		if s.next += count; s.next == len(one.Samples) {
			s.one, s.next, s.have = s.one+1, 0, false
		}
	}
	return n, nil
}

// write fills one row; again means that the row before is of the same series.
func (s *headScan) write(out *rowsOut, i int, again bool, sample *series.Sample) error {
	for place, name := range s.source.names {
		k := s.wanted[place]
		if k < 0 {
			continue
		}
		v := &out.columns[k]
		switch name {
		case chunk.ColumnTimestamp:
			*at[int64](v.vector, i) = int64(sample.Time)
		case chunk.ColumnNanos:
			if sample.Nanos == 0 {
				v.setNull(i)
			} else {
				*at[int32](v.vector, i) = int32(sample.Nanos)
			}
		case chunk.ColumnStart:
			if sample.Start == 0 {
				v.setNull(i)
			} else {
				*at[int64](v.vector, i) = sample.Start
			}
		case chunk.ColumnValue:
			if sample.Histogram != nil {
				v.setNull(i)
			} else {
				*at[uint64](v.vector, i) = math.Float64bits(sample.Value)
			}
		case chunk.ColumnHistogram:
			if sample.Histogram == nil {
				v.setNull(i)
			} else {
				v.binary(i, sample.Histogram)
			}
		case chunk.ColumnDate:
			*at[int32](v.vector, i) = int32(sample.Time.Date())
		default: // of the series
			if again {
				v.again(i)
			} else if err := s.writeShared(v, place, name, i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *headScan) writeShared(v *columnOut, place int, name string, i int) error {
	value, ok := "", true
	switch name {
	case chunk.ColumnSeriesID:
		*at[int64](v.vector, i) = int64(s.row.id)
		return nil
	case chunk.ColumnOverflow:
		if len(s.row.overflow) == 0 {
			v.setNull(i)
			return nil
		}
		return v.textMap(i, s.row.overflow)
	case chunk.ColumnMetricName:
		value = s.row.name
	case chunk.ColumnShard:
		value, ok = s.row.shard, s.row.hasShard
	default:
		value, ok = s.row.labels[place]
	}
	if !ok {
		v.setNull(i)
		return nil
	}
	v.text(i, value)
	return nil
}

// labelNames returns the names of all labels in a head.
func labelNames(h reader.HeadView) []string {
	return slices.Sorted(slices.Values(h.LabelNames(series.Selector{Range: series.AllTime})))
}
