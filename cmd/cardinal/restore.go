package main

import (
	"encoding/json"
	"fmt"
	"strconv"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin/action"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/txlog"
)

// changeRow is one file of `cardinal diff`, and of what a restore would do.
type changeRow struct {
	Change string `json:"change"` // "added" or "removed"
	Path   string `json:"path"`
	Date   string `json:"date"`
	Shard  string `json:"shard"`
	Rows   *int64 `json:"rows"` // null: the file has no statistics
	Bytes  int64  `json:"bytes"`
}

func printChanges(c *ucli.Context, changes txlog.FileChanges) error {
	rows := make([]changeRow, 0, len(changes.Added)+len(changes.Removed))
	for _, group := range []struct {
		change string
		files  []*action.Add
	}{{"removed", changes.Removed}, {"added", changes.Added}} {
		for _, a := range group.files {
			r := changeRow{Change: group.change, Path: a.Path, Bytes: a.Size}
			r.Date, _ = a.PartitionValues.Get("date")
			r.Shard, _ = a.PartitionValues.Get("shard")
			if n, ok := txlog.Rows(a); ok {
				r.Rows = &n
			}
			rows = append(rows, r)
		}
	}
	return cli.Listing[changeRow]{
		Header: "CHANGE\tROWS\tBYTES\tPATH",
		Columns: func(r changeRow) string {
			n := "unknown"
			if r.Rows != nil {
				n = strconv.FormatInt(*r.Rows, 10)
			}
			return fmt.Sprintf("%s\t%s\t%d\t%s", r.Change, n, r.Bytes, r.Path)
		},
	}.Print(c, rows)
}

// describeChanges sums up in one clause.
func describeChanges(changes txlog.FileChanges) string {
	text := ""
	for i, group := range []struct {
		change string
		files  []*action.Add
	}{{"added", changes.Added}, {"removed", changes.Removed}} {
		t := txlog.TotalOf(group.files)
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%s %s: %d rows, %s", counted(t.Files, "file"), group.change, t.Rows, cli.Bytes(t.Bytes))
		if t.Unknown > 0 {
			text += fmt.Sprintf(", and the rows of %s without statistics", counted(t.Unknown, "file"))
		}
	}
	return text
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func diffCommand() *ucli.Command {
	return &ucli.Command{
		Name: "diff", Usage: "list the files added and removed between two versions, and their rows", ArgsUsage: "A B",
		UsageText: "cardinal diff 12 15",
		Flags:     append(cli.TableFlags(), cli.JSONFlag()),
		Action: func(c *ucli.Context) error {
			if c.Args().Len() != 2 {
				return fmt.Errorf("%w: expected two versions", cli.ErrUsage)
			}
			var versions [2]action.Version
			for i, arg := range c.Args().Slice() {
				v, err := parseVersion(arg)
				if err != nil {
					return err
				}
				versions[i] = v
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			var snaps [2]*txlog.Snapshot
			for i, v := range versions {
				if snaps[i], err = db.Log.Snapshot(c.Context, txlog.AtVersion(v)); err != nil {
					return err
				}
			}
			changes := txlog.CompareFiles(snaps[0], snaps[1])
			if err := printChanges(c, changes); err != nil || c.Bool("json") {
				return err
			}
			return cli.Printf(c.App.Writer, "from version %d to %d %s\n", int64(versions[0]), int64(versions[1]), describeChanges(changes))
		},
	}
}

func restoreCommand() *ucli.Command {
	return &ucli.Command{
		Name: "restore", Usage: "make a new version with the files of an old one; without --execute, print what would change",
		UsageText: "cardinal restore --version 12 --execute",
		Flags: append(cli.TableFlags(), cli.JSONFlag(),
			&ucli.Int64Flag{Name: "version", Usage: "bring back the files of version `N`"},
			&ucli.BoolFlag{Name: "execute", Usage: "restore; without it nothing is changed"}),
		Action: func(c *ucli.Context) error {
			if err := cli.NoArgs(c); err != nil {
				return err
			}
			if !c.IsSet("version") || c.Int64("version") < 0 {
				return fmt.Errorf("%w: --version says which version to restore", cli.ErrUsage)
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			plan, err := db.Log.PlanRestore(c.Context, action.Version(c.Int64("version")))
			if err != nil {
				return err
			}
			if !c.Bool("execute") {
				if err := printChanges(c, plan.Changes); err != nil || c.Bool("json") {
					return err
				}
				return cli.Printf(c.App.Writer, "after version %d: %s. Nothing was changed: --execute restores version %d.\n", int64(plan.Base), describeChanges(plan.Changes), int64(plan.To))
			}
			if len(plan.Changes.Added)+len(plan.Changes.Removed) == 0 {
				return printRestored(c, plan, plan.Base)
			}
			snap, err := plan.Commit(c.Context)
			if err != nil {
				return err
			}
			return printRestored(c, plan, snap.Version())
		},
	}
}

// printRestored tells which version holds the restored files: a new one, or
// the latest, if they were what it had.
func printRestored(c *ucli.Context, plan *txlog.Restore, v action.Version) error {
	if c.Bool("json") {
		added, removed := txlog.TotalOf(plan.Changes.Added), txlog.TotalOf(plan.Changes.Removed)
		return json.NewEncoder(c.App.Writer).Encode(map[string]any{
			"version": int64(v), "restored": int64(plan.To),
			"files_added": added.Files, "rows_added": added.Rows, "bytes_added": added.Bytes,
			"files_removed": removed.Files, "rows_removed": removed.Rows, "bytes_removed": removed.Bytes,
		})
	}
	if v == plan.Base {
		return cli.Printf(c.App.Writer, "version %d has the files of version %d already; nothing was changed\n", int64(v), int64(plan.To))
	}
	return cli.Printf(c.App.Writer, "version %d has the files of version %d: %s\n", int64(v), int64(plan.To), describeChanges(plan.Changes))
}
