package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// load is how the requests are sent.
type load struct {
	clients int
	warm    int           // rounds before the measurement: they make the series
	limit   time.Duration // ends the measurement, if the rounds do not
}

// sent is what a load has measured, warm-up excepted.
type sent struct {
	samples   int64
	total     int64 // with the warm-up
	elapsed   time.Duration
	latencies []time.Duration // ascending, of each request until it was accepted
	refused   int             // 429 and 503, which were sent again
}

func (s *sent) rate() float64 { return float64(s.samples) / s.elapsed.Seconds() }

func (s *sent) quantile(q float64) time.Duration {
	if len(s.latencies) == 0 {
		return 0
	}
	return s.latencies[int(q*float64(len(s.latencies)-1))]
}

// send posts the rounds by that many clients, each of which has requests of
// its own, waits for each answer, and so keeps the samples of a series in
// order. started is called when the warm-up is over.
func send(ctx context.Context, url string, in rounds, l load, started func() error) (*sent, error) {
	s := new(sent)
	if _, err := s.phase(ctx, url, in[:l.warm], l.clients, time.Time{}); err != nil {
		return nil, fmt.Errorf("warm up: %w", err)
	}
	*s = sent{total: s.samples}
	if err := started(); err != nil {
		return nil, err
	}
	begin := time.Now()
	_, err := s.phase(ctx, url, in[l.warm:], l.clients, begin.Add(l.limit))
	if err != nil {
		return nil, err
	}
	s.elapsed = time.Since(begin)
	s.total += s.samples
	slices.Sort(s.latencies)
	return s, nil
}

// phase sends rounds until the deadline, if there is one.
func (s *sent) phase(ctx context.Context, url string, in rounds, clients int, deadline time.Time) (*sent, error) {
	parts := make([]sent, clients)
	g, ctx := errgroup.WithContext(ctx)
	for c := range clients {
		g.Go(func() error {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}}
			defer client.CloseIdleConnections()
			for _, round := range in {
				for k := c; k < len(round); k += clients {
					if !deadline.IsZero() && time.Now().After(deadline) {
						return nil
					}
					if err := parts[c].post(ctx, client, url, round[k]); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	err := g.Wait()
	for i := range parts {
		s.samples += parts[i].samples
		s.refused += parts[i].refused
		s.latencies = append(s.latencies, parts[i].latencies...)
	}
	return s, err
}

var errRefused = errors.New("request refused")

// patience is how long a request that is refused for the moment is tried.
const patience = time.Minute

// post sends a request until it is accepted.
func (s *sent) post(ctx context.Context, client *http.Client, url string, b body) error {
	begin := time.Now()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(b.data))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/x-protobuf")
		req.Header.Set("Content-Encoding", "snappy")
		req.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
		switch {
		case resp.StatusCode/100 == 2:
			s.samples += int64(b.samples)
			s.latencies = append(s.latencies, time.Since(begin))
			return nil
		case resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable,
			time.Since(begin) > patience:
			return fmt.Errorf("%w: %d %s", errRefused, resp.StatusCode, answer)
		}
		s.refused++
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
