package symbols

import (
	"iter"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// View is what a table holds at one moment. It may be read without the table's
// lock, concurrently and for ever, and knows every set that was added before.
type View struct {
	columns []values
	shapes  [][]int32
	blocks  [][]int32
}

type values struct {
	name string
	texts
}

// View returns a view. It copies what grows with the number of label names,
// and a word for every few hundred sets.
func (t *Table) View() *View {
	v := &View{columns: make([]values, len(t.columns)), shapes: t.shapes, blocks: slices.Clone(t.blocks)}
	for i := range t.columns {
		c := &t.columns[i]
		v.columns[i] = values{c.name, c.values.texts}
	}
	for i := range v.blocks {
		v.blocks[i] = v.blocks[i][:cap(v.blocks[i])] // what is filled later is never looked at
	}
	return v
}

// Name is the label name of a column.
func (v *View) Name(column int32) string { return v.columns[column].name }

// Column finds the column of a label name. It looks through all of them.
func (v *View) Column(name string) (column int32, ok bool) {
	i := slices.IndexFunc(v.columns, func(c values) bool { return c.name == name })
	return int32(i), i >= 0
}

// Columns yields all columns.
func (v *View) Columns() iter.Seq[int32] {
	return func(yield func(int32) bool) {
		for i := range v.columns {
			if !yield(int32(i)) {
				return
			}
		}
	}
}

// Values is the number of values of a column, which have the codes below it.
func (v *View) Values(column int32) int { return v.columns[column].Len() }

// Text is a value of a column, to be read only.
func (v *View) Text(column, code int32) []byte { return v.columns[column].Text(code) }

// MaxBytes is the most bytes that names and values of a set can have.
func (v *View) MaxBytes() int {
	n := 0
	for i := range v.columns {
		n += len(v.columns[i].name) + v.columns[i].most
	}
	return n
}

// Shapes is the number of shapes; Set.Shape is below it.
func (v *View) Shapes() int { return len(v.shapes) }

// Shape numbers the columns that a set has; see [View.ColumnsOf].
func (s Set) Shape() int32 { return s.shape }

// ColumnsOf returns the columns of the labels of a shape, ordered by label
// name, to be read only.
func (v *View) ColumnsOf(shape int32) []int32 { return v.shapes[shape] }

// Codes returns the codes of a set's values, one for each of its columns, to
// be read only.
func (v *View) Codes(s Set) []int32 { return codesOf(v.blocks, s.at, len(v.shapes[s.shape])) }

// Labels builds the label set, in memory of its own.
func (v *View) Labels(s Set, b *labels.ScratchBuilder) series.Labels {
	b.Reset()
	codes := v.Codes(s)
	for k, c := range v.shapes[s.shape] {
		col := &v.columns[c]
		b.Add(col.name, string(col.Text(codes[k])))
	}
	return b.Labels()
}

// Compare orders two sets as labels.Compare does their labels.
func (v *View) Compare(a, b Set) int {
	var x, y labels.ScratchBuilder
	return labels.Compare(v.Labels(a, &x), v.Labels(b, &y))
}
