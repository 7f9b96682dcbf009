package main

import (
	"errors"
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/compactor"
)

// jobRow is one job in `cardinal compact`.
type jobRow struct {
	Date   string `json:"date"`
	Shard  string `json:"shard"`
	Inputs int    `json:"inputs"`
	Level  int    `json:"level"`
	Bytes  int64  `json:"input_bytes"`
	// Version that swapped the files; absent in a dry run.
	Version int64 `json:"version,omitempty"`
	Rows    int64 `json:"rows,omitempty"`
}

func compactCommand() *ucli.Command {
	return &ucli.Command{
		Name: "compact", Usage: "merge small files of one date and shard",
		UsageText: "cardinal compact --dry-run",
		Flags: append(cli.TableFlags(), cli.JSONFlag(),
			&ucli.BoolFlag{Name: "dry-run", Usage: "print the jobs and run none"},
			&ucli.BoolFlag{Name: "all", Usage: "merge any two neighbours below the target size"}),
		Action: func(c *ucli.Context) (err error) {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			opts, err := tableOptions(c)
			if err != nil {
				return err
			}
			opts.Compactor.Policy.All = c.Bool("all")
			db, err := cardinalsin.Open(c.Context, opts)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, db.Close(c.Context)) }()
			var rows []jobRow
			if c.Bool("dry-run") {
				jobs, err := db.Compactor.Plan(c.Context)
				if err != nil {
					return err
				}
				for _, j := range jobs {
					rows = append(rows, jobRowOf(j))
				}
				return printJobs(c, rows)
			}
			results, runErr := db.Compactor.RunAll(c.Context)
			for _, r := range results {
				row := jobRowOf(r.Job)
				row.Version, row.Rows = int64(r.Version), r.Rows
				rows = append(rows, row)
			}
			if runErr != nil && len(rows) > 0 {
				runErr = fmt.Errorf("%w: %w", cli.ErrPartial, runErr)
			}
			return errors.Join(printJobs(c, rows), runErr)
		},
	}
}

func jobRowOf(j compactor.Job) jobRow {
	return jobRow{Date: j.Date.String(), Shard: string(j.Shard), Inputs: len(j.Inputs), Level: j.Level, Bytes: j.Bytes}
}

func printJobs(c *ucli.Context, rows []jobRow) error {
	return cli.Listing[jobRow]{
		Header: "DATE\tSHARD\tINPUTS\tLEVEL\tBYTES\tVERSION\tROWS",
		Columns: func(r jobRow) string {
			version, count := "-", "-"
			if r.Version > 0 {
				version, count = fmt.Sprint(r.Version), fmt.Sprint(r.Rows)
			}
			return fmt.Sprintf("%s\t%s\t%d\t%d\t%d\t%s\t%s", r.Date, r.Shard, r.Inputs, r.Level, r.Bytes, version, count)
		},
	}.Print(c, rows)
}
