// Command cardinal-writer is the ingest role alone: a static program without
// cgo that receives remote write, keeps it in a WAL and commits it to a table.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	ucli "github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"cardinalsin"
	"cardinalsin/api/prom"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/cmd/internal/daemon"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := &ucli.App{
		Name:      "cardinal-writer",
		Usage:     "receive Prometheus remote write and commit it to a Delta Lake table",
		UsageText: "cardinal-writer --store s3://bucket/metrics --wal-dir /var/lib/cardinal/wal --http localhost:8080",
		Version:   cli.Version(),
		Writer:    os.Stdout, ErrWriter: os.Stderr,
		HideHelpCommand: true,
		Flags:           append(cli.TableFlags(), daemon.WriterFlags()...),
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
	opts, err := daemon.Options(c)
	if err != nil {
		return err
	}
	metrics := daemon.NewMetrics()
	metrics.Observe(&opts)
	db, err := cardinalsin.Open(c.Context, opts)
	if err != nil {
		return err
	}
	closeDB := func() error { return db.Close(context.WithoutCancel(c.Context)) }
	http := daemon.NewServer(metrics.Registry)
	http.Handle("POST /api/v1/write", prom.WriteHandler(db.Writer.Append, opts.Logger))
	listener, err := net.Listen("tcp", c.String("http"))
	if err != nil {
		return errors.Join(fmt.Errorf("listen: %w", err), closeDB())
	}
	work, ctx := errgroup.WithContext(c.Context)
	work.Go(func() error { return db.Run(ctx, false) })
	work.Go(func() error { return http.Serve(ctx, listener) })
	http.SetReady(true)
	err = cli.Printf(c.App.Writer, "ready http=%s\n", listener.Addr())
	return errors.Join(err, work.Wait(), closeDB())
}
