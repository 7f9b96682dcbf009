// Package cli is what both programs share at the surface: flags, exit codes,
// error output and logging.
//
// stdout carries the answer and nothing else. Errors go to stderr as
// "cardinal: error: …", followed by "cardinal: hint: …" where the user can do
// something about it. Nothing is coloured.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"time"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin/action"
	"cardinalsin/checkpoint"
	"cardinalsin/chunk"
	"cardinalsin/compactor"
	"cardinalsin/deletion"
	"cardinalsin/storage"
	"cardinalsin/txlog"
	"cardinalsin/wal"
)

// Exit codes (contract 1).
const (
	OK          = 0
	Failure     = 1
	Usage       = 2
	Partial     = 3
	NotATable   = 10
	Conflict    = 11
	Corrupt     = 12
	Refused     = 13
	Interrupted = 130
)

// Conditions that only the command line has.
var (
	// ErrUsage: the command line is wrong.
	ErrUsage = errors.New("wrong usage")
	// ErrFindings: a check ended, and found something.
	ErrFindings = errors.New("the table has findings")
	// ErrPartial: some items failed and others did not.
	ErrPartial = errors.New("partly done")
)

// ExitCode maps an error to the program's exit code.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, context.Canceled):
		return Interrupted
	case errors.Is(err, ErrUsage):
		return Usage
	case errors.Is(err, ErrPartial):
		return Partial
	case errors.Is(err, txlog.ErrNotTable):
		return NotATable
	case errors.Is(err, txlog.ErrConflict):
		return Conflict
	case errors.Is(err, storage.ErrStoreRefused):
		return Refused
	case errors.Is(err, ErrFindings), isCorrupt(err):
		return Corrupt
	}
	return Failure
}

func isCorrupt(err error) bool {
	for _, c := range corruption {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}

// corruption lists the sentinels of damaged formats.
var corruption = []error{action.ErrCorrupt, checkpoint.ErrCorrupt, chunk.ErrCorrupt, chunk.ErrTags, deletion.ErrCorrupt, compactor.ErrInputMissing, wal.ErrCorrupt}

// hints are what a user can do about a condition; the first that applies is
// printed.
var hints = []struct {
	is   error
	text string
}{
	{txlog.ErrNotTable, "check --store, --tenant and --table; a table is made by the first write"},
	{txlog.ErrVersionVacuumed, "`cardinal log` lists the versions that are left"},
	{txlog.ErrAppendOnly, "the table's property delta.appendOnly forbids to take data out"},
	{txlog.ErrReadOnly, "only tables that CardinalSin created can be changed by it"},
	{storage.ErrStoreRefused, "`cardinal probe` shows which guarantees the store keeps"},
	{storage.ErrPermission, "check the credentials of the AWS environment, profile or role"},
	{storage.ErrUnknownOutcome, "`cardinal log` shows whether the version exists"},
}

// Report prints an error and its hint.
func Report(w io.Writer, program string, err error) {
	fmt.Fprintf(w, "%s: error: %v\n", program, err)
	for _, h := range hints {
		if errors.Is(err, h.is) {
			fmt.Fprintf(w, "%s: hint: %s\n", program, h.text)
			return
		}
	}
}

// Run executes an application and returns its exit code.
func Run(ctx context.Context, app *ucli.App, args []string) int {
	app.ExitErrHandler = func(*ucli.Context, error) {} // the only exit is main's
	app.OnUsageError = usageError
	setUsageError(app.Commands)
	app.CommandNotFound = nil
	err := app.RunContext(ctx, args)
	if err == nil {
		return OK
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintf(app.ErrWriter, "%s: interrupted\n", app.Name)
		return Interrupted
	}
	Report(app.ErrWriter, app.Name, err)
	return ExitCode(err)
}

func usageError(_ *ucli.Context, err error, _ bool) error { return fmt.Errorf("%w: %w", ErrUsage, err) }

func setUsageError(commands []*ucli.Command) {
	for _, c := range commands {
		c.OnUsageError = usageError
		setUsageError(c.Subcommands)
	}
}

// TableFlags are the flags of every subcommand that opens a table.
func TableFlags() []ucli.Flag {
	return append([]ucli.Flag{
		&ucli.StringFlag{Name: "store", EnvVars: []string{"CARDINAL_STORE"}, Value: "./cardinal-data", Usage: "store `URL`: a path, file:///dir, or s3://bucket/prefix?endpoint=…&region=…&path_style=true"},
		&ucli.StringFlag{Name: "tenant", Value: "default", Usage: "tenant `NAME`"},
		&ucli.StringFlag{Name: "table", Value: "metrics", Usage: "table `NAME`"},
	}, LogFlags()...)
}

// LogFlags configure the log on stderr.
func LogFlags() []ucli.Flag {
	return []ucli.Flag{
		&ucli.StringFlag{Name: "log-format", Value: "text", Usage: "`FORMAT` of the log on stderr: text or json"},
		&ucli.StringFlag{Name: "log-level", Value: "info", Usage: "least `LEVEL` that is logged: debug, info, warn or error"},
	}
}

// Logger builds the logger that the flags ask for.
func Logger(c *ucli.Context) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, fmt.Errorf("%w: --log-level %q", ErrUsage, c.String("log-level"))
	}
	opts := &slog.HandlerOptions{Level: level}
	switch c.String("log-format") {
	case "text":
		return slog.New(slog.NewTextHandler(c.App.ErrWriter, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(c.App.ErrWriter, opts)), nil
	}
	return nil, fmt.Errorf("%w: --log-format %q is neither text nor json", ErrUsage, c.String("log-format"))
}

// UnknownCommand is the error for a subcommand that does not exist.
func UnknownCommand(name string) error {
	return fmt.Errorf("%w: no such command: %q; `--help` lists them", ErrUsage, name)
}

// NoArgs refuses positional arguments.
func NoArgs(c *ucli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("%w: unexpected argument %q", ErrUsage, c.Args().First())
	}
	return nil
}

// Version is what the build knows of itself.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 && v == "(devel)" {
			v = s.Value[:12]
		}
	}
	return v
}

// AtFlags pick a version of the table.
func AtFlags() []ucli.Flag {
	return []ucli.Flag{
		&ucli.Int64Flag{Name: "version", Value: -1, Usage: "read version `N`", DefaultText: "latest"},
		&ucli.StringFlag{Name: "as-of", Usage: "read the version of that `TIME` (RFC 3339)"},
	}
}

// At is the version that the flags pick.
func At(c *ucli.Context) (txlog.At, error) {
	switch {
	case c.IsSet("version") && c.IsSet("as-of"):
		return txlog.At{}, fmt.Errorf("%w: --version and --as-of exclude each other", ErrUsage)
	case c.IsSet("version"):
		if c.Int64("version") < 0 {
			return txlog.At{}, fmt.Errorf("%w: --version %d", ErrUsage, c.Int64("version"))
		}
		return txlog.AtVersion(action.Version(c.Int64("version"))), nil
	case c.IsSet("as-of"):
		t, err := time.Parse(time.RFC3339Nano, c.String("as-of"))
		if err != nil {
			return txlog.At{}, fmt.Errorf("%w: --as-of: %w", ErrUsage, err)
		}
		return txlog.AtTime(t), nil
	}
	return txlog.Latest(), nil
}
