package prom

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/series"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// AppendFunc makes a batch durable, whole or not at all; see
// writer.Writer.Append.
type AppendFunc func(context.Context, series.Batch) error

// RetryAfterSeconds is what a client is told to wait when the writer is
// overloaded: about the time of one flush.
const RetryAfterSeconds = "10"

var (
	// errMalformed: the request is no remote-write message.
	errMalformed = errors.New("malformed remote-write request")
	// errHistogram: a native histogram contradicts itself.
	errHistogram = errors.New("invalid native histogram")
)

// WriteHandler receives remote write 1.0: upstream's handler speaks the
// protocol, and bounds and decompresses the body.
//
// A request is acknowledged with 204 once all of its samples are durable, and
// refused whole otherwise: 400 for what will never be accepted, with the
// reason; 429 with Retry-After when the writer is overloaded; 503 for what may
// pass. Exemplars and metadata are not kept yet and are ignored.
//
// logger hears of failures; nil discards.
func WriteHandler(appendBatch AppendFunc, logger *slog.Logger) http.Handler {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return remote.NewWriteHandler(&writeStore{appendBatch}, remote.MessageTypes{remote.WriteV1MessageType}, remote.WithWriteHandlerLogger(logger))
}

type writeStore struct{ append AppendFunc }

// Store implements the storage of upstream's handler; the body of r is
// decompressed already.
func (s *writeStore) Store(r *http.Request, _ remote.WriteMessageType) (*remote.WriteResponse, error) {
	resp := remote.NewWriteResponse()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		resp.SetStatusCode(http.StatusBadRequest)
		return resp, fmt.Errorf("read request: %w", err)
	}
	batch, err := decodeV1(body)
	if err == nil && len(batch) > 0 {
		err = s.append(r.Context(), batch)
	}
	if err != nil {
		code := writeStatus(err)
		resp.SetStatusCode(code)
		if code == http.StatusTooManyRequests {
			resp.SetExtraHeader("Retry-After", RetryAfterSeconds)
		}
		return resp, err
	}
	resp.SetStatusCode(http.StatusNoContent)
	return resp, nil
}

// permanent are the errors that no retry will cure.
var permanent = []error{
	errMalformed, errHistogram,
	series.ErrNoMetricName, series.ErrDuplicateLabel, series.ErrUnsortedLabels, series.ErrInvalidLabel,
	writer.ErrInvalidSample, writer.ErrTooManyPartitions, wal.ErrRecordTooLarge,
}

func writeStatus(err error) int {
	for _, p := range permanent {
		if errors.Is(err, p) {
			return http.StatusBadRequest
		}
	}
	if errors.Is(err, writer.ErrOverloaded) {
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}

// Bounds of one request, beyond upstream's 32 MiB after decompression. The
// smallest element of a message is two bytes, which decode to a struct of up
// to a hundred; so elements are counted before anything is decoded.
const (
	// maxElements bounds series, labels, samples and the like together. A
	// sender's request has some ten thousand.
	maxElements = 1 << 20
	// maxLabelBytes bounds a label's name or value; package labels panics
	// above 16 MiB.
	maxLabelBytes = 1 << 20
)

// decodeV1 turns a WriteRequest into a batch. Labels keep the order of the
// request, so that the writer can refuse one that is out of order.
func decodeV1(body []byte) (series.Batch, error) {
	if n, err := countElements(body, 0); err != nil {
		return nil, err
	} else if n > maxElements {
		return nil, fmt.Errorf("%w: more than %d series, labels and samples; send fewer at a time", errMalformed, maxElements)
	}
	var req prompb.WriteRequest
	if err := req.Unmarshal(body); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	batch := make(series.Batch, 0, len(req.Timeseries))
	b := labels.NewScratchBuilder(16)
	for i := range req.Timeseries {
		s, err := seriesOf(&req.Timeseries[i], &b)
		if err != nil {
			return nil, fmt.Errorf("series %d: %w", i, err)
		}
		batch = append(batch, s)
	}
	return batch, nil
}

// countElements counts the length-delimited fields of a message (level 0), of
// its series and metadata (1) and of exemplars (2), and stops soon after
// maxElements. It allocates nothing.
func countElements(message []byte, level int) (n int, err error) {
	const exemplars = 3 // the field of a series
	for len(message) > 0 && n <= maxElements {
		number, typ, size := protowire.ConsumeTag(message)
		if size < 0 {
			return 0, fmt.Errorf("%w: %w", errMalformed, protowire.ParseError(size))
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(number, typ, message); size < 0 {
			return 0, fmt.Errorf("%w: %w", errMalformed, protowire.ParseError(size))
		}
		value := message[:size]
		message = message[size:]
		if typ != protowire.BytesType {
			continue
		}
		n++
		if level == 0 || level == 1 && number == exemplars {
			field, _ := protowire.ConsumeBytes(value)
			k, err := countElements(field, level+1)
			if err != nil {
				return 0, err
			}
			n += k
		}
	}
	return n, nil
}

// seriesOf converts one series; floats come before histograms, as in the
// message.
func seriesOf(ts *prompb.TimeSeries, b *labels.ScratchBuilder) (series.Series, error) {
	b.Reset()
	for _, l := range ts.Labels {
		if len(l.Name) > maxLabelBytes || len(l.Value) > maxLabelBytes {
			return series.Series{}, fmt.Errorf("%w: label %.100q of %d bytes with a value of %d", series.ErrInvalidLabel, l.Name, len(l.Name), len(l.Value))
		}
		b.Add(l.Name, l.Value)
	}
	s := series.Series{Labels: b.Labels(), Samples: make([]series.Sample, 0, len(ts.Samples)+len(ts.Histograms))}
	for _, p := range ts.Samples {
		t, err := timestamp(p.Timestamp)
		if err != nil {
			return series.Series{}, err
		}
		s.Samples = append(s.Samples, series.Sample{Time: t, Value: p.Value})
	}
	for i := range ts.Histograms {
		h := ts.Histograms[i]
		t, err := timestamp(h.Timestamp)
		if err != nil {
			return series.Series{}, err
		}
		if err := validateHistogram(&h); err != nil {
			return series.Series{}, fmt.Errorf("%w: %w", errHistogram, err)
		}
		h.Timestamp = 0 // the row has it
		data, err := h.Marshal()
		if err != nil {
			return series.Series{}, fmt.Errorf("%w: %w", errHistogram, err)
		}
		s.Samples = append(s.Samples, series.Sample{Time: t, Histogram: data})
	}
	return s, nil
}

// validateHistogram refuses what the query engine could not read: it trusts
// spans and buckets to fit each other.
func validateHistogram(h *prompb.Histogram) error {
	if h.IsFloatHistogram() {
		return h.ToFloatHistogram().Validate()
	}
	return h.ToIntHistogram().Validate()
}

// timestamp refuses what series.FromMillis would saturate.
func timestamp(ms int64) (series.Timestamp, error) {
	t := series.FromMillis(ms)
	if t.Millis() != ms {
		return 0, fmt.Errorf("%w: timestamp %d ms is out of range", writer.ErrInvalidSample, ms)
	}
	return t, nil
}
