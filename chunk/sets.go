package chunk

import (
	"fmt"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// setShapes is what an encoder has found out of the shapes of a view.
type setShapes struct {
	view   *symbols.View
	shapes []*setShape // nil: not looked at yet
	// The metric name that came last.
	nameCode int32
	name     string
}

// setShape is where the labels of a shape go.
type setShape struct {
	name   setEntry // the metric name, without a column
	labels []setEntry
}

// setEntry is one label of a shape.
type setEntry struct {
	place  int          // among the codes of a set
	source int32        // column of the view
	column *labelColumn // nil: overflow
}

// AddSet is [Encoder.Add] of a set of a view, the same view each time; it
// costs next to nothing for a value that the row group has already. ID and text
// are taken as they are: a table holds only what may be stored.
func (e *Encoder) AddSet(v *symbols.View, set symbols.Set, id series.ID, samples []series.Sample) error {
	if e.err == nil && len(samples) > 0 {
		e.err = e.addSet(v, set, id, samples)
	}
	return e.err
}

func (e *Encoder) addSet(v *symbols.View, set symbols.Set, id series.ID, samples []series.Sample) error {
	if e.sets.view != v {
		if e.sets.view != nil {
			return fmt.Errorf("%w: sets of two views", ErrInvalidInput)
		}
		e.sets = setShapes{view: v, shapes: make([]*setShape, v.Shapes()), nameCode: -1}
	}
	shape, err := e.shapeOf(set.Shape())
	if err != nil {
		return err
	}
	if code := v.Codes(set)[shape.name.place]; code != e.sets.nameCode {
		e.sets.nameCode, e.sets.name = code, string(v.Text(shape.name.source, code))
	}
	e.current = identity{name: e.sets.name, id: id, view: v, set: set}
	if err := e.check(samples); err != nil {
		return err
	}
	return e.write(samples)
}

// shapeOf finds the columns of a shape.
func (e *Encoder) shapeOf(number int32) (*setShape, error) {
	if found := e.sets.shapes[number]; found != nil {
		return found, nil
	}
	shape := &setShape{}
	for place, source := range e.sets.view.ColumnsOf(number) {
		label := e.sets.view.Name(source)
		entry := setEntry{place: place, source: source, column: e.byLabel[label]}
		if label == series.MetricName {
			shape.name = entry
			continue
		}
		if c := entry.column; c == nil && !e.overflow[label] {
			return nil, fmt.Errorf("%w: label %q was not announced", ErrInvalidInput, label)
		} else if c != nil && len(c.fileCodes) == 0 {
			c.fileCodes = append(c.fileCodes, make([]int32, e.sets.view.Values(source))...)
		}
		shape.labels = append(shape.labels, entry)
	}
	e.sets.shapes[number] = shape
	return shape, nil
}

// pendSet adds rows of the current set to the pending row group.
func (e *Encoder) pendSet(samples []series.Sample) {
	v := e.current.view
	seg := segment{name: e.current.name, id: e.current.id, rows: int32(len(samples))}
	at := int32(len(e.pending))
	codes := v.Codes(e.current.set)
	entries := e.sets.shapes[e.current.set.Shape()].labels
	for i := range entries {
		l := &entries[i]
		c, value := l.column, codes[l.place]
		if c == nil {
			l := labels.Label{Name: v.Name(l.source), Value: string(v.Text(l.source, value))}
			seg.overflow = append(seg.overflow, l)
			e.pendingBytes += (len(l.Name) + len(l.Value)) * len(samples)
			continue
		}
		code := c.fileCodes[value] - 1
		if code < 0 {
			text := v.Text(l.source, value)
			code = c.dict.Append(text)
			c.fileCodes[value] = code + 1
			c.used = append(c.used, value)
			e.pendingBytes += len(text)
		}
		c.segments, c.codes = append(c.segments, at), append(c.codes, code)
		c.summary.rows += int64(len(samples))
	}
	e.pendRows(seg, samples)
}
