package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ucli "github.com/urfave/cli/v2"

	"cardinalsin/cmd/internal/cli"
	"cardinalsin/ingest"
	"cardinalsin/wal"
)

// parsed runs the flags of a daemon.
func parsed(t *testing.T, args ...string) (o Options, err error) {
	t.Helper()
	app := &ucli.App{Flags: Flags(), ErrWriter: &strings.Builder{}, Action: func(c *ucli.Context) error {
		var err error
		o, err = OptionsOf(c)
		return err
	}}
	if code := cli.Run(t.Context(), app, append([]string{"x"}, args...)); code == cli.Usage {
		return o, cli.ErrUsage
	} else if code != cli.OK {
		t.Fatalf("exit code %d", code)
	}
	return o, nil
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConfig: the file changes what the flags say, and a tenant's limits
// change the file's default.
func TestConfig(t *testing.T) {
	path := writeFile(t, `
limits:
  default: {max_series: 100, burst: 5}
  tenants:
    acme: {max_series: 0, samples_per_second: 1e6}
    small: {max_label_names_per_series: 3}
global: {scrape_interval: 5s}
scrape_configs:
  - job_name: node
`)
	o, err := parsed(t, "--limit-series", "7", "--limit-rate", "10", "--limit-label-name-length", "64", "--config", path)
	if err != nil {
		t.Fatal(err)
	}
	for tenant, want := range map[string]ingest.Limits{
		"default": {MaxSeries: 100, SamplesPerSecond: 10, Burst: 5, MaxLabelNameLength: 64},
		"acme":    {MaxSeries: 0, SamplesPerSecond: 1e6, Burst: 5, MaxLabelNameLength: 64},
		"small":   {MaxSeries: 100, SamplesPerSecond: 10, Burst: 5, MaxLabelNameLength: 64, MaxLabelNames: 3},
	} {
		if d := cmp.Diff(want, o.Config.limits(tenant)); d != "" {
			t.Errorf("%s: %s", tenant, d)
		}
	}
	if o.Config.Scrape == nil || o.Config.Scrape.Jobs() != 1 {
		t.Errorf("scrape: %+v", o.Config.Scrape)
	}
	if o, err = parsed(t, "--config", writeFile(t, "# nothing yet\n")); err != nil || o.Config.Scrape != nil {
		t.Errorf("an empty file: %v, %v", err, o.Config.Scrape)
	}
}

func TestConfigMistakes(t *testing.T) {
	for name, text := range map[string]string{
		"no yaml":              "limits: [",
		"unknown limit":        "limits: {default: {max_serie: 1}}",
		"unknown part":         "limits: {defaults: {max_series: 1}}",
		"unknown limit of one": "limits: {tenants: {a: {max_serie: 1}}}",
		"negative":             "limits: {default: {max_series: -1}}",
		"no rate":              "limits: {default: {samples_per_second: .nan}}",
		"tenant's name":        "limits: {tenants: {../a: {max_series: 1}}}",
		"no scraping":          "scrape_configs: [{job_name: a}, {job_name: a}]",
		"other section":        "remote_write: [{url: http://localhost}]",
		"not a map":            "limits: 3",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := readConfig(writeFile(t, text), ingest.Limits{}); !errors.Is(err, cli.ErrUsage) {
				t.Errorf("err = %v", err)
			}
		})
	}
	if _, err := readConfig(filepath.Join(t.TempDir(), "none"), ingest.Limits{}); !errors.Is(err, cli.ErrUsage) {
		t.Errorf("no file: %v", err)
	}
}

func TestWALFlags(t *testing.T) {
	for args, want := range map[string]wal.Options{
		"":                          {MaxBytes: 8 << 30},
		"--wal-sync always":         {MaxBytes: 8 << 30},
		"--wal-max-bytes 0":         {},
		"--wal-sync interval=100ms": {MaxBytes: 8 << 30, Sync: wal.SyncDeferred, SyncInterval: 100 * time.Millisecond},
		"--wal-sync=interval=1m":    {MaxBytes: 8 << 30, Sync: wal.SyncDeferred, SyncInterval: time.Minute},
	} {
		t.Run(args, func(t *testing.T) {
			o, err := parsed(t, strings.Fields(args)...)
			if err != nil {
				t.Fatal(err)
			}
			if got := o.Tables.WAL; got.Sync != want.Sync || got.SyncInterval != want.SyncInterval || got.MaxBytes != want.MaxBytes {
				t.Errorf("%+v", got)
			}
		})
	}
	for _, args := range []string{"--wal-sync never", "--wal-sync interval", "--wal-sync interval=0s", "--wal-sync interval=1h", "--wal-sync always=1s", "--wal-max-bytes -1", "--limit-series -1", "--limit-rate NaN"} {
		t.Run(args, func(t *testing.T) {
			if _, err := parsed(t, strings.Fields(args)...); !errors.Is(err, cli.ErrUsage) {
				t.Errorf("err = %v", err)
			}
		})
	}
}
