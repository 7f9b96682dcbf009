package ingest

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"cardinalsin/series"
	"cardinalsin/wal"
	"cardinalsin/writer"
)

// Reason says why something was refused; it is a label value in /metrics.
type Reason string

// Conditions that a protocol's decoder finds by itself; it wraps them with
// what it saw. Retrying never helps.
var (
	// ErrMalformed: the bytes are not what the protocol says.
	ErrMalformed = errors.New("malformed request")
	// ErrTooLarge: more bytes, series or samples than one request may have.
	ErrTooLarge = errors.New("request too large")
	// ErrUnsupported: well formed, and cannot be kept without loss.
	ErrUnsupported = errors.New("not supported")
	// ErrInvalidHistogram: a native histogram contradicts itself.
	ErrInvalidHistogram = errors.New("invalid native histogram")
	// ErrInvalidTenant: no tenant may have that name.
	ErrInvalidTenant = errors.New("invalid tenant")
	// ErrLimit: a limit of the tenant on what one request may hold.
	ErrLimit = errors.New("limit exceeded")
	// ErrSeriesLimit: the tenant has as many active series as it may.
	ErrSeriesLimit = errors.New("too many active series")
	// ErrRate: the tenant sends more than it may; later is fine.
	ErrRate = errors.New("rate limit exceeded")
)

// conditions are what an error can be; the first that applies counts.
var conditions = []struct {
	is     error
	reason Reason
	status int
}{
	{ErrMalformed, "malformed", http.StatusBadRequest},
	{ErrTooLarge, "too_large", http.StatusRequestEntityTooLarge},
	{ErrUnsupported, "unsupported", http.StatusBadRequest},
	{ErrInvalidHistogram, "invalid_histogram", http.StatusBadRequest},
	{ErrInvalidTenant, "invalid_tenant", http.StatusBadRequest},
	{ErrLimit, "limit", http.StatusBadRequest},
	{ErrSeriesLimit, "series_limit", http.StatusTooManyRequests},
	{ErrRate, "rate", http.StatusTooManyRequests},
	{series.ErrNoMetricName, "no_metric_name", http.StatusBadRequest},
	{series.ErrDuplicateLabel, "duplicate_label", http.StatusBadRequest},
	{series.ErrUnsortedLabels, "unsorted_labels", http.StatusBadRequest},
	{series.ErrInvalidLabel, "invalid_label", http.StatusBadRequest},
	{writer.ErrInvalidSample, "invalid_sample", http.StatusBadRequest},
	{writer.ErrTooManyPartitions, "too_many_days", http.StatusBadRequest},
	{wal.ErrRecordTooLarge, "too_large", http.StatusRequestEntityTooLarge},
	{writer.ErrOverloaded, "overloaded", http.StatusTooManyRequests},
	{wal.ErrFull, "wal_full", http.StatusServiceUnavailable},
}

// RetryAfter is what a client is told to wait with 429: about a flush.
const RetryAfter = 10 * time.Second

// RetryAfterSeconds is RetryAfter as the header of that name wants it.
var RetryAfterSeconds = strconv.Itoa(int(RetryAfter / time.Second))

// Classify gives the reason of a refusal and the HTTP status that says it: 4xx
// for what will never be accepted as it is, 429 (with RetryAfter) for what
// comes too fast, 503 for what may pass.
func Classify(err error) (Reason, int) {
	for _, c := range conditions {
		if errors.Is(err, c.is) {
			return c.reason, c.status
		}
	}
	return "unavailable", http.StatusServiceUnavailable
}

// TenantHeader names the tenant, over HTTP and as gRPC metadata.
const TenantHeader = "X-Scope-OrgID"
