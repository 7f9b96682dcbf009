package s3server_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cardinalsin/internal/s3server"
)

func start(t *testing.T, ctx context.Context, dir string) *s3server.Server {
	t.Helper()
	s, err := s3server.Start(ctx, dir)
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

func serves(s *s3server.Server) bool {
	resp, err := http.Get(s.Endpoint)
	return err == nil && resp.Body.Close() == nil
}

func TestStartAndStop(t *testing.T) {
	dir := t.TempDir()
	s := start(t, t.Context(), dir)
	if !serves(s) {
		t.Error("it does not serve")
	}
	if !strings.HasPrefix(s.Endpoint, "http://127.0.0.1:") {
		t.Errorf("it is at %s", s.Endpoint)
	}
	if info, err := os.Stat(filepath.Join(dir, s.Bucket)); err != nil || !info.IsDir() {
		t.Errorf("no bucket: %v", err)
	}
	if url := s.StoreURL("a/b"); !strings.HasPrefix(url, "s3://"+s.Bucket+"/a/b?") || strings.Contains(url, s.SecretKey) {
		t.Errorf("store URL %s", url)
	}
	if len(s.Env()) != 3 {
		t.Errorf("environment %q", s.Env())
	}
	other := start(t, t.Context(), t.TempDir()) // on a port of its own
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
	if serves(s) {
		t.Error("it still serves")
	}
	if !serves(other) {
		t.Error("Stop has ended another server")
	}
}

func TestErrors(t *testing.T) {
	if _, err := s3server.Find(); errors.Is(err, s3server.ErrNotInstalled) {
		t.Skip(err)
	}
	if _, err := s3server.Start(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("it starts without a directory")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s3server.Start(ctx, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func TestNotInstalled(t *testing.T) {
	t.Chdir(t.TempDir()) // outside of the repository
	t.Setenv("CARDINAL_TOOLS", t.TempDir())
	if _, err := s3server.Start(t.Context(), t.TempDir()); !errors.Is(err, s3server.ErrNotInstalled) {
		t.Error(err)
	}
}

func TestUnknownKind(t *testing.T) {
	t.Setenv("CARDINAL_S3", "ftp")
	if _, err := s3server.Find(); err == nil || errors.Is(err, s3server.ErrNotInstalled) {
		t.Error(err)
	}
	if _, err := s3server.Start(t.Context(), t.TempDir()); err == nil || errors.Is(err, s3server.ErrNotInstalled) {
		t.Error(err)
	}
}
