package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/txlog"
)

// logRow is one version in `cardinal log`.
type logRow struct {
	Version      int64     `json:"version"`
	Time         time.Time `json:"time"`
	Operation    string    `json:"operation"`
	FilesAdded   int       `json:"files_added"`
	FilesRemoved int       `json:"files_removed"`
	RowsAdded    int64     `json:"rows_added"`
	RowsRemoved  int64     `json:"rows_removed"`
	BytesAdded   int64     `json:"bytes_added"`
	BytesRemoved int64     `json:"bytes_removed"`
	TxnID        string    `json:"txn_id"`
	Engine       string    `json:"engine"`
}

func logCommand() *ucli.Command {
	return &ucli.Command{
		Name: "log", Usage: "list the versions, newest first",
		UsageText: "cardinal log --limit 20",
		Flags: append(cli.TableFlags(), cli.JSONFlag(),
			&ucli.IntFlag{Name: "limit", Value: 50, Usage: "print at most `N` versions; 0 means all"}),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			rows, err := history(c.Context, db.Log, c.Int("limit"))
			if err != nil {
				return err
			}
			return cli.Listing[logRow]{
				Header: "VERSION\tTIME\tOPERATION\t+FILES\t-FILES\tROWS\tBYTES",
				Columns: func(r logRow) string {
					return fmt.Sprintf("%d\t%s\t%s\t%d\t%d\t%+d\t%+d", r.Version, cli.Time(r.Time), r.Operation, r.FilesAdded, r.FilesRemoved, r.RowsAdded-r.RowsRemoved, r.BytesAdded-r.BytesRemoved)
				},
			}.Print(c, rows)
		},
	}
}

// history reads commits from the latest backwards, until limit or the oldest
// that the log still has.
func history(ctx context.Context, log *txlog.Log, limit int) ([]logRow, error) {
	snap, err := log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return nil, err
	}
	var rows []logRow
	for v := snap.Version(); v >= 0 && (limit <= 0 || len(rows) < limit); v-- {
		commit, err := log.Commit(ctx, v)
		if errors.Is(err, txlog.ErrVersionVacuumed) {
			break
		}
		if err != nil {
			return nil, err
		}
		row := logRow{Version: int64(v), FilesAdded: len(commit.Adds), FilesRemoved: len(commit.Removes)}
		if ict, ok := commit.InCommitTimestamp(); ok {
			row.Time = time.UnixMilli(ict).UTC()
		}
		if commit.Info != nil {
			row.Operation, row.TxnID, row.Engine = commit.Info.Operation, commit.Info.TxnID, commit.Info.EngineInfo
		}
		for i := range commit.Adds {
			row.BytesAdded += commit.Adds[i].Size
			row.RowsAdded += numRecords(commit.Adds[i].Stats)
		}
		for i := range commit.Removes {
			row.BytesRemoved += commit.Removes[i].Size
			row.RowsRemoved += numRecords(commit.Removes[i].Stats)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// numRecords is 0 where a file has no usable statistics.
func numRecords(stats string) int64 {
	s, ok, err := action.ParseStats(stats)
	if err != nil || !ok {
		return 0
	}
	return s.NumRecords
}

func showCommand() *ucli.Command {
	return &ucli.Command{
		Name: "show", Usage: "print the actions of one version as they were logged", ArgsUsage: "VERSION",
		UsageText: "cardinal show 12",
		Flags:     cli.TableFlags(),
		Action: func(c *ucli.Context) error {
			v, err := versionArg(c)
			if err != nil {
				return err
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			commit, err := db.Log.Commit(c.Context, v)
			if err != nil {
				return err
			}
			data, err := commit.Encode()
			if err != nil {
				return err
			}
			return cli.Printf(c.App.Writer, "%s", data)
		},
	}
}

func versionArg(c *ucli.Context) (action.Version, error) {
	if c.Args().Len() != 1 {
		return 0, fmt.Errorf("%w: expected one version", cli.ErrUsage)
	}
	return parseVersion(c.Args().First())
}

func parseVersion(arg string) (action.Version, error) {
	v, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || v < 0 {
		return 0, fmt.Errorf("%w: %q is no version", cli.ErrUsage, arg)
	}
	return action.Version(v), nil
}

// fileRow is one live file in `cardinal files`.
type fileRow struct {
	Path    string    `json:"path"`
	Date    string    `json:"date"`
	Shard   string    `json:"shard"`
	Level   int       `json:"level"`
	MinTime time.Time `json:"min_time"`
	MaxTime time.Time `json:"max_time"`
	Rows    int64     `json:"rows"`
	Bytes   int64     `json:"bytes"`
}

func filesCommand() *ucli.Command {
	return &ucli.Command{
		Name: "files", Usage: "list the live files of a version",
		UsageText: "cardinal files --version 12",
		Flags:     append(append(cli.TableFlags(), cli.JSONFlag()), cli.AtFlags()...),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			at, err := cli.At(c)
			if err != nil {
				return err
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			snap, err := db.Log.Snapshot(c.Context, at)
			if err != nil {
				return err
			}
			rows, err := files(snap)
			if err != nil {
				return err
			}
			return cli.Listing[fileRow]{
				Header: "SHARD\tDATE\tLEVEL\tFROM\tTO\tROWS\tBYTES\tPATH",
				Columns: func(r fileRow) string {
					return fmt.Sprintf("%s\t%s\t%d\t%s\t%s\t%d\t%d\t%s", r.Shard, r.Date, r.Level, cli.Time(r.MinTime), cli.Time(r.MaxTime), r.Rows, r.Bytes, r.Path)
				},
			}.Print(c, rows)
		},
	}
}

func files(snap *txlog.Snapshot) ([]fileRow, error) {
	rows := make([]fileRow, 0, snap.NumFiles())
	for a := range snap.Files() {
		r := fileRow{Path: a.Path, Bytes: a.Size, Rows: numRecords(a.Stats)}
		r.Date, _ = a.PartitionValues.Get("date")
		r.Shard, _ = a.PartitionValues.Get("shard")
		tags, ok, err := chunk.ParseTags(a.Tags)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.Path, err)
		}
		if ok {
			r.Level, r.MinTime, r.MaxTime = tags.Level, tags.Time.Min.Time(), tags.Time.Max.Time()
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func checkpointCommand() *ucli.Command {
	return &ucli.Command{
		Name: "checkpoint", Usage: "write a checkpoint of the latest version now",
		UsageText: "cardinal checkpoint",
		Flags:     append(cli.TableFlags(), cli.JSONFlag()),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			snap, err := db.Log.Checkpoint(c.Context)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return json.NewEncoder(c.App.Writer).Encode(map[string]any{"version": int64(snap.Version()), "files": snap.NumFiles(), "tombstones": snap.NumTombstones()})
			}
			return cli.Printf(c.App.Writer, "checkpoint of version %d: %d files, %d tombstones\n", int64(snap.Version()), snap.NumFiles(), snap.NumTombstones())
		},
	}
}
