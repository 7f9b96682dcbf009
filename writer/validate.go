package writer

import (
	"fmt"
	"math"
	"sync"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
	"cardinalsin/shard"
)

// valid says of a batch that it may be stored.
type valid struct {
	samples int
	bytes   int64 // at most what it adds to the head
}

const (
	// A batch that is accepted must fit a chunk, or no flush after it would
	// succeed; package chunk takes label sets and histograms of 16 MiB.
	maxHistogramBytes = 8 << 20
	// MaxLabelBytes bounds the text of a label set.
	MaxLabelBytes = 1 << 20
)

// CheckSample refuses a sample that a Writer would refuse, and tells why. Its
// error wraps ErrInvalidSample.
func CheckSample(s *series.Sample) error {
	if n := len(s.Histogram); n > maxHistogramBytes {
		return fmt.Errorf("%w: histogram of %d bytes, limit %d", ErrInvalidSample, n, maxHistogramBytes)
	}
	if s.Time < series.MinTimestamp || s.Time > series.MaxTimestamp || s.Nanos > series.MaxNanos {
		return fmt.Errorf("%w: time %d µs and %d ns", ErrInvalidSample, s.Time, s.Nanos)
	}
	return nil
}

// labelSets is scratch for the label sets of a batch.
var labelSets = sync.Pool{New: func() any { return new(symbols.Batch) }}

// validate checks a whole batch and puts its label sets, without the labels
// whose value is empty, into sets, which is empty. It is pure, but for the map
// it is given; the batch is not changed. Errors: those of series.Validate,
// ErrInvalidSample, ErrTooManyPartitions.
func validate(b series.Batch, m *shard.Map, sets *symbols.Batch) (valid, error) {
	v := valid{bytes: 8} // of head.rows
	minTime, maxTime := series.Timestamp(math.MaxInt64), series.Timestamp(math.MinInt64)
	for i := range b {
		text, err := sets.Add(b[i].Labels)
		if err != nil {
			return valid{}, fmt.Errorf("series %d: %.300s: %w", i, b[i].Labels, err)
		}
		if text > MaxLabelBytes {
			return valid{}, fmt.Errorf("series %d: %.300s: %w: label set of %d bytes, limit %d", i, b[i].Labels, series.ErrInvalidLabel, text, MaxLabelBytes)
		}
		for j := range b[i].Samples {
			s := &b[i].Samples[j]
			if err := CheckSample(s); err != nil {
				return valid{}, fmt.Errorf("series %d: %.300s: sample %d: %w", i, b[i].Labels, j, err)
			}
			minTime, maxTime = min(minTime, s.Time), max(maxTime, s.Time)
			if s.Histogram != nil {
				v.bytes += histogramBytes + int64(len(s.Histogram))
			}
			if s.Start != 0 {
				v.bytes += startedBytes
			}
		}
		v.samples += len(b[i].Samples)
		// Slices grow to at most twice what is in them, and leave the room for
		// the first sample behind.
		v.bytes += seriesBytes + sampleBytes*int64(1+2*len(b[i].Samples))
	}
	v.bytes += sets.MostBytes()
	if v.samples == 0 {
		return v, nil
	}
	// The usual batch spans a day or two, and needs no counting.
	if days := int64(maxTime.Date()-minTime.Date()) + 1; days*int64(len(m.Shards)) > maxPartFiles {
		if n := countPartitions(b, sets, m); n > maxPartFiles {
			return valid{}, fmt.Errorf("%w: it needs %d files, a commit holds %d", ErrTooManyPartitions, n, maxPartFiles)
		}
	}
	return v, nil
}

// countPartitions counts the (date, shard) pairs of a batch.
func countPartitions(b series.Batch, sets *symbols.Batch, m *shard.Map) int {
	type partition struct {
		date  series.Date
		shard shard.ID
	}
	seen := map[partition]struct{}{}
	for i := range b {
		owner := m.Of(shard.KeyOf(b[i].Labels, sets.IDs[i]))
		for j := range b[i].Samples {
			seen[partition{b[i].Samples[j].Time.Date(), owner}] = struct{}{}
		}
	}
	return len(seen)
}
