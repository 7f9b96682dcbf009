package main

import (
	"errors"
	"fmt"
	"time"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin/cmd/internal/cli"
	"cardinalsin/storage"
	"cardinalsin/storage/meter"
	"cardinalsin/storage/storeurl"
)

// probeRow is one property in `cardinal probe`.
type probeRow struct {
	Property string `json:"property"`
	Held     bool   `json:"held"`
	Detail   string `json:"detail"`
}

// latencyRow is one kind of request in `cardinal probe`.
type latencyRow struct {
	Request string  `json:"request"`
	Calls   int64   `json:"calls"`
	Mean    float64 `json:"mean_seconds"`
}

func probeCommand() *ucli.Command {
	return &ucli.Command{
		Name: "probe", Usage: "try out the guarantees that a store must give; exit 13 if it lacks one",
		UsageText: "cardinal probe --store 's3://bucket?endpoint=http://127.0.0.1:7070'",
		Flags: append([]ucli.Flag{cli.JSONFlag(),
			&ucli.StringFlag{Name: "store", EnvVars: []string{"CARDINAL_STORE"}, Value: "./cardinal-data", Usage: "store `URL`"},
		}, cli.LogFlags()...),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			inner, err := storeurl.Open(c.Context, c.String("store"))
			if err != nil {
				return err
			}
			store := meter.New(inner, meter.Options{})
			report, probeErr := storage.Probe(c.Context, store, "_cardinal_probe/")
			var rows []probeRow
			for _, p := range report.Properties {
				rows = append(rows, probeRow{string(p.Property), p.Held, p.Detail})
			}
			err = cli.Listing[probeRow]{
				Header: "PROPERTY\tHELD\tDETAIL",
				Columns: func(r probeRow) string {
					held := "yes"
					if !r.Held {
						held = "NO"
					}
					return fmt.Sprintf("%s\t%s\t%s", r.Property, held, r.Detail)
				},
			}.Print(c, rows)
			if err != nil {
				return errors.Join(probeErr, err)
			}
			if probeErr == nil {
				probeErr = printLatencies(c, store.Snapshot())
			}
			return probeErr
		},
	}
}

func printLatencies(c *ucli.Context, counts meter.Snapshot) error {
	var rows []latencyRow
	for _, op := range storage.Ops {
		if n := counts[op]; n.Calls > 0 && op != storage.OpNow {
			rows = append(rows, latencyRow{string(op), n.Calls, n.Time.Seconds() / float64(n.Calls)})
		}
	}
	if !c.Bool("json") {
		if err := cli.Printf(c.App.Writer, "\n"); err != nil {
			return err
		}
	}
	return cli.Listing[latencyRow]{
		Header: "REQUEST\tCALLS\tMEAN",
		Columns: func(r latencyRow) string {
			return fmt.Sprintf("%s\t%d\t%v", r.Request, r.Calls, time.Duration(r.Mean*float64(time.Second)).Round(10*time.Microsecond))
		},
	}.Print(c, rows)
}
