// Package s3server runs an S3 server over a directory as a child process: for
// tests and for the demo against S3.
//
// It stands on nothing of ours. The server is versitygw, or minio where
// $CARDINAL_S3 says so, found in $CARDINAL_TOOLS or in .tools/bin beside
// go.mod. It listens on a free port of the loopback interface, with credentials
// made for the occasion and one bucket.
//
// It must never end a process that it did not start.
package s3server

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// ErrNotInstalled: the server's program was not found.
var ErrNotInstalled = errors.New("the S3 server is not installed")

// kind is how one program is run.
type kind struct {
	program string
	args    func(address, dir string) []string
	env     func(accessKey, secretKey string) []string
}

// kinds are what $CARDINAL_S3 may name; the first is the default.
var kinds = []kind{
	{
		program: "versitygw",
		args: func(address, dir string) []string {
			return []string{"--port", address, "--region", region, "--keep-alive", "--quiet", "posix", dir}
		},
		env: func(accessKey, secretKey string) []string {
			return []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey}
		},
	},
	{
		program: "minio",
		args: func(address, dir string) []string {
			// It would make a directory for certificates in the home directory.
			return []string{"server", "--quiet", "--address", address, "--certs-dir", filepath.Join(dir, ".certs"), dir}
		},
		env: func(accessKey, secretKey string) []string {
			return []string{
				"MINIO_ROOT_USER=" + accessKey, "MINIO_ROOT_PASSWORD=" + secretKey, "MINIO_SITE_REGION=" + region,
				"MINIO_BROWSER=off", "MINIO_UPDATE=off",
				"MINIO_CI_CD=1", // takes a directory beside the system's files
			}
		},
	},
}

// chosen is the kind that $CARDINAL_S3 names.
func chosen() (kind, error) {
	name := os.Getenv("CARDINAL_S3")
	for _, k := range kinds {
		if name == "" || name == k.program {
			return k, nil
		}
	}
	return kind{}, fmt.Errorf("CARDINAL_S3 names no server that we can run: %q", name)
}

const (
	region = "us-east-1"
	bucket = "cardinal"

	startTimeout = 20 * time.Second
	stopTimeout  = 5 * time.Second
)

// Server is a running server.
type Server struct {
	Endpoint  string // http://127.0.0.1:port
	Region    string
	Bucket    string // exists, and is empty at first
	AccessKey string
	SecretKey string
	Program   string // versitygw or minio

	cmd    *exec.Cmd
	output *tail
	exited chan struct{} // closed when the process has ended
	result error         // of the process; readable once exited is closed

	stop sync.Once
}

// Find returns the path of the server's program.
func Find() (string, error) {
	k, err := chosen()
	if err != nil {
		return "", err
	}
	return k.find()
}

func (k kind) find() (string, error) {
	var dirs []string
	if dir := os.Getenv("CARDINAL_TOOLS"); dir != "" {
		dirs = append(dirs, dir)
	}
	if root, ok := moduleRoot(); ok {
		dirs = append(dirs, filepath.Join(root, ".tools", "bin"))
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, k.program)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: looked for %s in %q", ErrNotInstalled, k.program, dirs)
}

// moduleRoot is the directory of go.mod, at or above the working directory.
func moduleRoot() (string, bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", false
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
}

// Start runs a server that keeps its objects in dir, which must exist, and
// returns when it serves. The caller stops it; the end of ctx kills it.
func Start(ctx context.Context, dir string) (*Server, error) {
	k, err := chosen()
	if err != nil {
		return nil, err
	}
	path, err := k.find()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("start %s: %w", k.program, err)
	}
	// Between our look for a free port and the server's use of it another
	// process may take it.
	const tries = 3
	for try := 1; ; try++ {
		s, err := k.start(ctx, path, dir)
		if err == nil {
			return s, nil
		}
		if try == tries || ctx.Err() != nil {
			return nil, fmt.Errorf("start %s: %w", k.program, err)
		}
	}
}

func (k kind) start(ctx context.Context, path, dir string) (*Server, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	s := &Server{
		Endpoint: "http://" + address, Region: region, Bucket: bucket,
		AccessKey: rand.Text(), SecretKey: rand.Text(), Program: k.program,
		output: &tail{limit: 4 << 10}, exited: make(chan struct{}),
	}
	s.cmd = exec.CommandContext(ctx, path, k.args(address, dir)...)
	s.cmd.Env = append(os.Environ(), k.env(s.AccessKey, s.SecretKey)...)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.SysProcAttr = processAttributes()
	s.cmd.WaitDelay = stopTimeout
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.result = s.cmd.Wait()
		close(s.exited)
	}()
	if err := s.waitReady(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// waitReady makes the bucket, which succeeds once the server serves. Any
// answer shows that it is ours: only it knows the credentials.
func (s *Server) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := s3.New(s3.Options{
		BaseEndpoint: aws.String(s.Endpoint),
		Region:       s.Region,
		UsePathStyle: true,
		Credentials:  credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
		Retryer:      aws.NopRetryer{},
		HTTPClient:   &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
	for {
		_, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &s.Bucket})
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("it ended (%w) and said: %s", s.result, s.output)
		case <-ctx.Done():
			return fmt.Errorf("it does not serve: %w; it said: %s", err, s.output)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Env returns the settings by which AWS clients reach the server, as
// NAME=value.
func (s *Server) Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s.AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_REGION=" + s.Region,
	}
}

// StoreURL returns the store URL for a prefix in the bucket; the credentials
// are not in it, see Env.
func (s *Server) StoreURL(prefix string) string {
	u := url.URL{Scheme: "s3", Host: s.Bucket, Path: "/" + prefix}
	u.RawQuery = url.Values{"endpoint": {s.Endpoint}, "region": {s.Region}, "path_style": {"true"}}.Encode()
	return u.String()
}

// Stop ends the server and waits for it. Calling it again does nothing.
func (s *Server) Stop() error {
	var err error
	s.stop.Do(func() { err = s.end() })
	return err
}

func (s *Server) end() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", s.Program, err)
	}
	select {
	case <-s.exited:
		return nil
	case <-time.After(stopTimeout):
	}
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", s.Program, err)
	}
	<-s.exited
	return nil
}

// tail keeps the last bytes written to it.
type tail struct {
	limit int

	// mu guards buf.
	mu  sync.Mutex
	buf []byte
}

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.limit; over > 0 {
		t.buf = bytes.Clone(t.buf[over:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
