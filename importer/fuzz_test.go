package importer

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cardinalsin/ingest"
)

// FuzzFiles: whatever a file holds, reading it ends with parts that may be
// stored, or with a reason; and the parts do not depend on where they end.
func FuzzFiles(f *testing.F) {
	for _, text := range []string{openMetricsText, longText(3), "m{a=\"x\ny\"} 1 1700000000000\n\n# c\nm 2 1700000000001", "cpu,host=a v=1,s=\"t\" 1\n",
		"timestamp,metric_name,value,host\n2023-11-14T22:13:20Z,m,1,\"a\nb\"\n1,m,NaN,\n"} {
		for format := range byte(4) {
			f.Add(format, []byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, format byte, data []byte) {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		opts := Options{Format: []Format{OpenMetrics, Prometheus, Influx, CSV}[format%4], Unit: time.Millisecond}
		count := func(size int) (samples int, failed bool) {
			opts.partSamples = size
			opts.EnsureDefaults()
			inputs, err := open(path, opts)
			if err != nil {
				t.Fatal(err)
			}
			for p, err := range inputs[0].parse(t.Context()) {
				if err == nil {
					err = check(p.samples)
				}
				if err != nil {
					if reason, _ := ingest.Classify(err); reason == "unavailable" && !errors.Is(err, ErrFormat) {
						t.Errorf("an error without a reason: %v", err)
					}
					return samples, true
				}
				samples += p.samples.Samples()
			}
			return samples, false
		}
		many, failedMany := count(1)
		few, failedFew := count(1 << 20)
		if failedMany != failedFew || !failedMany && many != few {
			t.Errorf("%d samples, failed %t, in parts of one; %d, %t, in one part", many, failedMany, few, failedFew)
		}
	})
}
