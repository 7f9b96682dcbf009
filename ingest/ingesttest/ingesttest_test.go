package ingesttest

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"cardinalsin/ingest"
	"cardinalsin/series"
	"cardinalsin/writer"
)

func lbl(pairs ...string) series.Labels { return labels.FromStrings(pairs...) }

// TestRoundTrip: what a request holds comes back bit for bit, from the head
// and from chunks, in the tables of its tenant alone.
func TestRoundTrip(t *testing.T) {
	s := New(t, Options{})
	up := lbl("__name__", "up", "job", "a")
	r := &ingest.Request{
		Protocol: ingest.RemoteWrite2,
		Samples: series.Batch{{Labels: up, Samples: []series.Sample{
			{Time: -1, Nanos: 7, Value: math.Copysign(0, -1)},
			{Time: 1_767_312_000_000_000, Value: math.Float64frombits(value.StaleNaN)},
			{Time: 1_767_312_000_000_001, Histogram: []byte{8, 1}},
		}}},
		Exemplars: []series.Exemplar{
			{Series: up, Labels: lbl("trace_id", "ff", "Z", "z"), Time: 5, Nanos: 9, Value: 1.5},
			{Series: up, Time: 6, Value: 2.5},
		},
		Metadata: []series.Metadata{{Metric: "up", Type: "gauge", Help: "is it"}, {Metric: "x", Unit: "s"}},
	}
	if err := s.Append(context.Background(), "", r); err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{"head", "chunks"} {
		if d := cmp.Diff(Print(r.Samples), Print(s.Samples(""))); d != "" {
			t.Errorf("samples in %s: %s", where, d)
		}
		byLabels := []series.Exemplar{r.Exemplars[0], r.Exemplars[1]}
		got := s.Exemplars("default")
		if len(got) == 2 && got[0].Time == 6 {
			got[0], got[1] = got[1], got[0] // the rows' order is that of a hash
		}
		if d := cmp.Diff(byLabels, got, cmp.Comparer(labels.Equal)); d != "" {
			t.Errorf("exemplars in %s: %s", where, d)
		}
		if d := cmp.Diff(r.Metadata, s.Metadata("default")); d != "" {
			t.Errorf("metadata in %s: %s", where, d)
		}
		s.Flush()
	}
	if got := s.Samples("other"); got != nil {
		t.Errorf("another tenant has %v", got)
	}
	if s.Tables() != 3 || s.Requests() != 1 {
		t.Errorf("%d tables after %d requests", s.Tables(), s.Requests())
	}
}

func TestFailWith(t *testing.T) {
	s := New(t, Options{})
	s.FailWith(writer.ErrOverloaded)
	r := &ingest.Request{Samples: series.Batch{{Labels: lbl("__name__", "up"), Samples: []series.Sample{{Value: 1}}}}}
	if err := s.Append(context.Background(), "", r); !errors.Is(err, writer.ErrOverloaded) {
		t.Errorf("err = %v", err)
	}
	s.Refuse(ingest.OTLP, "malformed", 0)
	s.Refuse(ingest.OTLP, "malformed", 3)
	if s.Refused("overloaded") != 1 || s.Refused("malformed") != 4 || s.Tables() != 0 {
		t.Errorf("refused %d and %d, %d tables", s.Refused("overloaded"), s.Refused("malformed"), s.Tables())
	}
	s.FailWith(nil)
	if err := s.Append(context.Background(), "", r); err != nil {
		t.Error(err)
	}
}
