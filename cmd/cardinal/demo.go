package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin"
	"cardinalsin/action"
	"cardinalsin/check"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/cmd/internal/daemon"
	"cardinalsin/internal/remotewrite"
	"cardinalsin/txlog"
	"cardinalsin/vacuum"
)

const (
	demoRounds   = 12                     // gatherings a phase
	demoInterval = 150 * time.Millisecond // between two gatherings
	demoFlushes  = 4                      // files that the second phase leaves to compact
)

func demoCommand() *ucli.Command {
	return &ucli.Command{
		Name: "demo", Usage: "watch this machine's own metrics being written, queried, compacted, vacuumed and checked",
		UsageText: "cardinal demo\n   cardinal demo --store 's3://bucket/demo?endpoint=http://127.0.0.1:7070&path_style=true'",
		Flags: append([]ucli.Flag{
			&ucli.StringFlag{Name: "store", Usage: "store `URL` to use instead of a folder that is removed at the end"},
			&ucli.StringFlag{Name: "keep-data", Usage: "leave the table in the folder `DIR`"},
			&ucli.BoolFlag{Name: "keep", Usage: "leave the server running at the end, until interrupted"},
		}, cli.LogFlags()...),
		Action: runDemo,
	}
}

// demo is one run: the server, how to talk to it, and where to tell of it.
type demo struct {
	out   io.Writer
	db    *cardinalsin.DB
	url   string
	host  *hostMetrics
	begin time.Time
	sent  int // samples acknowledged
}

func runDemo(c *ucli.Context) (err error) {
	if err := cli.NoArgs(c); err != nil {
		return err
	}
	logger := slog.New(slog.DiscardHandler)
	if c.IsSet("log-level") || c.IsSet("log-format") {
		if logger, err = cli.Logger(c); err != nil {
			return err
		}
	}
	work, err := os.MkdirTemp("", "cardinal-demo-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	opts := cardinalsin.Options{
		Store:    c.String("store"),
		WALDir:   filepath.Join(work, "wal"),
		CacheDir: filepath.Join(work, "cache"),
		Logger:   logger,
	}
	switch {
	case opts.Store != "" && c.String("keep-data") != "":
		return fmt.Errorf("%w: --store and --keep-data exclude each other", cli.ErrUsage)
	case c.String("keep-data") != "":
		opts.Store = c.String("keep-data")
	case opts.Store == "":
		opts.Store = filepath.Join(work, "store")
	}
	host, err := newHostMetrics()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(c.Context)
	defer stop()
	tables := cardinalsin.TenantsOptions{Options: opts, Compact: true}
	srv, err := openServer(ctx, serverOptions{Options: daemon.Options{Tables: tables, HTTP: "127.0.0.1:0"}})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- srv.Run(ctx, io.Discard) }()
	d := &demo{out: c.App.Writer, db: srv.DB, url: "http://" + srv.HTTPAddr(), host: host, begin: time.Now()}
	err = d.run(ctx)
	if err == nil && c.Bool("keep") {
		err = cli.Printf(d.out, "\nserving at %s until interrupted\n", d.url)
		<-ctx.Done()
	}
	stop()
	return errors.Join(err, <-served)
}

// say prints one line of the tale with the time since the start.
func (d *demo) say(format string, args ...any) error {
	return cli.Printf(d.out, "%6.2fs  %s\n", time.Since(d.begin).Seconds(), fmt.Sprintf(format, args...))
}

// run goes through the acts; the first thing that is not as promised ends it.
func (d *demo) run(ctx context.Context) error {
	if err := d.say("server at %s, table %s in %s", d.url, d.db.Log.Root(), d.db.StoreURL()); err != nil {
		return err
	}
	for _, act := range []func(context.Context) error{d.write, d.agree, d.travel} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

// send gathers this machine's metrics some times and sends them by remote
// write.
func (d *demo) send(ctx context.Context, rounds int) error {
	client := remotewrite.Client{URL: d.url + "/api/v1/write"}
	for range rounds {
		ts, err := d.host.gather(time.Now(), "demo")
		if err != nil {
			return err
		}
		if err := client.Send(ctx, ts); err != nil {
			return err
		}
		d.sent += len(ts)
		select {
		case <-time.After(demoInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (d *demo) write(ctx context.Context) error {
	if err := d.send(ctx, demoRounds); err != nil {
		return err
	}
	return d.say("wrote %d samples of this machine by remote write, each acknowledged after an fsync", d.sent)
}

// agree asks the same questions in PromQL and in SQL.
func (d *demo) agree(ctx context.Context) error {
	count, err := d.countAll(ctx)
	if err != nil {
		return err
	}
	memory, err := d.promql(ctx, `sum(sum_over_time(node_memory_MemTotal_bytes[1h]))`)
	if err != nil {
		return err
	}
	rows, err := d.sql(ctx, `SELECT count(*), sum(value) FILTER (metric_name = 'node_memory_MemTotal_bytes') FROM metrics`)
	if err != nil {
		return err
	}
	sqlCount, err := strconv.ParseFloat(rows[0][0], 64)
	if err != nil {
		return err
	}
	sqlMemory, err := strconv.ParseFloat(rows[0][1], 64)
	if err != nil {
		return err
	}
	if err := d.say("PromQL counts %.0f samples, SQL %.0f; sum of MemTotal %.0f and %.0f", count, sqlCount, memory, sqlMemory); err != nil {
		return err
	}
	if count != sqlCount || memory != sqlMemory || int(count) != d.sent {
		return fmt.Errorf("PromQL and SQL do not agree with each other and the %d samples sent", d.sent)
	}
	return nil
}

// fingerprint is a digest of every row of a version.
func (d *demo) fingerprint(ctx context.Context, v action.Version) (string, error) {
	rows, err := d.sql(ctx, fmt.Sprintf(`SELECT count(*) || ' rows, digest ' || bit_xor(hash(metric_name, series_id, "timestamp", value)) FROM metrics AT (VERSION => %d)`, int64(v)))
	if err != nil {
		return "", err
	}
	return rows[0][0], nil
}

// travel remembers a version, writes more, compacts, vacuums, and reads the
// version again after each.
func (d *demo) travel(ctx context.Context) error {
	if err := d.db.Writer.Flush(ctx); err != nil {
		return err
	}
	snap, err := d.db.Log.Snapshot(ctx, txlog.Latest())
	if err != nil {
		return err
	}
	past := snap.Version()
	before, err := d.fingerprint(ctx, past)
	if err != nil {
		return err
	}
	if err := d.say("flushed: version %d holds %s", int64(past), before); err != nil {
		return err
	}
	same := func(when string) error {
		now, err := d.fingerprint(ctx, past)
		if err != nil {
			return err
		}
		if now != before {
			return fmt.Errorf("version %d changed %s: %s, then %s", int64(past), when, before, now)
		}
		return d.say("version %d %s: %s, the same", int64(past), when, now)
	}
	for range demoFlushes {
		if err := d.send(ctx, demoRounds/demoFlushes); err != nil {
			return err
		}
		if err := d.db.Writer.Flush(ctx); err != nil {
			return err
		}
	}
	if err := d.say("wrote on, %d samples in all", d.sent); err != nil {
		return err
	}
	if err := same("after more writes"); err != nil {
		return err
	}
	jobs, err := d.db.Compactor.RunAll(ctx)
	if err != nil {
		return err
	}
	if snap, err = d.db.Log.Snapshot(ctx, txlog.Latest()); err != nil {
		return err
	}
	if err := d.say("compacted: %d jobs, %d files are left in version %d", len(jobs), snap.NumFiles(), int64(snap.Version())); err != nil {
		return err
	}
	if err := same("after the compaction"); err != nil {
		return err
	}
	if err := d.vacuum(ctx, vacuum.Options{Full: true}); err != nil {
		return err
	}
	if err := same("after a vacuum that keeps 7 days"); err != nil {
		return err
	}
	// Our own pin still covers the old version: it is raised lazily. Give it
	// back, as a process that ends does.
	if err := d.db.Pins.Close(ctx); err != nil {
		return err
	}
	if err := d.vacuum(ctx, vacuum.Options{Retain: vacuum.NoRetention, AllowShortRetention: true}); err != nil {
		return err
	}
	if _, err := d.fingerprint(ctx, past); err == nil {
		return fmt.Errorf("version %d is read after a vacuum that kept nothing", int64(past))
	} else if err := d.say("after a vacuum that keeps nothing, the old version is refused: %v", err); err != nil {
		return err
	}
	if err := d.agree(ctx); err != nil {
		return err
	}
	findings, err := check.Run(ctx, d.db.Log, check.Options{Deep: true})
	if err != nil {
		return err
	}
	if len(findings) > 0 {
		return fmt.Errorf("%w: %v", cli.ErrFindings, findings)
	}
	if snap, err = d.db.Log.Snapshot(ctx, txlog.Latest()); err != nil {
		return err
	}
	return d.say("checked every chunk and commit: no findings. %d versions, %d files, %s, %.2f bytes a sample",
		int64(snap.Version())+1, snap.NumFiles(), cli.Bytes(snap.Bytes()), float64(snap.Bytes())/float64(d.sent))
}

func (d *demo) vacuum(ctx context.Context, opts vacuum.Options) error {
	report, err := d.db.Vacuum(ctx, opts)
	if err != nil {
		return err
	}
	return d.say("vacuumed: %s", describe(report))
}

// countAll counts the samples of every metric in PromQL, one metric a query: a
// count drops the metric's name, and across metrics series would coincide.
func (d *demo) countAll(ctx context.Context) (total float64, err error) {
	var names struct{ Data []string }
	if err := d.request(ctx, http.MethodGet, "/api/v1/label/__name__/values", "", nil, func(r io.Reader) error {
		return json.NewDecoder(r).Decode(&names)
	}); err != nil {
		return 0, err
	}
	for _, name := range names.Data {
		n, err := d.promql(ctx, fmt.Sprintf(`sum(count_over_time(%s[1h]))`, name))
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// promql asks for one number.
func (d *demo) promql(ctx context.Context, expr string) (float64, error) {
	var answer struct {
		Error string
		Data  struct {
			Result []struct{ Value [2]any }
		}
	}
	form := url.Values{"query": {expr}}
	if err := d.request(ctx, http.MethodPost, "/api/v1/query", "application/x-www-form-urlencoded", []byte(form.Encode()), func(r io.Reader) error {
		return json.NewDecoder(r).Decode(&answer)
	}); err != nil {
		return 0, err
	}
	if len(answer.Data.Result) != 1 {
		return 0, fmt.Errorf("promql %s: %d results, expected one", expr, len(answer.Data.Result))
	}
	text, ok := answer.Data.Result[0].Value[1].(string)
	if !ok {
		return 0, fmt.Errorf("promql %s: value %v", expr, answer.Data.Result[0].Value[1])
	}
	return strconv.ParseFloat(text, 64)
}

// sql asks for rows, without the header.
func (d *demo) sql(ctx context.Context, query string) (rows [][]string, err error) {
	body, err := json.Marshal(map[string]string{"query": query, "format": "csv"})
	if err != nil {
		return nil, err
	}
	err = d.request(ctx, http.MethodPost, "/api/v1/sql", "application/json", body, func(r io.Reader) error {
		rows, err = csv.NewReader(r).ReadAll()
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(rows) < 2 {
		return nil, fmt.Errorf("sql %s: no rows", query)
	}
	return rows[1:], nil
}

// request sends one request and hands the answer to read; an answer other than
// 200 is an error that says what the server said.
func (d *demo) request(ctx context.Context, method, path, contentType string, body []byte, read func(io.Reader) error) (err error) {
	req, err := http.NewRequestWithContext(ctx, method, d.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if err != nil {
			return err
		}
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return read(resp.Body)
}
