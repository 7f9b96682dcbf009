package series

import (
	"errors"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
)

// raw builds a label set exactly as given, in any order and with duplicates,
// as a decoder does with a request's bytes.
func raw(pairs ...string) Labels {
	b := labels.NewScratchBuilder(len(pairs) / 2)
	for i := 0; i < len(pairs); i += 2 {
		b.Add(pairs[i], pairs[i+1])
	}
	return b.Labels()
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		labels Labels
		want   error
	}{
		"metric name only":     {raw(MetricName, "up"), nil},
		"sorted labels":        {raw(MetricName, "up", "instance", "a", "job", "b"), nil},
		"upper case sorts low": {raw("Zone", "z", MetricName, "up", "job", "b"), nil},
		"empty value":          {raw(MetricName, "up", "job", ""), nil},
		"names of any script":  {raw(MetricName, "température", "straße", "ß"), nil},
		"no labels":            {raw(), ErrNoMetricName},
		"no metric name":       {raw("job", "b"), ErrNoMetricName},
		"empty metric name":    {raw(MetricName, "", "job", "b"), ErrNoMetricName},
		"duplicate":            {raw(MetricName, "up", "job", "a", "job", "a"), ErrDuplicateLabel},
		"duplicate name":       {raw(MetricName, "up", MetricName, "down"), ErrDuplicateLabel},
		"duplicate and empty":  {raw(MetricName, "up", "job", "", "job", "a"), ErrDuplicateLabel},
		"unsorted":             {raw(MetricName, "up", "job", "a", "instance", "b"), ErrUnsortedLabels},
		"empty label name":     {raw("", "x", MetricName, "up"), ErrInvalidLabel},
		"name is not UTF-8":    {raw(MetricName, "up", "a\xff", "b"), ErrInvalidLabel},
		"value is not UTF-8":   {raw(MetricName, "up", "a", "\xc3"), ErrInvalidLabel},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Validate(c.labels); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("Validate(%s) = %v, want %v", c.labels, err, c.want)
			}
		})
	}
}
