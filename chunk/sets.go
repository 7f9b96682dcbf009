package chunk

import (
	"fmt"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
)

// setShapes is what an encoder has found out of the shapes of a view.
type setShapes struct {
	view *symbols.View
	// shapes says for each shape in which columns its labels go; nil: not
	// looked at yet.
	shapes [][]setEntry
	// The metric name that came last.
	nameCode int32
	name     string
}

// setEntry is one label of a shape.
type setEntry struct {
	column *labelColumn // nil: overflow, or the metric name
	source int32        // column of the view
	name   bool
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
		e.sets = setShapes{view: v, shapes: make([][]setEntry, v.Shapes()), nameCode: -1}
	}
	shape, err := e.shapeOf(set.Shape())
	if err != nil {
		return err
	}
	codes := v.Codes(set)
	for k := range shape {
		if shape[k].name && codes[k] != e.sets.nameCode {
			e.sets.nameCode, e.sets.name = codes[k], string(v.Text(shape[k].source, codes[k]))
		}
	}
	e.current = identity{name: e.sets.name, id: id, view: v, set: set}
	if err := e.check(samples); err != nil {
		return err
	}
	return e.write(samples)
}

// shapeOf finds the columns of a shape.
func (e *Encoder) shapeOf(shape int32) ([]setEntry, error) {
	if found := e.sets.shapes[shape]; found != nil {
		return found, nil
	}
	var entries []setEntry
	for _, source := range e.sets.view.ColumnsOf(shape) {
		label := e.sets.view.Name(source)
		entry := setEntry{source: source, name: label == series.MetricName, column: e.byLabel[label]}
		if !entry.name && entry.column == nil && !e.overflow[label] {
			return nil, fmt.Errorf("%w: label %q was not announced", ErrInvalidInput, label)
		}
		if c := entry.column; c != nil && len(c.fileCodes) == 0 {
			c.fileCodes = append(c.fileCodes, make([]int32, e.sets.view.Values(source))...)
		}
		entries = append(entries, entry)
	}
	e.sets.shapes[shape] = entries
	return entries, nil
}

// pendSet adds rows of the current set to the pending row group.
func (e *Encoder) pendSet(samples []series.Sample) {
	v := e.current.view
	seg := segment{name: e.current.name, id: e.current.id, rows: int32(len(samples))}
	at := int32(len(e.pending))
	shape, codes := e.sets.shapes[e.current.set.Shape()], v.Codes(e.current.set)
	for k := range shape {
		c := shape[k].column
		if c == nil {
			if !shape[k].name {
				l := labels.Label{Name: v.Name(shape[k].source), Value: string(v.Text(shape[k].source, codes[k]))}
				seg.overflow = append(seg.overflow, l)
				e.pendingBytes += (len(l.Name) + len(l.Value)) * len(samples)
			}
			continue
		}
		code := c.fileCodes[codes[k]] - 1
		if code < 0 {
			text := v.Text(shape[k].source, codes[k])
			code = c.dict.Append(text)
			c.fileCodes[codes[k]] = code + 1
			c.used = append(c.used, codes[k])
			e.pendingBytes += len(text)
		}
		c.segments, c.codes = append(c.segments, at), append(c.codes, code)
		c.summary.rows += int64(len(samples))
	}
	e.pendRows(seg, samples)
}
