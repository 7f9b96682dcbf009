package faultproxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
)

// errCut ends a body that a fault cuts.
var errCut = errors.New("cut")

// cut gives the first bytes of a body, and then breaks off.
type cut struct {
	io.ReadCloser
	left int64
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errCut
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// cutKey marks the context of a request whose response is to be cut.
type cutKey struct{}

// unknownLength is where a response is cut that does not say its length.
const unknownLength = 64

func cutResponse(resp *http.Response) error {
	if resp.Request.Context().Value(cutKey{}) == nil || resp.ContentLength == 0 || resp.Request.Method == http.MethodHead {
		return nil
	}
	left := int64(unknownLength)
	if resp.ContentLength > 0 {
		left = resp.ContentLength / 2
	}
	resp.Body = &cut{ReadCloser: resp.Body, left: left}
	return nil
}

// detach returns the request with its body in memory and a context that does
// not end with the client's connection. A client that hangs up before it has
// sent its body has sent nothing.
func detach(r *http.Request) *http.Request {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	d := r.Clone(context.WithoutCancel(r.Context()))
	d.Body = io.NopCloser(bytes.NewReader(body))
	if len(body) == 0 {
		d.Body = http.NoBody
	}
	return d
}

// discard is a ResponseWriter whose reader has hung up.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}
