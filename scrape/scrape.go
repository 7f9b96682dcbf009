// Package scrape pulls metrics from targets: upstream's discovery and scrape
// managers do that, this package hands what they find to a Sink.
//
// It stands on layer 7, beside the protocols that clients speak. It takes the
// part of a Prometheus configuration that says what to scrape; targets are
// listed there or in files. One scrape is one request: it is kept whole or not
// at all, and upstream's up, scrape_samples_scraped and their like are part of
// it.
//
// INVARIANT: what a scrape finds is kept with what belongs to it, exemplars,
// metadata, start times, native histograms and markers of staleness; what is
// refused is counted and logged.
package scrape

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	_ "github.com/prometheus/prometheus/discovery/file" // file_sd_configs
	upstream "github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/util/logging"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"cardinalsin/ingest"
)

// ErrConfig: a configuration is malformed, or asks for what is not here.
var ErrConfig = errors.New("invalid scrape configuration")

// Config says what to scrape.
type Config struct {
	upstream *config.Config
	jobs     []*config.ScrapeConfig
}

// sections are those of a Prometheus configuration that have a meaning here.
var sections = []string{"global", "runtime", "scrape_configs", "scrape_config_files"}

// Parse reads a Prometheus configuration of which only what sections names may
// be there. Paths in it are relative to dir. It reads the files of
// scrape_config_files. Its errors wrap ErrConfig.
func Parse(yamlText []byte, dir string) (*Config, error) {
	var top map[string]any
	if err := yaml.Unmarshal(yamlText, &top); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	for _, name := range slices.Sorted(maps.Keys(top)) {
		if !slices.Contains(sections, name) {
			return nil, fmt.Errorf("%w: section %q has no meaning here, only %s", ErrConfig, name, strings.Join(sections, ", "))
		}
	}
	c, err := config.Load(string(yamlText), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	c.SetDirectory(dir)
	jobs, err := c.GetScrapeConfigs()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return &Config{c, jobs}, nil
}

// Jobs counts the scrape configurations.
func (c *Config) Jobs() int { return len(c.jobs) }

// Options of Run; the zero value is useful.
type Options struct {
	// Tenant owns what is scraped. Default "", the sink's own default.
	Tenant string
	// ReloadEvery is how often changed targets are taken up. Default 5 s, as
	// in Prometheus.
	ReloadEvery time.Duration
	// Registry receives upstream's metrics of discovery and scraping; default
	// one of its own.
	Registry prometheus.Registerer
	// Logger hears of scrapes that fail. Default discards.
	Logger *slog.Logger
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.ReloadEvery <= 0 {
		o.ReloadEvery = 5 * time.Second
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Run scrapes until ctx ends, and returns when the last scrape has been handed
// to the sink. A scrape that the sink refuses is not tried again: the next one
// follows. Memory: for each series of the last scrapes some 100 bytes here,
// and upstream's cache.
func Run(ctx context.Context, c *Config, sink ingest.Sink, o Options) error {
	o.EnsureDefaults()
	sdMetrics, err := discovery.CreateAndRegisterSDMetrics(o.Registry)
	if err != nil {
		return fmt.Errorf("prepare discovery: %w", err)
	}
	found := discovery.NewManager(ctx, o.Logger, o.Registry, sdMetrics, discovery.Name("scrape"), discovery.Updatert(o.ReloadEvery))
	if found == nil {
		return errors.New("prepare discovery: refused")
	}
	target := newAppendable(sink, o.Tenant)
	scraped, err := upstream.NewManager(&upstream.Options{
		AppendMetadata: true, ParseST: true,
		DiscoveryReloadInterval: model.Duration(o.ReloadEvery), DiscoveryReloadOnStartup: true,
	}, o.Logger, logging.NewJSONFileLogger, nil, target, o.Registry)
	if err != nil {
		return fmt.Errorf("prepare scraping: %w", err)
	}
	defer scraped.UnregisterMetrics()
	if err := scraped.ApplyConfig(c.upstream); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	targets := map[string]discovery.Configs{}
	for _, job := range c.jobs {
		targets[job.JobName] = job.ServiceDiscoveryConfigs
	}
	if err := found.ApplyConfig(targets); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error {
		if err := found.Run(); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil // ctx ended: that is how it stops
	})
	work.Go(func() error { return scraped.Run(found.SyncCh()) })
	work.Go(func() error {
		<-ctx.Done()
		scraped.Stop()
		return nil
	})
	if err := work.Wait(); err != nil {
		return fmt.Errorf("scrape: %w", err)
	}
	return nil
}
