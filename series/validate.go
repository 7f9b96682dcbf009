package series

import (
	"fmt"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"
)

// Validate checks that a label set may be stored: names ascend strictly by
// their bytes, none is empty, names and values are UTF-8 text, and there is a
// metric name. A label with an empty value counts as absent, as in
// Prometheus, and is otherwise no fault. Errors: ErrInvalidLabel,
// ErrDuplicateLabel, ErrUnsortedLabels, ErrNoMetricName.
func Validate(l Labels) error {
	prev, named := "", false
	err := l.Validate(func(l labels.Label) error {
		switch {
		case l.Name == "":
			return fmt.Errorf("%w: empty name, value %.200q", ErrInvalidLabel, l.Value)
		case !utf8.ValidString(l.Name) || !utf8.ValidString(l.Value):
			return fmt.Errorf("%w: %.200q=%.200q is no UTF-8 text", ErrInvalidLabel, l.Name, l.Value)
		case l.Name == prev:
			return fmt.Errorf("%w: %.200q", ErrDuplicateLabel, l.Name)
		case l.Name < prev:
			return fmt.Errorf("%w: %.200q after %.200q", ErrUnsortedLabels, l.Name, prev)
		}
		prev = l.Name
		named = named || l.Name == MetricName && l.Value != ""
		return nil
	})
	if err == nil && !named {
		return ErrNoMetricName
	}
	return err
}
