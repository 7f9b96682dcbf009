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

// errMalformed: the request is no remote-write message.
var errMalformed = errors.New("malformed remote-write request")

// WriteHandler receives remote write 1.0: upstream's handler speaks the
// protocol, and bounds and decompresses the body.
//
// A request is acknowledged with 204 once all of its samples are durable, and
// refused whole otherwise: 400 for what will never be accepted, with the
// reason; 429 with Retry-After when the writer is overloaded; 503 for what may
// pass. Exemplars and metadata are not kept yet and are ignored.
func WriteHandler(appendBatch AppendFunc, logger *slog.Logger) http.Handler {
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
	errMalformed,
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

// decodeV1 turns a WriteRequest into a batch. Labels keep the order of the
// request, so that the writer can refuse one that is out of order.
func decodeV1(body []byte) (series.Batch, error) {
	var req prompb.WriteRequest
	if err := req.Unmarshal(body); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	batch := make(series.Batch, 0, len(req.Timeseries))
	b := labels.NewScratchBuilder(16)
	for i := range req.Timeseries {
		ts := &req.Timeseries[i]
		b.Reset()
		for _, l := range ts.Labels {
			b.Add(l.Name, l.Value)
		}
		s := series.Series{Labels: b.Labels(), Samples: make([]series.Sample, 0, len(ts.Samples)+len(ts.Histograms))}
		for _, p := range ts.Samples {
			t, err := timestamp(p.Timestamp)
			if err != nil {
				return nil, err
			}
			s.Samples = append(s.Samples, series.Sample{Time: t, Value: p.Value})
		}
		for j := range ts.Histograms {
			h := ts.Histograms[j]
			t, err := timestamp(h.Timestamp)
			if err != nil {
				return nil, err
			}
			h.Timestamp = 0 // the row has it
			data, err := h.Marshal()
			if err != nil {
				return nil, fmt.Errorf("%w: histogram: %w", errMalformed, err)
			}
			s.Samples = append(s.Samples, series.Sample{Time: t, Histogram: data})
		}
		batch = append(batch, s)
	}
	return batch, nil
}

// timestamp refuses what series.FromMillis would saturate.
func timestamp(ms int64) (series.Timestamp, error) {
	t := series.FromMillis(ms)
	if t.Millis() != ms {
		return 0, fmt.Errorf("%w: timestamp %d ms is out of range", writer.ErrInvalidSample, ms)
	}
	return t, nil
}
