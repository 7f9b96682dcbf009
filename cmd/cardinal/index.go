package main

import (
	"errors"
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/index"
)

// indexRow is one job in `cardinal index`.
type indexRow struct {
	Date     string `json:"date"`
	Files    int    `json:"files"`
	Replaces int    `json:"replaces"` // segments
	// What follows is absent in a dry run.
	Version int64    `json:"version,omitempty"`
	Series  int      `json:"series,omitempty"`
	Bytes   int64    `json:"bytes,omitempty"`
	Skipped []string `json:"skipped,omitempty"` // files that could not be read
}

func indexCommand() *ucli.Command {
	return &ucli.Command{
		Name: "index", Usage: "make the index of the files that have none",
		UsageText: "cardinal index --dry-run",
		Flags: append(cli.TableFlags(), cli.JSONFlag(),
			&ucli.BoolFlag{Name: "dry-run", Usage: "print the jobs and run none"},
			&ucli.BoolFlag{Name: "rebuild", Usage: "make the index of all files anew"}),
		Action: func(c *ucli.Context) (err error) {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			opts, err := tableOptions(c)
			if err != nil {
				return err
			}
			// Whoever asks wants it now, for every file.
			opts.Indexer.Policy = index.Policy{MinFiles: 1, Rebuild: c.Bool("rebuild"), Eager: true}
			db, err := cardinalsin.Open(c.Context, opts)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, db.Close(c.Context)) }()
			var rows []indexRow
			if c.Bool("dry-run") {
				jobs, err := db.Indexer.Plan(c.Context)
				if err != nil {
					return err
				}
				for _, j := range jobs {
					rows = append(rows, indexRow{Date: j.Date.String(), Files: len(j.Files), Replaces: len(j.Replaces)})
				}
				return printIndex(c, rows)
			}
			results, runErr := db.Indexer.RunAll(c.Context)
			for _, r := range results {
				rows = append(rows, indexRow{
					Date: r.Job.Date.String(), Files: len(r.Job.Files), Replaces: len(r.Job.Replaces),
					Version: int64(r.Version), Series: r.Series, Bytes: r.Bytes, Skipped: r.Skipped,
				})
			}
			if runErr != nil && len(rows) > 0 {
				runErr = fmt.Errorf("%w: %w", cli.ErrPartial, runErr)
			}
			return errors.Join(printIndex(c, rows), runErr)
		},
	}
}

func printIndex(c *ucli.Context, rows []indexRow) error {
	return cli.Listing[indexRow]{
		Header: "DATE\tFILES\tREPLACES\tVERSION\tSERIES\tBYTES\tSKIPPED",
		Columns: func(r indexRow) string {
			if r.Version == 0 {
				return fmt.Sprintf("%s\t%d\t%d\t-\t-\t-\t-", r.Date, r.Files, r.Replaces)
			}
			return fmt.Sprintf("%s\t%d\t%d\t%d\t%d\t%d\t%d", r.Date, r.Files, r.Replaces, r.Version, r.Series, r.Bytes, len(r.Skipped))
		},
	}.Print(c, rows)
}
