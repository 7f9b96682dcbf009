// Command cardinal-writer is the ingest role alone: a static program without
// cgo that takes samples by every protocol, keeps them in a WAL and commits
// them to tables.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin/cmd/internal/cli"
	"cardinalsin/cmd/internal/daemon"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := &ucli.App{
		Name:      "cardinal-writer",
		Usage:     "take samples by remote write, OTLP, line protocol, Arrow Flight and scraping, and commit them to Delta Lake tables",
		UsageText: "cardinal-writer --store s3://bucket/metrics --wal-dir /var/lib/cardinal/wal --http localhost:8080",
		Version:   cli.Version(),
		Writer:    os.Stdout, ErrWriter: os.Stderr,
		HideHelpCommand: true,
		Flags:           daemon.Flags(),
		Action:          serve,
	}
	os.Exit(cli.Run(ctx, app, os.Args))
}

// serve runs until the context of the command ends, which is how it is meant
// to stop; then it flushes.
func serve(c *ucli.Context) error {
	if err := cli.NoArgs(c); err != nil {
		return err
	}
	opts, err := daemon.OptionsOf(c)
	if err != nil {
		return err
	}
	d, err := daemon.Open(c.Context, opts)
	if err != nil {
		return err
	}
	return d.Run(c.Context, c.App.Writer)
}
