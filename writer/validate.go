package writer

import (
	"fmt"
	"math"
	"sync"

	"cardinalsin/internal/symbols"
	"cardinalsin/series"
	"cardinalsin/shard"
)

// valid is a batch that may be stored.
type valid struct {
	batch   series.Batch // shares memory with the one that came in
	ids     []series.ID
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

var checkers = sync.Pool{New: func() any { return new(series.Checker) }}

// validate checks a whole batch and drops labels with empty values. It is
// pure, but for the map it is given; the batch is not changed. Errors: those
// of series.Validate, ErrInvalidSample, ErrTooManyPartitions.
func validate(b series.Batch, m *shard.Map) (valid, error) {
	v := valid{batch: b, ids: make([]series.ID, len(b)), bytes: 8} // 8: head.rows
	copied := false
	minTime, maxTime := series.Timestamp(math.MaxInt64), series.Timestamp(math.MinInt64)
	checker := checkers.Get().(*series.Checker)
	defer checkers.Put(checker)
	defer checker.Reset() // it must not hold the request's memory
	for i := range b {
		l, id, err := checker.Check(b[i].Labels)
		if err != nil {
			return valid{}, fmt.Errorf("series %d: %.300s: %w", i, b[i].Labels, err)
		}
		if l.ByteSize() != b[i].Labels.ByteSize() {
			if !copied {
				v.batch, copied = append(series.Batch(nil), b...), true
			}
			v.batch[i].Labels = l
		}
		if n := l.ByteSize(); n > MaxLabelBytes {
			return valid{}, fmt.Errorf("series %d: %.300s: %w: label set of %d bytes, limit %d", i, l, series.ErrInvalidLabel, n, MaxLabelBytes)
		}
		for j := range b[i].Samples {
			s := &b[i].Samples[j]
			if err := CheckSample(s); err != nil {
				return valid{}, fmt.Errorf("series %d: %.300s: sample %d: %w", i, l, j, err)
			}
			minTime, maxTime = min(minTime, s.Time), max(maxTime, s.Time)
			if s.Histogram != nil {
				v.bytes += histogramBytes + int64(len(s.Histogram))
			}
			if s.Start != 0 {
				v.bytes += startedBytes
			}
		}
		v.ids[i] = id
		v.samples += len(b[i].Samples)
		// Slices grow to at most twice what is in them, and leave the room for
		// the first sample behind.
		fresh, text := checker.Fresh()
		v.bytes += seriesBytes + symbols.MostBytes(l.Len(), fresh, text) + sampleBytes*int64(1+2*len(b[i].Samples))
	}
	if v.samples == 0 {
		return v, nil
	}
	// The usual batch spans a day or two, and needs no counting.
	if days := int64(maxTime.Date()-minTime.Date()) + 1; days*int64(len(m.Shards)) > maxPartFiles {
		if n := countPartitions(&v, m); n > maxPartFiles {
			return valid{}, fmt.Errorf("%w: it needs %d files, a commit holds %d", ErrTooManyPartitions, n, maxPartFiles)
		}
	}
	return v, nil
}

// countPartitions counts the (date, shard) pairs of a batch.
func countPartitions(v *valid, m *shard.Map) int {
	type partition struct {
		date  series.Date
		shard shard.ID
	}
	seen := map[partition]struct{}{}
	for i := range v.batch {
		owner := m.Of(shard.KeyOf(v.batch[i].Labels, v.ids[i]))
		for j := range v.batch[i].Samples {
			seen[partition{v.batch[i].Samples[j].Time.Date(), owner}] = struct{}{}
		}
	}
	return len(seen)
}
