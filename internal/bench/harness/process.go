package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	errStatus = errors.New("unexpected answer")
	errReady  = errors.New("server does not become ready")
	errProc   = errors.New("unexpected text in /proc")
)

// Usage is what a process has used so far.
type Usage struct {
	CPU            time.Duration // user and system
	Resident, Peak int64         // bytes
}

// UsageOf reads a process' figures from /proc.
func UsageOf(pid int) (Usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Usage{}, err
	}
	// Behind the name, which may hold anything: state is field 3, utime 14
	// and stime 15, in hundredths of a second.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 13 {
		return Usage{}, fmt.Errorf("%w: %q", errProc, stat)
	}
	var u Usage
	for _, text := range f[11:13] {
		ticks, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("%w: %w", errProc, err)
		}
		u.CPU += time.Duration(ticks) * 10 * time.Millisecond
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return Usage{}, err
	}
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		if name != "VmHWM" && name != "VmRSS" {
			continue
		}
		var kb int64
		if _, err := fmt.Sscanf(rest, "%d kB", &kb); err != nil {
			return Usage{}, fmt.Errorf("%w: %q: %w", errProc, line, err)
		}
		if name == "VmHWM" {
			u.Peak = kb << 10
		} else {
			u.Resident = kb << 10
		}
	}
	return u, nil
}

// Server is a process that listens on an address.
type Server struct {
	Name    string
	Address string // host:port
	Cmd     *exec.Cmd
}

// Usage is what the server has used so far.
func (s *Server) Usage() (Usage, error) { return UsageOf(s.Cmd.Process.Pid) }

// StartServer runs a peer's program, whose last argument lacks the address,
// until the page ready answers.
func StartServer(ctx context.Context, name, ready, program string, args ...string) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{Name: name, Address: l.Addr().String()}
	if err := l.Close(); err != nil {
		return nil, err
	}
	args[len(args)-1] += s.Address
	s.Cmd = exec.Command(program, args...)
	s.Cmd.Stderr = os.Stderr
	if err := s.Cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Minute); ; {
		text, err := Get(ctx, "http://"+s.Address+ready)
		if err == nil && text != "" {
			return s, nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("%s: %w", name, errReady), err, s.Stop())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Stop lets the server end in good order, and waits.
func (s *Server) Stop() error {
	if s.Cmd.ProcessState != nil {
		return nil
	}
	err := s.Cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	killer := time.AfterFunc(2*time.Minute, func() { _ = s.Cmd.Process.Kill() })
	defer killer.Stop()
	if err = errors.Join(err, s.Cmd.Wait()); err != nil {
		return fmt.Errorf("stop %s: %w", s.Name, err)
	}
	return nil
}

// Get fetches a page; any status but 200 is an error.
func Get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%w: %d %s", errStatus, resp.StatusCode, text)
	}
	return string(text), nil
}

// Ask runs this program anew with one argument, sends it a request as JSON and
// decodes its answer: a process of its own, where nothing else is in memory.
func Ask(ctx context.Context, argument string, request, answer any) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, argument)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = errors.Join(json.NewEncoder(in).Encode(request), in.Close())
	if err == nil {
		err = json.NewDecoder(out).Decode(answer)
	}
	return errors.Join(err, cmd.Wait())
}
