package crashpoint_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestHere builds a program that passes one point five times, as it is and
// with the tag, and looks how far it gets.
func TestHere(t *testing.T) {
	plain, tagged := build(t), build(t, "-tags", "crashpoints")
	for _, tc := range []struct {
		name, program, armed string
		want                 string
		killed               bool
	}{
		{"the tag is not set", plain, "uploaded:1", "12345", false},
		{"nothing is armed", tagged, "", "12345", false},
		{"another point is armed", tagged, "committed:1", "12345", false},
		{"the first pass", tagged, "uploaded:1", "", true},
		{"the third pass", tagged, "uploaded:3", "12", true},
		{"a pass that does not come", tagged, "uploaded:6", "12345", false},
		{"the second pass after a signal", tagged, "uploaded:2:SIGUSR1", "123", true},
		{"a pass that does not come after a signal", tagged, "uploaded:4:SIGUSR1", "12345", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command(tc.program)
			if strings.HasSuffix(tc.armed, "SIGUSR1") {
				cmd.Args = append(cmd.Args, "signal")
			}
			cmd.Env = append(os.Environ(), "CARDINAL_CRASHPOINT="+tc.armed)
			var out bytes.Buffer
			cmd.Stdout = &out
			err := cmd.Run()
			if out.String() != tc.want {
				t.Errorf("it got to %q, want %q", out.String(), tc.want)
			}
			var exit *exec.ExitError
			killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
			if killed != tc.killed || err != nil && !killed {
				t.Errorf("it ended with %v, want killed %v", err, tc.killed)
			}
		})
	}
	for _, armed := range []string{"uploaded", "uploaded:", "uploaded:0", "uploaded:1:SIGHUP", "uploaded:1:SIGUSR1:2"} {
		t.Run("a setting that means nothing: "+armed, func(t *testing.T) {
			cmd := exec.Command(tagged)
			cmd.Env = append(os.Environ(), "CARDINAL_CRASHPOINT="+armed)
			if err := cmd.Run(); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func build(t *testing.T, flags ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "passes")
	args := append(append([]string{"build", "-o", program}, flags...), "./testdata/passes")
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}
