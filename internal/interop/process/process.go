// Package process runs other programs for `make interop`: it starts them,
// waits until they serve, asks them things over HTTP, and ends them.
//
// It stands outside the layers and imports nothing of ours. It must never end
// a process that it did not start.
package process

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Process is a program that runs. What it says on stderr goes to ours.
type Process struct {
	name    string
	cmd     *exec.Cmd
	stopped bool
}

// Start runs a program in the background.
func Start(program string, args ...string) (*Process, error) {
	p, _, err := start(program, false, args...)
	return p, err
}

// Cardinal runs `cardinal server` with these flags on free ports and returns
// its addresses when it serves; grpc is empty if it has none.
func Cardinal(program string, args ...string) (p *Process, http, grpc string, err error) {
	p, at, err := Server(program, args...)
	return p, at["http"], at["grpc"], err
}

// Server is Cardinal that returns all addresses by name: http, grpc,
// flight_sql.
func Server(program string, args ...string) (p *Process, at map[string]string, err error) {
	p, out, err := start(program, true, append([]string{"server", "--http", "127.0.0.1:0", "--flight-sql", "127.0.0.1:0", "--log-level", "warn"}, args...)...)
	if err != nil {
		return nil, nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("wait for the server: %w", err), p.Stop())
	}
	at = map[string]string{}
	for _, f := range strings.Fields(line) {
		if name, address, ok := strings.Cut(f, "="); ok {
			at[name] = address
		}
	}
	return p, at, nil
}

func start(program string, piped bool, args ...string) (p *Process, out io.Reader, err error) {
	p = &Process{name: program, cmd: exec.Command(program, args...)}
	p.cmd.Stderr = os.Stderr
	if piped {
		if out, err = p.cmd.StdoutPipe(); err != nil {
			return nil, nil, fmt.Errorf("start %s: %w", program, err)
		}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", program, err)
	}
	return p, out, nil
}

// Stop asks the program to end and waits for it. Calling it again does nothing.
func (p *Process) Stop() error {
	if p.stopped {
		return nil
	}
	p.stopped = true
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	return nil
}

// FreeAddress is one of the loopback interface where nobody listens.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// GetJSON decodes the answer to one GET, which must be 200.
func GetJSON(ctx context.Context, url string, into any) error {
	return do(ctx, http.MethodGet, url, nil, into)
}

// PostJSON posts a value and decodes the answer, which must be 200.
func PostJSON(ctx context.Context, url string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return do(ctx, http.MethodPost, url, data, into)
}

func do(ctx context.Context, method, url string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return errors.Join(fmt.Errorf("%s: %s: %s", url, resp.Status, answer), err)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// AwaitListening returns when somebody listens at each address.
func AwaitListening(ctx context.Context, addresses ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, a := range addresses {
		for {
			conn, err := net.Dial("tcp", a)
			if err == nil {
				if err := conn.Close(); err != nil {
					return err
				}
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("nobody listens at %s: %w", a, err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}
