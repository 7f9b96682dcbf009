package main

import (
	"encoding/json"
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin/cmd/internal/cli"
	"cardinalsin/wal"
)

// walRow is one part of a segment in `cardinal wal dump`.
type walRow struct {
	Segment  string `json:"segment"`
	Offset   int64  `json:"offset"`
	Bytes    int64  `json:"bytes"`
	Kind     string `json:"kind"`
	Sequence uint64 `json:"sequence"`
	Series   int    `json:"series"`
	Samples  int    `json:"samples"`
	Damage   string `json:"damage,omitempty"`
}

func walCommand() *ucli.Command {
	return &ucli.Command{
		Name: "wal", Usage: "look into a WAL directory",
		UsageText: "cardinal wal dump ./cardinal-wal/default/metrics",
		Subcommands: []*ucli.Command{{
			Name: "dump", Usage: "print every record, and what can be saved past damage; exit 12 on damage", ArgsUsage: "DIR",
			Flags: append(cli.LogFlags(), cli.JSONFlag()),
			Action: func(c *ucli.Context) error {
				if c.Args().Len() != 1 {
					return fmt.Errorf("%w: expected one directory", cli.ErrUsage)
				}
				return dumpWAL(c, c.Args().First())
			},
		}},
	}
}

// dumpWAL prints as it reads, so that a large WAL needs no memory.
func dumpWAL(c *ucli.Context, dir string) error {
	enc := json.NewEncoder(c.App.Writer)
	damaged := 0
	err := wal.Dump(dir, func(e wal.Entry) error {
		row := walRow{Segment: e.Segment, Offset: e.Offset, Bytes: e.Bytes, Kind: string(e.Kind), Sequence: uint64(e.Sequence), Series: len(e.Batch), Samples: e.Batch.Samples()}
		if e.Err != nil {
			row.Damage = e.Err.Error()
			damaged++
		}
		if c.Bool("json") {
			return enc.Encode(row)
		}
		return cli.Printf(c.App.Writer, "%s %10d %10d %-8s seq %d series %d samples %d %s\n", row.Segment, row.Offset, row.Bytes, row.Kind, row.Sequence, row.Series, row.Samples, row.Damage)
	})
	if err != nil {
		return err
	}
	if damaged > 0 {
		return fmt.Errorf("%w: %d damaged parts", cli.ErrFindings, damaged)
	}
	return nil
}
