package series

import (
	"errors"
	"fmt"
	"math/rand"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
)

// sets are label sets of all kinds, sound and not, many of which differ in one
// place only.
func sets(r *rand.Rand, n int) []Labels {
	names := []string{MetricName, "a", "b", "job", "z", "", "a\xff", "ü"}
	values := []string{"1", "2", "", "\xc3", "ß", "up"}
	out := make([]Labels, n)
	var last []string
	for i := range out {
		if len(last) == 0 || r.Intn(4) == 0 {
			last = []string{MetricName, "up"}
			for range r.Intn(5) {
				last = append(last, names[r.Intn(len(names))], values[r.Intn(len(values))])
			}
		} else {
			last = append([]string(nil), last...)
			switch k := r.Intn(len(last)); {
			case r.Intn(6) == 0:
				last = last[:k/2*2] // a shorter set
			case k%2 == 0:
				last[k] = names[r.Intn(len(names))]
			default:
				last[k] = values[r.Intn(len(values))]
			}
		}
		out[i] = raw(last...)
	}
	return out
}

// TestCheckerIsValidate: whatever came before, Check finds what Validate finds,
// and gives the ID of the labels that have a value.
func TestCheckerIsValidate(t *testing.T) {
	sound, faulty := 0, 0
	for seed := range int64(50) {
		var c Checker
		for i, l := range sets(rand.New(rand.NewSource(seed)), 400) {
			got, id, err := c.Check(l)
			want := Validate(l)
			if (err == nil) != (want == nil) || !errors.Is(err, errors.Unwrap(want)) && err != nil && err.Error() != want.Error() {
				t.Fatalf("seed %d, set %d: Check(%s) = %v, want %v", seed, i, l, err, want)
			}
			if want != nil {
				faulty++
				continue
			}
			sound++
			full := l.WithoutEmpty()
			if !labels.Equal(got, full) || id != IDOf(full) {
				t.Fatalf("seed %d, set %d: Check(%s) = %s %d, want %s %d", seed, i, l, got, id, full, IDOf(full))
			}
			if i%50 == 49 {
				c.Reset()
			}
		}
	}
	if sound < 1000 || faulty < 1000 {
		t.Errorf("%d sound sets and %d faulty ones show little", sound, faulty)
	}
}

// TestCheckerForgetsLongerSets: what a longer set had behind the end of the
// one before is no neighbour of it.
func TestCheckerForgetsLongerSets(t *testing.T) {
	var c Checker
	for _, l := range []Labels{raw("a", "1", MetricName, "up", "c", "1"), raw(MetricName, "up", "a", "1", "c", "1"), raw(MetricName, "up", "z", "1")} {
		if _, _, err := c.Check(l); (err == nil) != (Validate(l) == nil) {
			t.Fatalf("%s: %v", l, err)
		}
	}
	if _, _, err := c.Check(raw(MetricName, "up", "z", "1", "c", "1")); !errors.Is(err, ErrUnsortedLabels) {
		t.Errorf("err = %v", err)
	}
}

func BenchmarkCheck(b *testing.B) {
	all := make([]Labels, 2000)
	for i := range all {
		pairs := []string{MetricName, fmt.Sprintf("cpu_%d", i%10)}
		for k := range 12 {
			value := "some value"
			if k < 3 {
				value = fmt.Sprintf("host-%d.example", i/10)
			}
			pairs = append(pairs, fmt.Sprintf("label_%02d", k), value)
		}
		all[i] = raw(pairs...)
	}
	b.Run("checker", func(b *testing.B) {
		b.ReportAllocs()
		var c Checker
		for i := range b.N {
			if _, _, err := c.Check(all[i%len(all)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("apart", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			l := all[i%len(all)]
			if err := Validate(l); err != nil {
				b.Fatal(err)
			}
			if l.WithoutEmpty().ByteSize() == 0 || IDOf(l) == 0 {
				b.Fatal("unexpected")
			}
		}
	})
}
