package otlp

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/otlptranslator"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/prompb"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
)

// TestTranslateOptions: the section otlp of Prometheus' configuration does
// here what it does there.
func TestTranslateOptions(t *testing.T) {
	for name, c := range map[string]struct {
		translate config.OTLPConfig
		want      string
	}{
		"names as they are": {
			config.OTLPConfig{TranslationStrategy: otlptranslator.NoTranslation},
			`{__name__="h.x_bucket", "a.b"="1", a_b="2", job="s", le="+Inf"} 3
{__name__="h.x_bucket", "a.b"="1", a_b="2", job="s", le="1"} 1
{__name__="h.x_count", "a.b"="1", a_b="2", job="s"} 3
{__name__="h.x_max", "a.b"="1", a_b="2", job="s"} 9
{__name__="h.x_sum", "a.b"="1", a_b="2", job="s"} 5
{__name__="target_info", "host.name"="h", job="s"} 1
exemplar {__name__="h.x_bucket", "a.b"="1", a_b="2", job="s", le="+Inf"}`,
		},
		"custom buckets": {
			config.OTLPConfig{TranslationStrategy: otlptranslator.UnderscoreEscapingWithSuffixes, ConvertHistogramsToNHCB: true, PromoteResourceAttributes: []string{"host.name"}},
			`{__name__="h_x_seconds", a_b="1;2", host_name="h", job="s"} {count:3, sum:5, [-Inf,1]:1, (1,+Inf]:2} of bounds [1]
{__name__="h_x_seconds_max", a_b="1;2", host_name="h", job="s"} 9
{__name__="target_info", host_name="h", job="s"} 1
exemplar {__name__="h_x_seconds", a_b="1;2", host_name="h", job="s"}
note OTLP data point attributes "a.b", "a_b" collide as label "a_b" after name sanitization, values are concatenated with ';'`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			request := pmetricotlp.NewExportRequest()
			rm := request.Metrics().ResourceMetrics().AppendEmpty()
			rm.Resource().Attributes().PutStr("service.name", "s")
			rm.Resource().Attributes().PutStr("host.name", "h")
			sm := rm.ScopeMetrics().AppendEmpty()
			sm.Scope().SetName("scope")
			m := sm.Metrics().AppendEmpty()
			m.SetName("h.x")
			m.SetUnit("s")
			m.SetEmptyHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
			p := m.Histogram().DataPoints().AppendEmpty()
			p.SetTimestamp(1)
			p.SetCount(3)
			p.SetSum(5)
			p.SetMax(9)
			p.ExplicitBounds().Append(1)
			p.BucketCounts().Append(1, 2)
			p.Attributes().PutStr("a.b", "1")
			p.Attributes().PutStr("a_b", "2")
			p.Exemplars().AppendEmpty().SetDoubleValue(2)

			tr := newTranslation(&c.translate)
			rows, err := tr.translate(context.Background(), request.Metrics())
			if err != nil {
				t.Fatal(err)
			}
			lines := map[string]bool{}
			for _, s := range rows.Samples {
				p := s.Samples[0]
				value := fmt.Sprint(p.Value)
				if p.Histogram != nil {
					var h prompb.Histogram
					if err := h.Unmarshal(p.Histogram); err != nil {
						t.Fatal(err)
					}
					value = fmt.Sprintf("%s of bounds %v", h.ToIntHistogram(), h.CustomValues)
				}
				lines[fmt.Sprintf("%s %s", s.Labels, value)] = true
			}
			for _, e := range rows.Exemplars {
				lines[fmt.Sprintf("exemplar %s", e.Series)] = true
			}
			for _, n := range tr.report.notes.order {
				lines["note "+n] = true
			}
			want := map[string]bool{}
			for _, l := range strings.Split(c.want, "\n") {
				want[l] = true
			}
			if d := cmp.Diff(want, lines); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}
