// Command cardinal is CardinalSin in one program: server, queries, history
// and maintenance of a table. Contract 1 says what each subcommand does.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin/cmd/internal/cli"
)

func main() { os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr)) }

// run is main without the process: what scripts and tests call.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := &ucli.App{
		Name:      "cardinal",
		Usage:     "time series as a Delta Lake table on object storage",
		UsageText: "cardinal server --store s3://bucket/metrics --wal-dir /var/lib/cardinal\n   cardinal sql 'SELECT count(*) FROM metrics AT (VERSION => 12)'",
		Version:   cli.Version(),
		Reader:    stdin, Writer: stdout, ErrWriter: stderr,
		HideHelpCommand: true,
		Commands: []*ucli.Command{
			serverCommand(), sqlCommand(), promqlCommand(),
			logCommand(), showCommand(), filesCommand(), diffCommand(), checkpointCommand(),
			compactCommand(), indexCommand(), restoreCommand(), vacuumCommand(), pinsCommand(), checkCommand(), probeCommand(),
			importCommand(), walCommand(), demoCommand(),
		},
		Action: func(c *ucli.Context) error {
			if c.Args().Present() {
				return cli.UnknownCommand(c.Args().First())
			}
			return ucli.ShowAppHelp(c)
		},
	}
	return cli.Run(ctx, app, args)
}
