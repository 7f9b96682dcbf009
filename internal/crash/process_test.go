//go:build crash

package crash

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// server is one run of a program.
type server struct {
	t     *testing.T
	cmd   *exec.Cmd
	http  string        // address
	grpc  string        // address
	line  <-chan string // the first that it prints
	done  chan struct{}
	ended error // how it ended, once done is closed
}

// begin starts a program.
func begin(t *testing.T, env []string, program string, args ...string) *server {
	t.Helper()
	s := &server{t: t, cmd: exec.Command(program, args...), done: make(chan struct{})}
	s.cmd.Stderr = os.Stderr
	s.cmd.Env = append(os.Environ(), env...)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// It must not outlive a test that is broken off.
	t.Cleanup(s.kill)
	line := make(chan string, 1)
	s.line = line
	go func() {
		first, readErr := bufio.NewReader(out).ReadString('\n')
		line <- first
		s.ended = s.cmd.Wait()
		if s.ended == nil && readErr != nil {
			s.ended = readErr
		}
		close(s.done)
	}()
	return s
}

// ready waits until the program serves, or has ended.
func (s *server) ready() bool {
	s.t.Helper()
	for _, f := range strings.Fields(<-s.line) {
		if addr, ok := strings.CutPrefix(f, "http="); ok {
			s.http = addr
		}
		if addr, ok := strings.CutPrefix(f, "grpc="); ok {
			s.grpc = addr
		}
	}
	if s.http != "" && s.grpc != "" {
		return true
	}
	if !s.await(time.Second) {
		s.t.Fatal("the first line has no addresses")
	}
	return false
}

// launch runs a program until it serves, which it must.
func launch(t *testing.T, env []string, program string, args ...string) *server {
	t.Helper()
	s := begin(t, env, program, args...)
	if !s.ready() {
		t.Fatalf("the server did not get ready: %v", s.ended)
	}
	return s
}

// killed: the process has ended by SIGKILL.
func (s *server) killed() bool {
	var exit *exec.ExitError
	return errors.As(s.ended, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

// over: the process has ended.
func (s *server) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// await waits for the end, or for that long.
func (s *server) await(d time.Duration) bool {
	select {
	case <-s.done:
		return true
	case <-time.After(d):
		return false
	}
}

func (s *server) kill() {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Error(err)
	}
	<-s.done
}

func (s *server) signal(sig os.Signal) {
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Error(err)
	}
}

// stop ends it in order, which must succeed.
func (s *server) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	if !s.await(time.Minute) {
		s.t.Error("it does not stop")
		s.kill()
	}
	if s.ended != nil {
		s.t.Fatalf("graceful stop: %v", s.ended)
	}
}
