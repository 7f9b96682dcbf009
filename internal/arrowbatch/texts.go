package arrowbatch

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"

	"cardinalsin/ingest"
	"cardinalsin/series"
)

// textColumn is one label of the batch at hand: for each row the code of its
// text, 0 where the label is absent. Equal codes are equal texts.
type textColumn struct {
	place         int
	column, label string

	codes []int32 // by row; nil where the label is absent in all of them
	texts []string
	known map[string]int32
	canon []int32 // by a dictionary's index: its code, -1 before its first use
}

func (t *textColumn) reset() {
	t.codes, t.texts = nil, append(t.texts[:0], "")
	if t.known == nil {
		t.known = map[string]int32{}
	}
	clear(t.known)
}

// intern gives a text its code. The text stays the batch's.
func (t *textColumn) intern(s string) (int32, error) {
	if s == "" {
		return 0, nil
	}
	if c, ok := t.known[s]; ok {
		return c, nil
	}
	if len(s) > maxTextBytes {
		return 0, fmt.Errorf("%w: column %.200q: a text of %d bytes", series.ErrInvalidLabel, t.column, len(s))
	}
	c := int32(len(t.texts))
	t.texts = append(t.texts, s)
	t.known[s] = c
	return c, nil
}

// read codes a column of n rows; buf has room for them.
func (t *textColumn) read(a arrow.Array, n int, buf []int32) error {
	t.reset()
	if allNull(a, n) {
		return nil
	}
	t.codes = buf[:n]
	if d, ok := a.(*array.Dictionary); ok {
		return t.readDictionary(d)
	}
	s := a.(array.StringLike) // New has seen the type
	nulls := nullsOf(a)
	last, lastCode := "", int32(0)
	for i := range t.codes {
		if nulls.at(i) {
			t.codes[i] = 0
			continue
		}
		if v := s.Value(i); v != last {
			c, err := t.intern(v)
			if err != nil {
				return fmt.Errorf("row %d: %w", i, err)
			}
			last, lastCode = v, c
		}
		t.codes[i] = lastCode
	}
	return nil
}

func (t *textColumn) readDictionary(d *array.Dictionary) error {
	dict := d.Dictionary()
	words := dict.(array.StringLike)
	missing := nullsOf(dict)
	size := dict.Len()
	if size > max(8*len(t.codes), 1<<16) {
		// A dictionary much larger than the batch: no table of it.
		return t.readLargeDictionary(d, words, missing)
	}
	t.canon = slices.Grow(t.canon[:0], size)[:size]
	for i := range t.canon {
		t.canon[i] = -1
	}
	index, err := indices(d.Indices())
	if err != nil {
		return fmt.Errorf("column %.200q: %w", t.column, err)
	}
	nulls := nullsOf(d)
	for i := range t.codes {
		if nulls.at(i) {
			t.codes[i] = 0
			continue
		}
		k := index(i)
		if k < 0 || k >= int64(size) {
			return fmt.Errorf("row %d: %w: column %.200q: index %d in a dictionary of %d", i, ingest.ErrMalformed, t.column, k, size)
		}
		c := t.canon[k]
		if c < 0 {
			if c = 0; !missing.at(int(k)) {
				if c, err = t.intern(words.Value(int(k))); err != nil {
					return fmt.Errorf("row %d: %w", i, err)
				}
			}
			t.canon[k] = c
		}
		t.codes[i] = c
	}
	return nil
}

func (t *textColumn) readLargeDictionary(d *array.Dictionary, words array.StringLike, missing nulls) error {
	index, err := indices(d.Indices())
	if err != nil {
		return fmt.Errorf("column %.200q: %w", t.column, err)
	}
	nulls := nullsOf(d)
	for i := range t.codes {
		t.codes[i] = 0
		if nulls.at(i) {
			continue
		}
		k := index(i)
		if k < 0 || k >= int64(words.Len()) {
			return fmt.Errorf("row %d: %w: column %.200q: index %d in a dictionary of %d", i, ingest.ErrMalformed, t.column, k, words.Len())
		}
		if missing.at(int(k)) {
			continue
		}
		if t.codes[i], err = t.intern(words.Value(int(k))); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
	}
	return nil
}

// nulls is a validity bitmap. The count that a batch claims beside it is not
// looked at.
type nulls struct {
	bits   []byte
	offset int
}

func nullsOf(a arrow.Array) nulls { return nulls{a.NullBitmapBytes(), a.Data().Offset()} }

func (n nulls) at(i int) bool {
	if n.bits == nil {
		return false
	}
	i += n.offset
	return n.bits[i>>3]>>(i&7)&1 == 0
}

func allNull(a arrow.Array, n int) bool {
	bits := a.NullBitmapBytes()
	return bits != nil && bitutil.CountSetBits(bits, a.Data().Offset(), n) == 0
}

// indices reads an integer array of any width.
func indices(a arrow.Array) (func(int) int64, error) {
	switch a := a.(type) {
	case *array.Int8:
		return widen(a.Int8Values()), nil
	case *array.Int16:
		return widen(a.Int16Values()), nil
	case *array.Int32:
		return widen(a.Int32Values()), nil
	case *array.Int64:
		return widen(a.Int64Values()), nil
	case *array.Uint8:
		return widen(a.Uint8Values()), nil
	case *array.Uint16:
		return widen(a.Uint16Values()), nil
	case *array.Uint32:
		return widen(a.Uint32Values()), nil
	case *array.Uint64:
		return widen(a.Uint64Values()), nil
	}
	return nil, fmt.Errorf("%w: indices of type %.200s", ingest.ErrMalformed, a.DataType())
}

// widen leaves numbers above the greatest int64 negative, which no range check
// lets pass.
func widen[T int8 | int16 | int32 | int64 | uint8 | uint16 | uint32 | uint64](values []T) func(int) int64 {
	return func(i int) int64 { return int64(values[i]) }
}

// pair is a label of the overflow map.
type pair struct{ name, value string }

// overflowColumn is the map of labels without a column, coded as texts are.
type overflowColumn struct {
	codes []int32 // nil where no row has an entry
	sets  [][]pair
	known map[string]int32
	key   []byte
	pairs []pair
}

func (o *overflowColumn) reset() {
	o.codes, o.sets = nil, append(o.sets[:0], nil)
	if o.known == nil {
		o.known = map[string]int32{}
	}
	clear(o.known)
}

func (o *overflowColumn) read(a *array.Map, n int, buf []int32) error {
	o.reset()
	if allNull(a, n) {
		return nil
	}
	keys, err := textsOf(a.Keys())
	if err != nil {
		return err
	}
	items, err := textsOf(a.Items())
	if err != nil {
		return err
	}
	o.codes = buf[:n]
	nulls := nullsOf(a)
	for i := range n {
		o.codes[i] = 0
		if nulls.at(i) {
			continue
		}
		from, to := a.ValueOffsets(i)
		if from == to {
			continue
		}
		if o.codes[i], err = o.intern(keys, items, int(from), int(to)); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
	}
	return nil
}

func (o *overflowColumn) intern(keys, items texts, from, to int) (int32, error) {
	if to < from || to > keys.n || to > items.n {
		return 0, fmt.Errorf("%w: map entries %d to %d of %d", ingest.ErrMalformed, from, to, keys.n)
	}
	o.pairs = o.pairs[:0]
	bytes := 0
	for k := from; k < to; k++ {
		name, value := keys.at(k), items.at(k)
		if bytes += len(name) + len(value); bytes > maxTextBytes {
			return 0, fmt.Errorf("%w: an overflow map of more than %d bytes", series.ErrInvalidLabel, maxTextBytes)
		}
		if name == series.MetricName {
			return 0, fmt.Errorf("%w: %s in the overflow map", ingest.ErrMalformed, name)
		}
		if value != "" {
			o.pairs = append(o.pairs, pair{name, value})
		}
	}
	if len(o.pairs) == 0 {
		return 0, nil
	}
	slices.SortFunc(o.pairs, func(a, b pair) int { return strings.Compare(a.name, b.name) })
	o.key = o.key[:0]
	for _, p := range o.pairs {
		o.key = binary.AppendUvarint(o.key, uint64(len(p.name)))
		o.key = append(o.key, p.name...)
		o.key = binary.AppendUvarint(o.key, uint64(len(p.value)))
		o.key = append(o.key, p.value...)
	}
	if c, ok := o.known[string(o.key)]; ok {
		return c, nil
	}
	c := int32(len(o.sets))
	o.sets = append(o.sets, slices.Clone(o.pairs))
	o.known[string(o.key)] = c
	return c, nil
}

// texts reads text row by row, dictionary or not; null is "".
type texts struct {
	n  int
	at func(int) string
}

func textsOf(a arrow.Array) (texts, error) {
	missing := nullsOf(a)
	d, ok := a.(*array.Dictionary)
	if !ok {
		s := a.(array.StringLike)
		return texts{a.Len(), func(i int) string {
			if missing.at(i) {
				return ""
			}
			return s.Value(i)
		}}, nil
	}
	index, err := indices(d.Indices())
	if err != nil {
		return texts{}, err
	}
	words, err := textsOf(d.Dictionary())
	if err != nil {
		return texts{}, err
	}
	return texts{a.Len(), func(i int) string {
		if missing.at(i) {
			return ""
		}
		return words.at(int(index(i))) // out of range: Batch recovers
	}}, nil
}
