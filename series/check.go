package series

import (
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"
)

// Checker checks label sets one after the other. It gives what [Validate] and
// [IDOf] would, and walks the labels once: neighbours in a request nearly
// always have the same names and share most of their values, and what was
// found sound in the set before need not be looked at again.
//
// The zero value is ready. It may not be used concurrently.
type Checker struct {
	prev []labels.Label // of the set before, which was sound
	text []byte         // what the ID is the hash of

	fresh, freshText int
}

// Fresh tells of the set that was checked last how many of its labels the set
// before did not have at the same place, and the bytes of their text.
func (c *Checker) Fresh() (labels, text int) { return c.fresh, c.freshText }

// Check returns the labels without those whose value is empty, and the ID of
// what is left. It keeps references to l until the next call or Reset. Errors:
// those of Validate.
func (c *Checker) Check(l Labels) (Labels, ID, error) {
	c.text, c.fresh, c.freshText = c.text[:0], 0, 0
	k, sound, same, named, empty := 0, true, true, false, false
	l.Range(func(l labels.Label) {
		known := k < len(c.prev)
		if !known {
			c.prev = append(c.prev, labels.Label{})
		}
		p := &c.prev[k]
		sameName := known && p.Name == l.Name
		if !sameName {
			sound = sound && l.Name != "" && utf8.ValidString(l.Name)
			p.Name = l.Name
		}
		// Two names that were neighbours before are in order.
		if k > 0 && !(same && sameName) {
			sound = sound && c.prev[k-1].Name < l.Name
		}
		same = sameName
		sameValue := p.Value == l.Value
		if !sameValue {
			sound = sound && utf8.ValidString(l.Value)
			p.Value = l.Value
		}
		if !sameName || !sameValue {
			c.fresh++
			c.freshText += len(l.Name) + len(l.Value)
		}
		k++
		if l.Value == "" {
			empty = true
			return
		}
		named = named || l.Name == MetricName
		c.text = append(c.text, l.Name...)
		c.text = append(c.text, 0xff)
		c.text = append(c.text, l.Value...)
		c.text = append(c.text, 0xff)
	})
	// What is left of a longer set was never the neighbour of these.
	clear(c.prev[k:])
	c.prev = c.prev[:k]
	if !sound || !named {
		clear(c.prev)
		c.prev = c.prev[:0]
		if err := Validate(l); err != nil {
			return Labels{}, 0, err
		}
	}
	if empty {
		l = l.WithoutEmpty()
	}
	return l, ID(xxhash.Sum64(c.text)), nil
}

// keptBytes bounds what an idle Checker keeps of one huge label set.
const keptBytes = 64 << 10

// Reset lets go of the label set of the last call.
func (c *Checker) Reset() {
	clear(c.prev)
	c.prev = c.prev[:0]
	if cap(c.text) > keptBytes || cap(c.prev) > keptBytes/32 {
		*c = Checker{}
	}
}
