package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/util/stats"
	ucli "github.com/urfave/cli/v2"

	"cardinalsin/api/prom"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/planner"
	"cardinalsin/sqlengine"
)

// maxStatement bounds SQL read from stdin.
const maxStatement = 1 << 20

func sqlCommand() *ucli.Command {
	return &ucli.Command{
		Name: "sql", Usage: "run a SELECT over one version of the table", ArgsUsage: "'SELECT …' or -",
		UsageText: "cardinal sql --version 12 'SELECT metric_name, count(*) FROM metrics GROUP BY ALL'",
		Flags: append(append(cli.TableFlags(), cli.AtFlags()...),
			&ucli.StringFlag{Name: "format", Value: "table", Usage: "`FORMAT` of the rows: table, csv, json, ndjson, arrow or parquet"},
			&ucli.BoolFlag{Name: "explain", Usage: "print what would be read and skipped, and why"},
			&ucli.DurationFlag{Name: "timeout", Value: 5 * time.Minute, Usage: "give up after `DURATION`"},
			&ucli.StringFlag{Name: "cache-dir", Usage: "`DIR` for files of remote stores"},
		),
		Action: func(c *ucli.Context) (err error) {
			query, err := statement(c)
			if err != nil {
				return err
			}
			at, err := cli.At(c)
			if err != nil {
				return err
			}
			format, err := sqlengine.ParseFormat(c.String("format"))
			if err != nil {
				return fmt.Errorf("%w: --format: %w", cli.ErrUsage, err)
			}
			opts, err := tableOptions(c)
			if err != nil {
				return err
			}
			opts.CacheDir = c.String("cache-dir")
			db, closeTable, err := openWithCache(c.Context, opts)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeTable(c.Context)) }()
			engine, closeSQL, err := openSQL(c.Context, db)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeSQL()) }()
			limits := sqlengine.QueryOptions{At: at, Timeout: c.Duration("timeout")}
			if c.Bool("explain") {
				return explain(c, engine, query, limits)
			}
			rows, err := engine.Query(c.Context, query, limits)
			if err != nil {
				return err
			}
			defer rows.Close()
			_, err = format.Write(c.Context, c.App.Writer, rows)
			return err
		},
	}
}

func statement(c *ucli.Context) (string, error) {
	if c.Args().Len() != 1 {
		return "", fmt.Errorf("%w: expected one statement, or - to read it from stdin", cli.ErrUsage)
	}
	if c.Args().First() != "-" {
		return c.Args().First(), nil
	}
	text, err := io.ReadAll(io.LimitReader(c.App.Reader, maxStatement+1))
	if err != nil {
		return "", fmt.Errorf("read the statement: %w", err)
	}
	if len(text) > maxStatement {
		return "", fmt.Errorf("%w: the statement is longer than %d bytes", cli.ErrUsage, maxStatement)
	}
	return string(text), nil
}

// explain prints files read and skipped, by reason, and DuckDB's plan.
func explain(c *ucli.Context, engine *sqlengine.Engine, query string, limits sqlengine.QueryOptions) error {
	e, err := engine.Explain(c.Context, query, limits)
	if err != nil {
		return err
	}
	for _, t := range e.Tables {
		head := "without the head"
		if t.Head {
			head = "with the head"
		}
		if err := cli.Printf(c.App.Writer, "%s at version %d, %s: %d files read, %s, %d of %d row groups skipped\n", t.Table, int64(t.Version), head, t.Files, cli.Bytes(t.Bytes), t.RowGroupsSkipped, t.RowGroups); err != nil {
			return err
		}
		if t.Excerpts > 0 {
			if err := cli.Printf(c.App.Writer, "  of %d of the files only the columns and row groups asked for, %s\n", t.Excerpts, cli.Bytes(t.ExcerptBytes)); err != nil {
				return err
			}
		}
		for _, reason := range planner.Reasons {
			if n := t.Skipped[reason]; n > 0 {
				if err := cli.Printf(c.App.Writer, "  %d files skipped by %s, %s\n", n, reason, cli.Bytes(t.SkippedBytes[reason])); err != nil {
					return err
				}
			}
		}
	}
	return cli.Printf(c.App.Writer, "%s\n", e.Plan)
}

func promqlCommand() *ucli.Command {
	return &ucli.Command{
		Name: "promql", Usage: "evaluate a PromQL expression over one version of the table", ArgsUsage: "'EXPR'",
		UsageText: "cardinal promql --start 2026-11-22T10:00:00Z --end 2026-11-22T11:00:00Z --step 1m 'rate(node_cpu_seconds_total[5m])'",
		Flags: append(append(cli.TableFlags(), cli.AtFlags()...), cli.JSONFlag(),
			&ucli.TimestampFlag{Name: "time", Layout: time.RFC3339, Usage: "evaluate at `TIME`", DefaultText: "now"},
			&ucli.TimestampFlag{Name: "start", Layout: time.RFC3339, Usage: "first `TIME` of a range"},
			&ucli.TimestampFlag{Name: "end", Layout: time.RFC3339, Usage: "last `TIME` of a range"},
			&ucli.DurationFlag{Name: "step", Usage: "`DURATION` between the steps of a range"},
		),
		Action: func(c *ucli.Context) (err error) {
			if c.Args().Len() != 1 {
				return fmt.Errorf("%w: expected one expression", cli.ErrUsage)
			}
			at, err := cli.At(c)
			if err != nil {
				return err
			}
			steps, err := promSteps(c)
			if err != nil {
				return err
			}
			db, err := openTable(c)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, db.Close(c.Context)) }()
			query, err := steps.query(c, prom.NewEngine(prom.Options{Reader: db.Reader}), prom.NewQueryable(db.Reader))
			if err != nil {
				return err
			}
			defer query.Close()
			result := query.Exec(prom.AtContext(c.Context, at))
			if result.Err != nil {
				return result.Err
			}
			if c.Bool("json") {
				return json.NewEncoder(c.App.Writer).Encode(map[string]any{"resultType": result.Value.Type(), "result": result.Value, "stats": stats.NewQueryStats(query.Stats())})
			}
			return cli.Printf(c.App.Writer, "%s\n", strings.TrimSuffix(result.Value.String(), "\n"))
		},
	}
}

// promRange is when to evaluate: once, at start, where step is 0.
type promRange struct {
	start, end time.Time
	step       time.Duration
}

// promSteps reads the flags.
func promSteps(c *ucli.Context) (promRange, error) {
	start, end, step := c.Timestamp("start"), c.Timestamp("end"), c.Duration("step")
	if start == nil && end == nil && step == 0 {
		if t := c.Timestamp("time"); t != nil {
			return promRange{start: *t}, nil
		}
		return promRange{start: time.Now()}, nil
	}
	if start == nil || end == nil || step <= 0 || c.IsSet("time") || end.Before(*start) {
		return promRange{}, fmt.Errorf("%w: a range needs --start, --end not before it, a positive --step, and no --time", cli.ErrUsage)
	}
	return promRange{*start, *end, step}, nil
}

// query builds the instant or range query of the expression that was given.
func (r promRange) query(c *ucli.Context, engine *promql.Engine, q *prom.Queryable) (query promql.Query, err error) {
	if r.step == 0 {
		query, err = engine.NewInstantQuery(c.Context, q, nil, c.Args().First(), r.start)
	} else {
		query, err = engine.NewRangeQuery(c.Context, q, nil, c.Args().First(), r.start, r.end, r.step)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", cli.ErrUsage, err)
	}
	return query, nil
}
