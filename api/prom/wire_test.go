package prom

import (
	"context"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/ingest"
)

// The wire format by hand, for what no encoder writes.

func lenField(n protowire.Number, parts ...[]byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), slices.Concat(parts...))
}

func textField(n protowire.Number, s string) []byte { return lenField(n, []byte(s)) }

func intField(n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
}

func floatField(n protowire.Number, bits uint64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(nil, n, protowire.Fixed64Type), bits)
}

func group(n protowire.Number, in []byte) []byte {
	return slices.Concat(protowire.AppendTag(nil, n, protowire.StartGroupType), in, protowire.AppendTag(nil, n, protowire.EndGroupType))
}

func unpacked(n protowire.Number, refs ...uint64) (b []byte) {
	for _, r := range refs {
		b = append(b, intField(n, r)...)
	}
	return b
}

// TestWireLikeUpstream: protobuf's rules for what no encoder writes, held
// against upstream's decoders: both read the same, or both refuse.
func TestWireLikeUpstream(t *testing.T) {
	name := lenField(1, textField(1, "__name__"), textField(2, "m"))
	sample := lenField(2, floatField(1, 5), intField(2, 7))
	symbols := slices.Concat(textField(4, ""), textField(4, "__name__"), textField(4, "m"), textField(4, "help"))
	refs := lenField(1, []byte{1, 2})
	unknown := slices.Concat(intField(99, 1), floatField(98, 2), textField(97, "x"), group(96, group(95, intField(1, 1))),
		protowire.AppendFixed32(protowire.AppendTag(nil, 94, protowire.Fixed32Type), 3))
	h := prompb.FromIntHistogram(9, tsdbutil.GenerateTestHistogram(1))
	hist, err := h.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	v1 := func(parts ...[]byte) []byte { return lenField(1, parts...) }
	v2 := func(parts ...[]byte) []byte { return slices.Concat(symbols, lenField(5, parts...)) }
	for what, c := range map[string]struct {
		version int
		body    []byte
		refused bool
	}{
		"plain":                         {1, v1(name, sample), false},
		"fields out of order":           {1, v1(sample, lenField(3, intField(3, 4)), name), false},
		"unknown fields":                {1, slices.Concat(unknown, v1(unknown, lenField(1, unknown, textField(1, "__name__"), textField(2, "m")), lenField(2, unknown, intField(2, 1)), lenField(3, unknown))), false},
		"last of a label wins":          {1, v1(lenField(1, textField(1, "x"), textField(2, "y"), textField(1, "__name__"), textField(2, "m"))), false},
		"value before name":             {1, v1(lenField(1, textField(2, "m"), textField(1, "__name__"))), false},
		"label without value":           {1, v1(name, lenField(1, textField(1, "z"))), false},
		"long label":                    {1, v1(name, lenField(1, textField(1, string(make([]byte, 200))), textField(2, string(make([]byte, 300))))), false},
		"value of 127":                  {1, v1(name, lenField(1, textField(1, "z"), textField(2, string(make([]byte, 127))))), false},
		"value of 128":                  {1, v1(name, lenField(1, textField(1, "z"), textField(2, string(make([]byte, 128))))), false},
		"label, then unknown":           {1, v1(lenField(1, textField(1, "__name__"), textField(2, "m"), intField(3, 1))), false},
		"last of a sample wins":         {1, v1(name, lenField(2, floatField(1, 5), intField(2, 7), floatField(1, 6), intField(2, 8))), false},
		"empty sample":                  {1, v1(name, lenField(2)), false},
		"negative time":                 {1, v1(name, lenField(2, intField(2, ^uint64(0)))), false},
		"long varint":                   {1, v1(name, lenField(2, []byte{0x10, 0x87, 0x80, 0x80, 0x00})), false},
		"histograms between floats":     {1, v1(name, sample, lenField(4, hist), sample, lenField(4, hist)), false},
		"histogram, unpacked":           {1, v1(name, lenField(4, unpacked(12, 2, 2), lenField(11, intField(2, 2)), intField(1, 3))), false},
		"exemplars":                     {1, v1(lenField(3, name, floatField(1, 1), floatField(2, 2), floatField(2, 3), intField(3, 4)), name), true},
		"exemplars, last wins":          {1, v1(lenField(3, name, floatField(2, 2), floatField(2, 3), intField(3, 4), intField(3, 5)), name), false},
		"metadata, last wins":           {1, lenField(3, intField(1, 1), intField(1, 2), textField(2, "a"), textField(2, "b"), unknown), false},
		"series is a number":            {1, intField(1, 1), true},
		"label is a number":             {1, v1(intField(1, 1)), true},
		"name is a number":              {1, v1(lenField(1, intField(1, 1))), true},
		"sample value is a number":      {1, v1(lenField(2, intField(1, 1))), true},
		"sample time is a float":        {1, v1(lenField(2, floatField(2, 1))), true},
		"group that does not end":       {1, protowire.AppendTag(nil, 99, protowire.StartGroupType), true},
		"group that did not begin":      {1, protowire.AppendTag(nil, 99, protowire.EndGroupType), true},
		"field 0":                       {1, []byte{0, 0}, true},
		"wire type 7":                   {1, []byte{0x0f}, true},
		"length beyond the end":         {1, []byte{0x0a, 5, 1}, true},
		"length beyond 64 bits":         {1, []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, true},
		"varint that does not end":      {1, []byte{0x08, 0x80}, true},
		"plain, 2.0":                    {2, v2(refs, sample), false},
		"symbols at the end, 2.0":       {2, slices.Concat(lenField(5, refs, sample), symbols), false},
		"unpacked references, 2.0":      {2, v2(unpacked(1, 1, 2), sample), false},
		"packed and unpacked, 2.0":      {2, v2(lenField(1, []byte{1}), unpacked(1, 2), lenField(1, []byte{3}), lenField(1), unpacked(1, 3)), false},
		"long references, 2.0":          {2, v2(lenField(1, []byte{0x81, 0x80, 0x00, 2})), false},
		"reference beyond 32 bits, 2.0": {2, v2(lenField(1, protowire.AppendVarint(nil, 1<<32+1), []byte{2}), sample), false},
		"unknown fields, 2.0":           {2, slices.Concat(unknown, v2(unknown, refs, lenField(2, unknown, intField(3, 6)), lenField(4, unknown), lenField(5, unknown))), false},
		"start, last wins, 2.0":         {2, v2(refs, lenField(2, intField(3, 6), intField(3, 8))), false},
		"histogram with start, 2.0":     {2, v2(refs, lenField(3, hist, intField(17, 4), intField(17, 5))), false},
		"metadata merges, 2.0":          {2, v2(refs, lenField(5, intField(1, 1)), lenField(5, intField(3, 3))), false},
		"exemplar, 2.0":                 {2, v2(lenField(4, lenField(1, []byte{3, 2}), unpacked(1, 1, 3), floatField(2, 1), floatField(2, 4), intField(3, 5)), refs), false},
		"references as a float, 2.0":    {2, v2(floatField(1, 1)), true},
		"references cut, 2.0":           {2, v2(lenField(1, []byte{0x81})), true},
		"symbol is a number, 2.0":       {2, intField(4, 1), true},
		"start is a float, 2.0":         {2, v2(refs, lenField(2, floatField(3, 1))), true},
		"start of histogram, 2.0":       {2, v2(refs, lenField(3, hist, floatField(17, 1))), true},
		"metadata type is text, 2.0":    {2, v2(refs, lenField(5, textField(1, "x"))), true},
	} {
		t.Run(what, func(t *testing.T) {
			decode, upstream := (*decoder).decodeV1, byUpstreamV1
			if c.version == 2 {
				decode, upstream = (*decoder).decodeV2, byUpstreamV2
			}
			d := newDecoder(nil)
			err := decode(d, context.Background(), c.body)
			d.release()
			_, theirs := upstream(c.body)
			if (err != nil) != c.refused || (theirs != nil) != c.refused {
				t.Fatalf("ours: %v, upstream: %v; want refused: %v", err, theirs, c.refused)
			}
			if reason, _ := ingest.Classify(err); err != nil && reason != "malformed" {
				t.Errorf("%v is %s", err, reason)
			}
			sameAsUpstream(t, c.body, decode, upstream)
		})
	}
}
