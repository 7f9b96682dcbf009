package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	ucli "github.com/urfave/cli/v2"
	"golang.org/x/term"

	"cardinalsin"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/importer"
	"cardinalsin/ingest"
	"cardinalsin/txlog"
)

// importRow is one input in `cardinal import`.
type importRow struct {
	File      string `json:"file"`
	Format    string `json:"format"`
	Samples   int64  `json:"samples"`
	Exemplars int64  `json:"exemplars"`
	Metadata  int64  `json:"metadata"`
	// Rows and files that this run added: none, if the input was there.
	Rows    int64 `json:"rows_added"`
	Files   int64 `json:"files_added"`
	LeftOut int64 `json:"left_out"`
}

// units are what a number in a file may count, as Influx names them.
var units = map[string]time.Duration{
	"ns": time.Nanosecond, "us": time.Microsecond, "ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour,
}

func importCommand() *ucli.Command {
	return &ucli.Command{
		Name: "import", Usage: "bring files of other systems into the table; what is there already is not added again", ArgsUsage: "FILE…",
		UsageText: "cardinal import --format csv --precision s history.csv\n   cardinal import /var/lib/prometheus",
		Flags: append(cli.TableFlags(), cli.JSONFlag(),
			&ucli.StringFlag{Name: "format", Usage: "`FORMAT`: openmetrics, prometheus, tsdb, influx, csv or parquet", DefaultText: "by name and content"},
			&ucli.StringFlag{Name: "precision", Usage: "`UNIT` of timestamps that are numbers, in csv and influx: ns, us, ms, s, m or h"},
			&ucli.TimestampFlag{Name: "time", Layout: time.RFC3339, Usage: "`TIME` of samples that have none", DefaultText: "such a sample is an error"},
		),
		Action: func(c *ucli.Context) (err error) {
			if !c.Args().Present() {
				return fmt.Errorf("%w: expected files to import", cli.ErrUsage)
			}
			o, err := importOptions(c)
			if err != nil {
				return err
			}
			db, err := tableOptions(c)
			if err != nil {
				return err
			}
			db.AnyPath, db.Create = false, true // other engines' tables are theirs to write
			tables := &importTables{opts: db, open: map[importer.Kind]*cardinalsin.DB{}}
			defer func() { err = errors.Join(err, tables.close(context.WithoutCancel(c.Context))) }()
			return runImports(c, tables, o)
		},
	}
}

func importOptions(c *ucli.Context) (importer.Options, error) {
	logger, err := cli.Logger(c)
	if err != nil {
		return importer.Options{}, err
	}
	o := importer.Options{Format: importer.Format(c.String("format")), Logger: logger}
	switch o.Format {
	case importer.Auto, importer.OpenMetrics, importer.Prometheus, importer.TSDB, importer.Influx, importer.CSV, importer.Parquet:
	default:
		return o, fmt.Errorf("%w: --format %q", cli.ErrUsage, o.Format)
	}
	if p := c.String("precision"); p != "" {
		if o.Unit = units[p]; o.Unit == 0 {
			return o, fmt.Errorf("%w: --precision %q is none of ns, us, ms, s, m, h", cli.ErrUsage, p)
		}
	}
	if t := c.Timestamp("time"); t != nil {
		o.Time = *t
	}
	return o, nil
}

// runImports imports one file after the other, up to the first that fails, and
// prints what was done until then.
func runImports(c *ucli.Context, tables importer.Tables, o importer.Options) error {
	var rows []importRow
	leftOut := int64(0)
	var failed error
	for _, path := range c.Args().Slice() {
		show, done := progress(c.App.ErrWriter, path)
		o.Progress = show
		results, err := importer.Run(c.Context, tables, path, o)
		err = errors.Join(err, done())
		for _, r := range results {
			rows = append(rows, importRow{r.Path, string(r.Format), r.Samples, r.Exemplars, r.Metadata, r.Rows, r.Files, r.LeftOut})
			leftOut += r.LeftOut
		}
		if errors.Is(err, importer.ErrFormat) {
			err = fmt.Errorf("%w: %w", cli.ErrUsage, err)
		}
		if err != nil {
			failed = err
			break
		}
	}
	if failed == nil && leftOut > 0 {
		failed = fmt.Errorf("%w: %d fields have no place in the table and were left out", cli.ErrPartial, leftOut)
	}
	return errors.Join(cli.Listing[importRow]{
		Header: "FILE\tFORMAT\tSAMPLES\tEXEMPLARS\tMETADATA\tROWS ADDED\tFILES ADDED\tLEFT OUT",
		Columns: func(r importRow) string {
			return fmt.Sprintf("%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d", r.File, r.Format, r.Samples, r.Exemplars, r.Metadata, r.Rows, r.Files, r.LeftOut)
		},
	}.Print(c, rows), failed)
}

// progress is a bar on a terminal, and nothing elsewhere.
func progress(w io.Writer, path string) (tell func(read, total int64), done func() error) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() error { return nil }
	}
	var bar *progressbar.ProgressBar
	tell = func(read, total int64) {
		if bar == nil || bar.GetMax64() != total {
			bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(path),
				progressbar.OptionShowBytes(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		}
		_ = bar.Set64(read) // a terminal that is gone is no reason to stop
	}
	return tell, func() error {
		if bar == nil {
			return nil
		}
		return bar.Clear()
	}
}

// importTables opens what an import writes to, and makes what is missing.
type importTables struct {
	opts cardinalsin.Options
	open map[importer.Kind]*cardinalsin.DB
}

// Table implements importer.Tables.
func (t *importTables) Table(ctx context.Context, kind importer.Kind) (*txlog.Log, error) {
	if db := t.open[kind]; db != nil {
		return db.Log, nil
	}
	o := t.opts
	switch kind {
	case importer.Exemplars:
		o.Table = ingest.ExemplarsTable(o.Table)
	case importer.Metadata:
		o.Table = ingest.MetadataTable(o.Table)
	}
	db, err := cardinalsin.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	t.open[kind] = db
	return db.Log, nil
}

func (t *importTables) close(ctx context.Context) error {
	var errs []error
	for _, db := range t.open {
		errs = append(errs, db.Close(ctx))
	}
	return errors.Join(errs...)
}
