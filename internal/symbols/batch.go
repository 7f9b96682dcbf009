package symbols

import (
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// Batch is the label sets of a batch of series, in which each text and each
// label stands once. To make it is the only time that the labels of a request
// are walked: it checks them, hashes them, and gives log and head numbers in
// place of texts.
//
// The zero value is empty and ready. It refers to the memory of the labels
// until Reset.
type Batch struct {
	// IDs are the hashes of the sets, series.IDOf, in the order of Add.
	IDs []series.ID

	texts  []string // names and values
	labels []Label
	sets   []uint32 // indexes of labels, set after set
	ends   []int    // in sets, by set
	// What the texts of all sets come to, each time that they occur, and of
	// labels once; how often a set had other names than the one before, and
	// how many labels such sets had.
	expanded, text       int64
	shapes, shapeColumns int64

	refs map[string]uint32 // of texts
	// withValue is, by text, the first label with that value, one more so that
	// zero is none; byLabel has the others.
	withValue []uint32
	byLabel   map[Label]uint32
	prev      []place // of the set before, which was sound
	hashed    []byte  // what the ID is the hash of
}

// Label is one label, as two indexes of texts.
type Label struct{ Name, Value uint32 }

// place is a label at one place of a set: neighbours in a request nearly always
// have the same names and share most of their values, and what was found sound
// in the set before need not be looked at again.
type place struct {
	name, value string
	nameRef     uint32 // one more, so that zero is not looked up yet
	label       uint32
}

// Add appends a label set, without the labels whose value is empty, and returns
// the bytes of its text. Errors: those of [series.Validate]; the batch is of no
// use after one.
func (b *Batch) Add(l series.Labels) (text int, err error) {
	b.hashed = b.hashed[:0]
	k, sound, same, named, shape := 0, true, true, false, true
	l.Range(func(l labels.Label) {
		known := k < len(b.prev)
		if !known {
			b.prev = append(b.prev, place{})
		}
		p := &b.prev[k]
		sameName := known && p.name == l.Name
		sameValue := known && p.value == l.Value
		if !sameName {
			sound = sound && l.Name != "" && utf8.ValidString(l.Name)
		}
		if !sameValue {
			sound = sound && utf8.ValidString(l.Value)
		}
		// Two names that were neighbours before are in order.
		if k > 0 && !(same && sameName) {
			sound = sound && b.prev[k-1].name < l.Name
		}
		same = sameName
		k++
		if !sameName || !sameValue {
			shape = shape && sameName && p.value != "" && l.Value != ""
			if p.value = l.Value; !sameName {
				p.name, p.nameRef = l.Name, 0
			}
			if l.Value != "" {
				p.label = b.label(p)
			}
		}
		if l.Value == "" {
			return
		}
		named = named || l.Name == series.MetricName
		text += len(l.Name) + len(l.Value)
		b.hashed = series.AppendText(b.hashed, l)
		b.sets = append(b.sets, p.label)
	})
	shape = shape && k == len(b.prev)
	// What is left of a longer set was never the neighbour of these.
	clear(b.prev[k:])
	b.prev = b.prev[:k]
	if !sound || !named {
		if err := series.Validate(l); err != nil {
			return 0, err
		}
	}
	if !shape {
		b.shapes++
		b.shapeColumns += int64(k)
	}
	b.expanded += int64(text)
	b.ends = append(b.ends, len(b.sets))
	b.IDs = append(b.IDs, series.IDOfText(b.hashed))
	return text, nil
}

// label returns the index of the label at a place, which joins the others at
// first use. Nearly every value is that of one name, and found by itself.
func (b *Batch) label(p *place) uint32 {
	if b.refs == nil {
		b.refs, b.byLabel = map[string]uint32{}, map[Label]uint32{}
	}
	if p.nameRef == 0 {
		p.nameRef = b.ref(p.name) + 1
	}
	l := Label{p.nameRef - 1, b.ref(p.value)}
	first := b.withValue[l.Value]
	if first > 0 && b.labels[first-1] == l {
		return first - 1
	}
	if first > 0 {
		if i, ok := b.byLabel[l]; ok {
			return i
		}
	}
	i := uint32(len(b.labels))
	if first == 0 {
		b.withValue[l.Value] = i + 1
	} else {
		b.byLabel[l] = i
	}
	b.labels = append(b.labels, l)
	b.text += int64(len(p.name) + len(p.value))
	return i
}

func (b *Batch) ref(text string) uint32 {
	if r, ok := b.refs[text]; ok {
		return r
	}
	r := uint32(len(b.texts))
	b.refs[text] = r
	b.texts = append(b.texts, text)
	b.withValue = append(b.withValue, 0)
	return r
}

// Len is the number of sets.
func (b *Batch) Len() int { return len(b.ends) }

// Texts are all names and values, each once, in the order in which they came.
func (b *Batch) Texts() []string { return b.texts }

// Labels are all labels, each once, in the order in which they came.
func (b *Batch) Labels() []Label { return b.labels }

// Set is a label set as indexes of Labels, ordered by label name.
func (b *Batch) Set(i int) []uint32 {
	from := 0
	if i > 0 {
		from = b.ends[i-1]
	}
	return b.sets[from:b.ends[i]]
}

// ExpandedBytes is the text of all sets, as often as it occurs.
func (b *Batch) ExpandedBytes() int64 { return b.expanded }

// MostBytes bounds what all sets together add to a [Table]'s Bytes.
func (b *Batch) MostBytes() int64 {
	return codeBytes*int64(len(b.sets)) + b.text + int64(len(b.labels))*(columnBytes+entryBytes) +
		b.shapes*shapeBytes + 8*b.shapeColumns
}

// keptBytes bounds what an idle Batch keeps of a huge one.
const keptBytes = 4 << 20

// Reset empties the batch and lets go of all labels.
func (b *Batch) Reset() {
	if cap(b.sets)*4+cap(b.texts)*68+cap(b.labels)*32+cap(b.ends)*16+cap(b.prev)*40+cap(b.hashed) > keptBytes {
		*b = Batch{}
		return
	}
	clear(b.texts)
	clear(b.refs)
	clear(b.byLabel)
	clear(b.prev)
	*b = Batch{
		IDs: b.IDs[:0], texts: b.texts[:0], labels: b.labels[:0], sets: b.sets[:0], ends: b.ends[:0],
		refs: b.refs, withValue: b.withValue[:0], byLabel: b.byLabel, prev: b.prev[:0], hashed: b.hashed[:0],
	}
}
