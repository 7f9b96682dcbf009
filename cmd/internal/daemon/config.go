package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"cardinalsin"
	"cardinalsin/cmd/internal/cli"
	"cardinalsin/ingest"
	"cardinalsin/scrape"
)

// Config is what the file of --config says, in YAML:
//
//	limits:
//	  default: {max_series: 1000000, samples_per_second: 50000}
//	  tenants:
//	    acme: {max_series: 5000000}
//	global: …          as in Prometheus' configuration
//	scrape_configs: …
//
// The default limits change those of the flags, and a tenant's change the
// default: what is not named stays; 0 is no limit.
type Config struct {
	// Limits are the default ones, and Tenants those of the tenants that have
	// their own.
	Limits  ingest.Limits
	Tenants map[string]ingest.Limits
	// Scrape is the rest, in Prometheus' form; nil if there is none.
	Scrape *scrape.Config
}

// maxConfig bounds the file.
const maxConfig = 16 << 20

func (c *Config) limits(tenant string) ingest.Limits {
	if l, ok := c.Tenants[tenant]; ok {
		return l
	}
	return c.Limits
}

// readConfig reads a file over the limits that the flags gave. Errors wrap
// cli.ErrUsage.
func readConfig(path string, flags ingest.Limits) (Config, error) {
	c := Config{Limits: flags}
	if path == "" {
		return c, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("%w: --config: %w", cli.ErrUsage, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("more than %d bytes", maxConfig)
	}
	if err == nil {
		err = c.parse(data, filepath.Dir(path))
	}
	if err != nil {
		return Config{}, fmt.Errorf("%w: --config %s: %w", cli.ErrUsage, path, err)
	}
	return c, nil
}

// parse reads the file; paths in it are relative to dir.
func (c *Config) parse(data []byte, dir string) error {
	var top struct {
		Limits struct {
			Default yaml.Node            `yaml:"default"`
			Tenants map[string]yaml.Node `yaml:"tenants"`
		} `yaml:"limits"`
		Rest map[string]any `yaml:",inline"`
	}
	if err := strict(data, &top); err != nil {
		return err
	}
	if err := decodeLimits(&top.Limits.Default, &c.Limits); err != nil {
		return fmt.Errorf("default limits: %w", err)
	}
	for tenant, node := range top.Limits.Tenants {
		if err := cardinalsin.ValidateName(tenant); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
		l := c.Limits
		if err := decodeLimits(&node, &l); err != nil {
			return fmt.Errorf("limits of %s: %w", tenant, err)
		}
		if c.Tenants == nil {
			c.Tenants = map[string]ingest.Limits{}
		}
		c.Tenants[tenant] = l
	}
	if len(top.Rest) == 0 {
		return nil
	}
	rest, err := yaml.Marshal(top.Rest)
	if err != nil {
		return fmt.Errorf("pass on: %w", err)
	}
	c.Scrape, err = scrape.Parse(rest, dir)
	return err
}

// decodeLimits decodes what a node names over l.
func decodeLimits(node *yaml.Node, l *ingest.Limits) error {
	if node.IsZero() {
		return nil
	}
	data, err := yaml.Marshal(node)
	if err != nil {
		return err
	}
	if err := strict(data, l); err != nil {
		return err
	}
	return validateLimits(*l)
}

// strict decodes one document and refuses fields that it does not know.
func strict(data []byte, v any) error {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) { // EOF: nothing but comments
		return err
	}
	return nil
}

func validateLimits(l ingest.Limits) error {
	for _, n := range []int{l.MaxSeries, l.MaxLabelNames, l.MaxLabelNameLength, l.MaxLabelValueLength, l.MaxSamplesPerRequest, l.Burst} {
		if n < 0 {
			return fmt.Errorf("limit %d is negative", n)
		}
	}
	if !(l.SamplesPerSecond >= 0 && l.SamplesPerSecond <= 1e12) {
		return fmt.Errorf("rate of %v samples a second", l.SamplesPerSecond)
	}
	return nil
}
