package storetest

import (
	"context"
	"errors"
	"testing"

	"cardinalsin/internal/s3server"
)

// StartS3 runs the S3 server that $CARDINAL_S3 names (versitygw by default)
// for a test and stops it at the test's end. Where it is not installed the test
// is skipped, with the reason. A test that opens stores by URL sets the
// server's Env (or all of it by t.Setenv).
func StartS3(t testing.TB) *s3server.Server {
	t.Helper()
	s, err := s3server.Start(context.WithoutCancel(t.Context()), t.TempDir())
	if errors.Is(err, s3server.ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}
