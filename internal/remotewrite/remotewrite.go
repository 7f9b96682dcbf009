// Package remotewrite is a minimal client of Prometheus remote write 1.0, for
// the demo and for tests that load a real server.
//
// It sends one request and reports exactly what the server said; it never
// retries, so that its callers know what was acknowledged.
package remotewrite

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
)

// Client sends to one endpoint. It may be used concurrently.
type Client struct {
	URL  string // ends in /api/v1/write
	HTTP *http.Client
}

// StatusError is an answer other than 2xx: the batch was not acknowledged.
type StatusError struct {
	Code int
	Body string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("remote write: status %d: %s", e.Code, e.Body)
}

// Send posts one request. nil means that every sample was acknowledged.
func (c *Client) Send(ctx context.Context, ts []prompb.TimeSeries) error {
	data, err := (&prompb.WriteRequest{Timeseries: ts}).Marshal()
	if err != nil {
		return fmt.Errorf("encode write request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL, bytes.NewReader(snappy.Encode(nil, data)))
	if err != nil {
		return fmt.Errorf("make write request: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "snappy")
	req.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("send write request: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("read write response: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return &StatusError{Code: resp.StatusCode, Body: string(bytes.TrimSpace(body))}
	}
	return nil
}
