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
	// How many of the pending segments have given their labels, how many do
	// so together, and scratch.
	done, atOnce int
	codes        []int32
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

// AddSet is [Encoder.Add] of a set of a view, which all series then are; it
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
		if e.sets.view != nil || e.summary.rows > 0 {
			return fmt.Errorf("%w: sets of two views, or some without", ErrInvalidInput)
		}
		// Labels of some sets more must not matter to the size of a row group.
		atOnce := max(1, min(setsAtOnce, e.opts.rowGroupBytes/(setsAtOnce*max(v.MaxBytes(), 1))))
		e.sets = setShapes{view: v, shapes: make([]*setShape, v.Shapes()), nameCode: -1, atOnce: atOnce}
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

// pendSet adds rows of the current set to the pending row group. Its labels
// follow with those of its neighbours.
func (e *Encoder) pendSet(samples []series.Sample) {
	e.pendRows(segment{name: e.current.name, id: e.current.id, set: e.current.set, rows: int32(len(samples))}, samples)
	if len(e.pending)-e.sets.done >= e.sets.atOnce {
		e.pendLabels()
	}
}

// setsAtOnce is how many sets at most give their labels together. To look a set up is
// a cache miss or two a label; those of many sets at once do not wait for each
// other.
const setsAtOnce = 64

// pendLabels adds the labels of the sets that have not given them yet, a
// column at a time for neighbours of one shape.
func (e *Encoder) pendLabels() {
	for e.sets.done < len(e.pending) {
		from := e.sets.done
		shape := e.pending[from].set.Shape()
		to := from + 1
		for to < len(e.pending) && e.pending[to].set.Shape() == shape {
			to++
		}
		e.pendShape(e.sets.shapes[shape], from, to)
		e.sets.done = to
	}
}

// pendShape adds the labels of the segments from and up to to, which have one
// shape.
func (e *Encoder) pendShape(shape *setShape, from, to int) {
	v, segs := e.sets.view, e.pending[from:to]
	all := e.sets.codes[:0]
	for i := range segs {
		all = append(all, v.Codes(segs[i].set)...)
	}
	e.sets.codes = all
	width := len(all) / len(segs)
	for k := range shape.labels {
		l := &shape.labels[k]
		c := l.column
		if c == nil {
			for i := range segs {
				over := labels.Label{Name: v.Name(l.source), Value: string(v.Text(l.source, all[i*width+l.place]))}
				segs[i].overflow = append(segs[i].overflow, over)
				e.pendingBytes += (len(over.Name) + len(over.Value)) * int(segs[i].rows)
			}
			continue
		}
		codes, rows := c.room(from, len(segs)), int64(0)
		for i := range segs {
			value := all[i*width+l.place]
			code := c.fileCodes[value]
			if code == 0 {
				text := v.Text(l.source, value)
				code = c.dict.Append(text) + 1
				c.fileCodes[value] = code
				c.used = append(c.used, value)
				e.pendingBytes += len(text)
			}
			codes[i] = code - 1
			rows += int64(segs[i].rows)
		}
		c.summary.rows += rows
	}
}
