package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"cardinalsin/storage"
)

// errStalled is the cause by which call ends a request that makes no progress.
var errStalled = errors.New("no progress")

// call is one call of the contract, and the one request that it makes. It
// travels in the request's context.
type call struct {
	op     storage.Op
	caller context.Context
	ctx    context.Context // ends with the caller's, or when the request stalls
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
	sent   atomic.Bool
	broken atomic.Bool // the response broke off within its body
	date   atomic.Pointer[time.Time]
}

type callKey struct{}

func (s *Store) begin(ctx context.Context, op storage.Op) *call {
	c := &call{op: op, caller: ctx, stall: s.stall}
	c.ctx, c.cancel = context.WithCancelCause(context.WithValue(ctx, callKey{}, c))
	c.timer = time.AfterFunc(s.stall, func() { c.cancel(errStalled) })
	return c
}

// progress puts off the stall.
func (c *call) progress() { c.timer.Reset(c.stall) }

func (c *call) end() {
	c.timer.Stop()
	c.cancel(nil)
}

func (c *call) responseDate() time.Time {
	if date := c.date.Load(); date != nil {
		return *date
	}
	return time.Time{}
}

// transport sends requests, tells the clock of the responses' dates, and the
// call of its progress.
type transport struct {
	clock  *clock
	client *http.Client
}

// Do implements the SDK's HTTPClient.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	c, ok := req.Context().Value(callKey{}).(*call)
	if !ok {
		return t.client.Do(req) // not one of ours, such as a session of S3 Express
	}
	c.sent.Store(true)
	sent := present()
	resp, err := t.client.Do(req)
	if err != nil {
		return resp, err
	}
	c.progress()
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.date.Store(&date)
		t.clock.observe(date, sent, present())
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{&received{resp.Body, c}, resp.Body}
	return resp, nil
}

// received tells the call of each read of the response, and of its breaking
// off.
type received struct {
	io.Reader
	call *call
}

func (r *received) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if n > 0 {
		r.call.progress()
	}
	if err != nil && err != io.EOF {
		r.call.broken.Store(true)
	}
	return n, err
}

// progressing tells the call of each read.
type progressing struct {
	io.Reader
	call *call
}

func (p *progressing) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if n > 0 {
		p.call.progress()
	}
	return n, err
}

// upload is a body to send. It is read twice, since the SDK signs its hash.
func (c *call) upload(body io.ReadSeeker) io.ReadSeeker {
	return struct {
		io.Reader
		io.Seeker
	}{&progressing{body, c}, body}
}

// classify types an error of the SDK for the call that it ended.
func (c *call) classify(err error) error {
	var resp *smithyhttp.ResponseError
	// With a status below 300 the request was served, and its body broke off.
	if errors.As(err, &resp) && resp.Response != nil && resp.HTTPStatusCode() >= 300 {
		return c.byStatus(resp.HTTPStatusCode(), err)
	}
	if ended := c.caller.Err(); ended != nil {
		if c.op.Writes() && c.sent.Load() {
			return fmt.Errorf("%w: %w", storage.ErrUnknownOutcome, ended)
		}
		return ended
	}
	if !c.sent.Load() {
		return err // no credentials, say: nothing has reached the store
	}
	if errors.Is(context.Cause(c.ctx), errStalled) {
		err = fmt.Errorf("%w for %v: %w", errStalled, c.stall, err)
	}
	return c.mayPass(err)
}

// mayPass is for failures that say nothing of the request's fate.
func (c *call) mayPass(err error) error {
	if c.op.Writes() {
		return fmt.Errorf("%w: %w", storage.ErrUnknownOutcome, err)
	}
	return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
}

// byStatus types a response by its status and S3 error code (S3 API
// reference, "Error responses").
func (c *call) byStatus(status int, err error) error {
	code := ""
	var api smithy.APIError
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	as := func(condition error) error { return fmt.Errorf("%w: %w", condition, err) }
	switch code {
	case "NoSuchBucket":
		return as(storage.ErrNoStore)
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired": // 400
		return as(storage.ErrPermission)
	case "RequestTimeout": // 400: the body did not arrive in time
		return c.mayPass(err)
	case "NotImplemented": // also with statuses other than 501
		return as(storage.ErrStoreRefused)
	case "XMinioStorageFull", "InsufficientStorage", "QuotaExceeded":
		return as(storage.ErrFull)
	case "ExistingObjectIsDirectory", "ObjectParentIsFile", "KeyTooLongError", "XMinioInvalidObjectName":
		return as(storage.ErrInvalidKey) // servers on file systems
	}
	switch {
	case code == "" && c.broken.Load() && (status == http.StatusNotFound || status == http.StatusBadRequest):
		return c.mayPass(err) // what was missing, or wrong, went under
	case status == http.StatusNotFound:
		switch {
		case code != "NoSuchKey":
			// A page of some proxy, say. To take it for "no such object"
			// would make a full table look empty.
			return as(storage.ErrNoStore)
		case c.op == storage.OpPutIfMatch:
			return as(storage.ErrPreconditionFailed)
		}
		return as(storage.ErrNotFound)
	case status == http.StatusPreconditionFailed && c.op == storage.OpPutIfAbsent:
		return as(storage.ErrAlreadyExists)
	case status == http.StatusPreconditionFailed && c.op == storage.OpPutIfMatch:
		return as(storage.ErrPreconditionFailed)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return as(storage.ErrPermission)
	case status == http.StatusRequestedRangeNotSatisfiable:
		return as(storage.ErrInvalidRange)
	case status == http.StatusInsufficientStorage:
		return as(storage.ErrFull)
	case status == http.StatusNotImplemented:
		return as(storage.ErrStoreRefused)
	case status < 400: // a redirect: the bucket is elsewhere
		return as(storage.ErrNoStore)
	case status >= 500, status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status == http.StatusConflict:
		return c.mayPass(err)
	}
	return err // the request was refused as it stands
}

// clock estimates the server's clock. A Date header has whole seconds, and was
// written between the sending of the request and the receipt of the response,
// so at receipt the server's clock is within [date, date + 1 s + that time].
// The estimate is kept within the bounds of the last response.
type clock struct {
	// mu guards all below.
	mu     sync.Mutex
	known  bool
	server time.Time // the server's clock
	local  instant   // at this moment of ours
}

// instant is one moment by both clocks of this machine.
type instant struct{ monotonic, wall time.Time }

func present() instant {
	now := time.Now()
	return instant{monotonic: now, wall: now.Round(0)}
}

// maxJump is how far the two may part before the monotonic clock is believed
// to have stopped, as it does while a machine sleeps.
const maxJump = 2 * time.Second

func (c *clock) observe(date time.Time, sent, received instant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	estimate, ok := c.at(received)
	switch latest := date.Add(time.Second + received.monotonic.Sub(sent.monotonic)); {
	case !ok || estimate.Before(date):
		estimate = date
	case estimate.After(latest):
		estimate = latest
	}
	c.known, c.server, c.local = true, estimate, received
}

func (c *clock) now() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at(present())
}

// at is the estimate for a moment of ours; the caller holds mu.
func (c *clock) at(local instant) (time.Time, bool) {
	passed := local.monotonic.Sub(c.local.monotonic)
	if !c.known || (local.wall.Sub(c.local.wall)-passed).Abs() > maxJump {
		return time.Time{}, false
	}
	return c.server.Add(passed), true
}
