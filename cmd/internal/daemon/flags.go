package daemon

import (
	"fmt"
	"os"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/ingest"
	"cardinalsin/wal"
)

// Flags are those of a process that serves.
func Flags() []ucli.Flag {
	return append(cli.TableFlags(),
		&ucli.StringFlag{Name: "http", Value: "localhost:8080", Usage: "listen on `ADDRESS`"},
		&ucli.StringFlag{Name: "grpc", Value: "localhost:4317", Usage: "listen on `ADDRESS` for OTLP and Arrow Flight; empty for neither"},
		&ucli.StringFlag{Name: "config", Usage: "`FILE` with limits of tenants and Prometheus' scrape_configs"},
		&ucli.StringFlag{Name: "wal-dir", Value: "./cardinal-wal", Usage: "`DIR` of the write-ahead log"},
		&ucli.StringFlag{Name: "wal-sync", Value: "always", Usage: "acknowledge after an fsync (always), or sync every so often and lose as much when the machine crashes: `MODE` interval=100ms"},
		&ucli.Int64Flag{Name: "wal-max-bytes", Value: 8 << 30, Usage: "let the log of a table grow to `BYTES` while the store does not answer; 0 for what the disk holds"},
		&ucli.DurationFlag{Name: "flush-age", Value: 10 * time.Second, Usage: "commit samples at most this long after they came"},
		&ucli.Int64Flag{Name: "flush-bytes", Usage: "commit once the head takes this many `BYTES`", DefaultText: "what suits the writer"},
		&ucli.Int64Flag{Name: "max-head-bytes", Value: 2 << 30, Usage: "bound of all heads together in `BYTES`"},
		&ucli.IntFlag{Name: "max-tables", Value: 1000, Usage: "keep at most `N` tables open; those of idle tenants are closed"},
		&ucli.DurationFlag{Name: "idle-after", Value: 15 * time.Minute, Usage: "close a tenant's table that nobody used for so long"},
		&ucli.BoolFlag{Name: "trace", Usage: "export OpenTelemetry traces as the OTEL_* environment says; on by itself where OTEL_EXPORTER_OTLP_ENDPOINT is set"},
		&ucli.IntFlag{Name: "limit-series", Usage: "at most `N` active series a tenant"},
		&ucli.IntFlag{Name: "limit-label-names", Usage: "at most `N` labels a series"},
		&ucli.IntFlag{Name: "limit-label-name-length", Usage: "at most `N` bytes a label name"},
		&ucli.IntFlag{Name: "limit-label-value-length", Usage: "at most `N` bytes a label value"},
		&ucli.IntFlag{Name: "limit-samples", Usage: "at most `N` samples a request"},
		&ucli.Float64Flag{Name: "limit-rate", Usage: "at most `N` samples a second and tenant"},
	)
}

// OptionsOf are what the flags say.
func OptionsOf(c *ucli.Context) (Options, error) {
	logger, err := cli.Logger(c)
	if err != nil {
		return Options{}, err
	}
	w, err := walOptions(c)
	if err != nil {
		return Options{}, err
	}
	limits := ingest.Limits{
		MaxSeries: c.Int("limit-series"), MaxLabelNames: c.Int("limit-label-names"),
		MaxLabelNameLength: c.Int("limit-label-name-length"), MaxLabelValueLength: c.Int("limit-label-value-length"),
		MaxSamplesPerRequest: c.Int("limit-samples"), SamplesPerSecond: c.Float64("limit-rate"),
	}
	if err := validateLimits(limits); err != nil {
		return Options{}, fmt.Errorf("%w: --limit-…: %w", cli.ErrUsage, err)
	}
	o := Options{HTTP: c.String("http"), GRPC: c.String("grpc"), Trace: c.Bool("trace") || traceWanted()}
	if o.Config, err = readConfig(c.String("config"), limits); err != nil {
		return Options{}, err
	}
	o.Tables = cardinalsin.TenantsOptions{
		Options: cardinalsin.Options{
			Store: c.String("store"), Tenant: c.String("tenant"), Table: c.String("table"),
			WALDir: c.String("wal-dir"), WAL: w, Logger: logger,
		},
		MaxOpen: c.Int("max-tables"), MaxHeadBytes: c.Int64("max-head-bytes"), IdleAfter: c.Duration("idle-after"),
	}
	o.Tables.Writer.FlushAge = c.Duration("flush-age")
	o.Tables.Writer.FlushBytes = c.Int64("flush-bytes")
	return o, nil
}

// traceWanted tells whether the environment names where spans go.
func traceWanted() bool {
	return os.Getenv("OTEL_TRACES_EXPORTER") != "none" &&
		(os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "")
}

// walOptions reads --wal-sync and --wal-max-bytes.
func walOptions(c *ucli.Context) (wal.Options, error) {
	o := wal.Options{MaxBytes: c.Int64("wal-max-bytes")}
	if o.MaxBytes < 0 {
		return wal.Options{}, fmt.Errorf("%w: --wal-max-bytes %d", cli.ErrUsage, o.MaxBytes)
	}
	mode, interval, timed := strings.Cut(c.String("wal-sync"), "=")
	switch {
	case mode == "always" && !timed:
		return o, nil
	case mode == "interval" && timed:
		d, err := time.ParseDuration(interval)
		if err == nil && d >= time.Millisecond && d <= time.Minute {
			o.Sync, o.SyncInterval = wal.SyncDeferred, d
			return o, nil
		}
	}
	return wal.Options{}, fmt.Errorf("%w: --wal-sync %q is neither always nor interval=1ms to 1m", cli.ErrUsage, c.String("wal-sync"))
}
