package chunk

import "fmt"

// pair is one entry of an overflow map, by codes into the two dictionaries.
type pair struct{ key, value int32 }

// overflow is the decoded labels_overflow column.
type overflow struct {
	keys, values []string
	pairs        []pair
	starts       []int // by row, where its pairs begin; one more at the end
	runs         []run // rows with equal maps; the code is the first row
}

func decodeOverflow(keys, values *pages, kl, vl *leaf, rows int, buf *[]byte) (o overflow, err error) {
	kc, kstarts, err := decodeRepeated(keys, kl, rows, overflowEntryDef, &o.keys, buf)
	if err != nil {
		return o, err
	}
	vc, vstarts, err := decodeRepeated(values, vl, rows, overflowValueDef, &o.values, buf)
	if err != nil {
		return o, err
	}
	if len(kc) != len(vc) {
		return o, fmt.Errorf("%w: %d keys and %d values", ErrCorrupt, len(kc), len(vc))
	}
	o.starts = kstarts
	o.pairs = make([]pair, len(kc))
	for i := range kc {
		o.pairs[i] = pair{kc[i], vc[i]}
	}
	for row := range rows {
		if kstarts[row] != vstarts[row] {
			return o, fmt.Errorf("%w: keys and values of row %d do not match", ErrCorrupt, row)
		}
		code := int32(row)
		if row > 0 && o.same(row, row-1) {
			code = o.runs[len(o.runs)-1].code
		}
		o.runs = appendRun(o.runs, 1, code)
	}
	return o, nil
}

func (o *overflow) of(row int) []pair { return o.pairs[o.starts[row]:o.starts[row+1]] }

func (o *overflow) same(a, b int) bool {
	x, y := o.of(a), o.of(b)
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if x[i] != y[i] {
			return false
		}
	}
	return true
}

// get returns the value of a label in a row, "" where it is absent.
func (o *overflow) get(row int, label string) string {
	for _, p := range o.of(row) {
		if o.keys[p.key] == label {
			return o.values[p.value]
		}
	}
	return ""
}

// decodeRepeated reads one leaf of the map: the codes of its entries, and
// where each row's entries begin. entryDef is the level of a full entry.
func decodeRepeated(p *pages, l *leaf, rows int, entryDef int16, dict *[]string, buf *[]byte) (codes []int32, starts []int, err error) {
	if *dict, err = decodeTextDict(p, buf); err != nil {
		return nil, nil, err
	}
	starts = make([]int, 0, rows+1)
	for i := range p.data {
		page := &p.data[i]
		raw, reps, defs, values, err := page.content(*buf, l)
		if err != nil {
			return nil, nil, err
		}
		*buf = raw
		if page.encoding != encodingRLEDict && page.encoding != encodingPlainDict {
			return nil, nil, fmt.Errorf("%w: encoding %d in a map", ErrCorrupt, page.encoding)
		}
		h, err := codeReader(values)
		if err != nil {
			return nil, nil, err
		}
		rep, err := newHybrid(reps, bitsFor(l.maxRep))
		if err != nil {
			return nil, nil, err
		}
		err = levels(defs, bitsFor(l.maxDef), l.maxDef, int(page.values), func(def int16, n int) error {
			for range n {
				r, _, err := rep.next(1)
				if err != nil {
					return err
				}
				switch {
				case r == 0 && len(starts) < rows:
					starts = append(starts, len(codes))
				case r == 1 && len(starts) > 0 && def == entryDef && len(codes) > starts[len(starts)-1]:
				default:
					return fmt.Errorf("%w: repetition level %d", ErrCorrupt, r)
				}
				switch def {
				case entryDef:
					v, _, err := h.next(1)
					if err != nil {
						return err
					}
					if v >= uint32(len(*dict)) {
						return fmt.Errorf("%w: code %d in a dictionary of %d", ErrCorrupt, v, len(*dict))
					}
					codes = append(codes, int32(v))
				case 0, 1: // no map, or an empty one
				default:
					return fmt.Errorf("%w: map entry without a value", ErrCorrupt)
				}
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	if len(starts) != rows {
		return nil, nil, fmt.Errorf("%w: map of %d rows, not %d", ErrCorrupt, len(starts), rows)
	}
	return codes, append(starts, len(codes)), nil
}
