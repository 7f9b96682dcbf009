package main

import (
	"encoding/json"
	"fmt"
	"time"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin"
	"cardinalsin/check"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/lease"
	"cardinalsin/vacuum"
)

// openTable opens the table that the flags name, for reading and maintenance.
func openTable(c *ucli.Context) (*cardinalsin.DB, error) {
	opts, err := tableOptions(c)
	if err != nil {
		return nil, err
	}
	return cardinalsin.Open(c.Context, opts)
}

func tableOptions(c *ucli.Context) (cardinalsin.Options, error) {
	logger, err := cli.Logger(c)
	if err != nil {
		return cardinalsin.Options{}, err
	}
	return cardinalsin.Options{Store: c.String("store"), Tenant: c.String("tenant"), Table: c.String("table"), AnyPath: true, Logger: logger}, nil
}

func vacuumCommand() *ucli.Command {
	return &ucli.Command{
		Name: "vacuum", Usage: "delete what no readable version needs; without --execute, print the plan",
		UsageText: "cardinal vacuum --full --execute",
		Flags: append(cli.TableFlags(), cli.JSONFlag(),
			&ucli.BoolFlag{Name: "execute", Usage: "delete; without it nothing is changed"},
			&ucli.BoolFlag{Name: "full", Usage: "look for orphans too, which lists all data"},
			&ucli.DurationFlag{Name: "retain", Value: 7 * 24 * time.Hour, Usage: "keep versions readable for `DURATION` after they were replaced"},
			&ucli.BoolFlag{Name: "i-know", Usage: "accept a retention below one hour: readers of other engines hold no pins"}),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			opts := vacuum.Options{Retain: c.Duration("retain"), Full: c.Bool("full"), AllowShortRetention: c.Bool("i-know")}
			if opts.Retain == 0 {
				opts.Retain = vacuum.NoRetention
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			plan, err := vacuum.NewPlan(c.Context, db.Log, opts)
			if err != nil {
				return err
			}
			if !c.Bool("execute") {
				return printPlan(c, plan)
			}
			report, err := plan.Execute(c.Context)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return json.NewEncoder(c.App.Writer).Encode(reportRow{
					Start: int64(report.Start), End: int64(report.End), Earliest: int64(report.Earliest), Files: report.Files, Orphans: report.Orphans,
					Segments: report.Segments, LogObjects: report.LogObjects, Bytes: report.Bytes, PinsRevoked: report.PinsRevoked, Seconds: report.Duration.Seconds(),
				})
			}
			return cli.Printf(c.App.Writer, "%s\n", describe(report))
		},
	}
}

// reportRow is what `cardinal vacuum --execute --json` prints.
type reportRow struct {
	Start       int64   `json:"start_version"`
	End         int64   `json:"end_version"`
	Earliest    int64   `json:"oldest_in_use"`
	Files       int     `json:"files_deleted"`
	Orphans     int     `json:"orphans_deleted"`
	Segments    int     `json:"index_segments_deleted"`
	LogObjects  int     `json:"log_objects_deleted"`
	Bytes       int64   `json:"bytes_deleted"`
	PinsRevoked int     `json:"pins_revoked"`
	Seconds     float64 `json:"seconds"`
}

func describe(r vacuum.Report) string {
	return fmt.Sprintf("deleted %d files, %d orphans and %d log objects, %s; versions from %d on are kept", r.Files, r.Orphans, r.LogObjects, cli.Bytes(r.Bytes), int64(r.Earliest))
}

// planRow is one object that a vacuum would delete.
type planRow struct {
	Kind  string `json:"kind"`
	Key   string `json:"key"`
	Bytes int64  `json:"bytes"`
}

func printPlan(c *ucli.Context, plan *vacuum.Plan) error {
	var rows []planRow
	var total int64
	for _, group := range []struct {
		kind    string
		objects []vacuum.Object
	}{{"file", plan.Files}, {"orphan", plan.Orphans}, {"index", plan.Segments}, {"log", plan.LogObjects}} {
		for _, o := range group.objects {
			rows = append(rows, planRow{group.kind, o.Key, o.Bytes})
			total += o.Bytes
		}
	}
	err := cli.Listing[planRow]{
		Header:  "KIND\tBYTES\tKEY",
		Columns: func(r planRow) string { return fmt.Sprintf("%s\t%d\t%s", r.Kind, r.Bytes, r.Key) },
	}.Print(c, rows)
	if err != nil || c.Bool("json") {
		return err
	}
	return cli.Printf(c.App.Writer, "%d files, %d orphans and %d log objects, %s, would be deleted; versions from %d on are kept. Nothing was changed: --execute deletes.\n",
		len(plan.Files), len(plan.Orphans), len(plan.LogObjects), cli.Bytes(total), int64(plan.Earliest))
}

// pinRow is one pin in `cardinal pins`.
type pinRow struct {
	Holder  string  `json:"holder"`
	Version int64   `json:"version"`
	Age     float64 `json:"age_seconds"`
	State   string  `json:"state"`
	Key     string  `json:"key"`
}

func pinsCommand() *ucli.Command {
	return &ucli.Command{
		Name: "pins", Usage: "list the pins of readers: holder, oldest version in use, age",
		UsageText: "cardinal pins",
		Flags:     append(cli.TableFlags(), cli.JSONFlag()),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			pins, err := lease.ListPins(c.Context, db.Log.Store(), db.PinPrefix())
			if err != nil {
				return err
			}
			rows := make([]pinRow, 0, len(pins))
			for _, p := range pins {
				state := "live"
				switch {
				case p.Revoked:
					state = "revoked"
				case p.Expired():
					state = "expired"
				}
				rows = append(rows, pinRow{p.Holder, p.MinVersion, p.Age.Seconds(), state, p.Key})
			}
			return cli.Listing[pinRow]{
				Header: "HOLDER\tVERSION\tAGE\tSTATE",
				Columns: func(r pinRow) string {
					return fmt.Sprintf("%s\t%d\t%s\t%s", r.Holder, r.Version, time.Duration(r.Age*float64(time.Second)).Round(time.Second), r.State)
				},
			}.Print(c, rows)
		},
	}
}

// findingRow is one finding of `cardinal check`.
type findingRow struct {
	Kind   string `json:"kind"`
	Object string `json:"object"`
	Detail string `json:"detail"`
}

func checkCommand() *ucli.Command {
	return &ucli.Command{
		Name: "check", Usage: "verify a table: objects, log, checkpoints, checksums, shards; exit 12 on any finding",
		UsageText: "cardinal check --deep",
		Flags: append(cli.TableFlags(), cli.JSONFlag(),
			&ucli.BoolFlag{Name: "deep", Usage: "decode every chunk too"}),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			findings, err := check.Run(c.Context, db.Log, check.Options{Deep: c.Bool("deep")})
			if err != nil {
				return err
			}
			rows := make([]findingRow, 0, len(findings))
			for _, f := range findings {
				rows = append(rows, findingRow{string(f.Kind), f.Object, f.Detail})
			}
			if len(rows) == 0 && !c.Bool("json") {
				return cli.Printf(c.App.Writer, "no findings\n")
			}
			if err := (cli.Listing[findingRow]{
				Header:  "KIND\tOBJECT\tDETAIL",
				Columns: func(r findingRow) string { return r.Kind + "\t" + r.Object + "\t" + r.Detail },
			}).Print(c, rows); err != nil {
				return err
			}
			if len(rows) > 0 {
				return fmt.Errorf("%w: %d", cli.ErrFindings, len(rows))
			}
			return nil
		},
	}
}
