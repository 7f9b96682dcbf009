package nativehist

import (
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"

	"cardinalsin/ingest"
)

// bits compares floats by their bits.
var bits = cmp.Comparer(func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) })

func TestEncodeKeepsBits(t *testing.T) {
	odd := prompb.FromIntHistogram(0, tsdbutil.GenerateTestHistogram(1))
	odd.Sum, odd.ZeroThreshold = math.Copysign(0, -1), math.Copysign(0, -1)
	nan := prompb.FromFloatHistogram(0, tsdbutil.GenerateTestFloatHistogram(1))
	nan.Sum = math.Float64frombits(0x7ff0000000000123)
	for name, h := range map[string]prompb.Histogram{
		"int":            prompb.FromIntHistogram(0, tsdbutil.GenerateTestHistogram(3)),
		"gauge":          prompb.FromFloatHistogram(0, tsdbutil.GenerateTestGaugeFloatHistogram(4)),
		"float":          prompb.FromFloatHistogram(0, tsdbutil.GenerateTestFloatHistogram(5)),
		"custom buckets": prompb.FromIntHistogram(0, tsdbutil.GenerateTestCustomBucketsHistogram(5)),
		"stale":          prompb.FromFloatHistogram(0, &histogram.FloatHistogram{Sum: math.Float64frombits(value.StaleNaN)}),
		"negative zeros": odd,
		"NaN payload":    nan,
		"empty":          {},
	} {
		t.Run(name, func(t *testing.T) {
			sent := h
			sent.Timestamp, sent.XXX_unrecognized = 12345, []byte{0x88, 0x01, 7}
			data, err := Encode(&sent)
			if err != nil {
				t.Fatal(err)
			}
			var got prompb.Histogram
			if err := got.Unmarshal(data); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(h, got, bits, cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
			if sent.Timestamp != 12345 {
				t.Error("the histogram was changed")
			}
		})
	}
}

func TestEncodeRefuses(t *testing.T) {
	missing := prompb.FromIntHistogram(0, tsdbutil.GenerateTestHistogram(1))
	missing.PositiveDeltas = missing.PositiveDeltas[1:]
	negative := prompb.FromFloatHistogram(0, tsdbutil.GenerateTestFloatHistogram(1))
	negative.PositiveCounts[0] = -1
	schema := prompb.FromIntHistogram(0, tsdbutil.GenerateTestHistogram(1))
	schema.Schema = 77
	for name, h := range map[string]prompb.Histogram{"missing bucket": missing, "negative bucket": negative, "unknown schema": schema} {
		t.Run(name, func(t *testing.T) {
			if _, err := Encode(&h); !errors.Is(err, ingest.ErrInvalidHistogram) {
				t.Errorf("err = %v", err)
			}
		})
	}
}

func TestFromModel(t *testing.T) {
	h, fh := tsdbutil.GenerateTestHistogram(2), tsdbutil.GenerateTestFloatHistogram(2)
	for name, c := range map[string]struct {
		h    *histogram.Histogram
		fh   *histogram.FloatHistogram
		want prompb.Histogram
	}{
		"int":   {h, nil, prompb.FromIntHistogram(0, h)},
		"float": {nil, fh, prompb.FromFloatHistogram(0, fh)},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := FromModel(c.h, c.fh)
			if err != nil {
				t.Fatal(err)
			}
			var got prompb.Histogram
			if err := got.Unmarshal(data); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got, bits, cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
		})
	}
}
