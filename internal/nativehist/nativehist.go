// Package nativehist checks native histograms and encodes them as a table
// keeps them: Prometheus' protobuf message without its timestamp, which the
// row has.
//
// It stands beside the module's root, below the protocols that carry native
// histograms, and does no I/O.
//
// INVARIANT: what Encode returns can be evaluated by the query engine, which
// trusts spans and buckets to fit each other, and has every bit of what went
// in.
package nativehist

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/prompb"
	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/ingest"
)

// Encode encodes a histogram; its timestamp and fields that upstream does not
// know are left out. Its error wraps ingest.ErrInvalidHistogram.
func Encode(h *prompb.Histogram) ([]byte, error) {
	if err := validate(h); err != nil {
		return nil, fmt.Errorf("%w: %w", ingest.ErrInvalidHistogram, err)
	}
	kept := *h
	kept.Timestamp, kept.XXX_unrecognized = 0, nil
	data, err := kept.Marshal()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ingest.ErrInvalidHistogram, err)
	}
	// Upstream's encoder takes -0 for 0 and leaves it out.
	const sum, zeroThreshold = 3, 5
	data = appendNegativeZero(data, sum, h.Sum)
	return appendNegativeZero(data, zeroThreshold, h.ZeroThreshold), nil
}

// FromModel encodes the one of the two that is not nil.
func FromModel(h *histogram.Histogram, fh *histogram.FloatHistogram) ([]byte, error) {
	var p prompb.Histogram
	if fh != nil {
		p = prompb.FromFloatHistogram(0, fh)
	} else {
		p = prompb.FromIntHistogram(0, h)
	}
	return Encode(&p)
}

func appendNegativeZero(b []byte, number protowire.Number, v float64) []byte {
	if v != 0 || !math.Signbit(v) {
		return b
	}
	b = protowire.AppendTag(b, number, protowire.Fixed64Type)
	return binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
}

func validate(h *prompb.Histogram) error {
	if h.IsFloatHistogram() {
		return h.ToFloatHistogram().Validate()
	}
	return h.ToIntHistogram().Validate()
}
