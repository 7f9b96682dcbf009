package symbols

import (
	"errors"
	"fmt"
	"math/rand"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// raw builds a label set exactly as given, in any order and with duplicates,
// as a decoder does with a request's bytes.
func raw(pairs ...string) series.Labels {
	b := labels.NewScratchBuilder(len(pairs) / 2)
	for i := 0; i < len(pairs); i += 2 {
		b.Add(pairs[i], pairs[i+1])
	}
	return b.Labels()
}

// sets are label sets of all kinds, sound and not, many of which differ in one
// place only.
func sets(r *rand.Rand, n int) []series.Labels {
	names := []string{series.MetricName, "a", "b", "job", "z", "", "a\xff", "ü"}
	values := []string{"1", "2", "", "\xc3", "ß", "up"}
	out := make([]series.Labels, n)
	var last []string
	for i := range out {
		if len(last) == 0 || r.Intn(4) == 0 {
			last = []string{series.MetricName, "up"}
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

// text is a set of a batch as labels.
func text(b *Batch, i int) series.Labels {
	builder := labels.NewScratchBuilder(4)
	for _, l := range b.Set(i) {
		l := b.Labels()[l]
		builder.Add(b.Texts()[l.Name], b.Texts()[l.Value])
	}
	return builder.Labels()
}

// TestBatchIsValidate: whatever came before, Add finds what series.Validate
// finds, and keeps the labels that have a value, and their ID.
func TestBatchIsValidate(t *testing.T) {
	sound, faulty := 0, 0
	var b Batch
	var want []series.Labels
	check := func(seed int64) {
		var text0 int64
		for i, l := range want {
			if got := text(&b, i); !labels.Equal(got, l) || b.IDs[i] != series.IDOf(l) {
				t.Fatalf("seed %d: set %d is %s %d, want %s %d", seed, i, got, b.IDs[i], l, series.IDOf(l))
			}
			l.Range(func(l labels.Label) { text0 += int64(len(l.Name) + len(l.Value)) })
		}
		if b.Len() != len(want) || b.ExpandedBytes() != text0 {
			t.Fatalf("seed %d: %d sets of %d bytes, want %d of %d", seed, b.Len(), b.ExpandedBytes(), len(want), text0)
		}
		seen := map[Label]bool{}
		for _, l := range b.Labels() {
			seen[l] = true
		}
		if len(seen) != len(b.Labels()) {
			t.Fatalf("seed %d: %d labels, %d different ones", seed, len(b.Labels()), len(seen))
		}
		b.Reset()
		want = want[:0]
	}
	for seed := range int64(50) {
		for i, l := range sets(rand.New(rand.NewSource(seed)), 400) {
			n, err := b.Add(l)
			valid := series.Validate(l)
			if (err == nil) != (valid == nil) || !errors.Is(err, errors.Unwrap(valid)) && err != nil && err.Error() != valid.Error() {
				t.Fatalf("seed %d, set %d: Add(%s) = %v, want %v", seed, i, l, err, valid)
			}
			if valid != nil {
				faulty++
				b.Reset()
				want = want[:0]
				continue
			}
			sound++
			want = append(want, l.WithoutEmpty())
			bytes := 0
			want[len(want)-1].Range(func(l labels.Label) { bytes += len(l.Name) + len(l.Value) })
			if n != bytes {
				t.Fatalf("seed %d, set %d: Add(%s) = %d bytes, want %d", seed, i, l, n, bytes)
			}
			if i%7 == 6 {
				check(seed)
			}
		}
		check(seed)
	}
	if sound < 1000 || faulty < 1000 {
		t.Errorf("%d sound sets and %d faulty ones show little", sound, faulty)
	}
}

// TestBatchForgetsLongerSets: what a longer set had behind the end of the one
// before is no neighbour of it.
func TestBatchForgetsLongerSets(t *testing.T) {
	for _, next := range []series.Labels{raw("a", "1", series.MetricName, "up", "c", "1"), raw("z", "1", series.MetricName, "up")} {
		var b Batch
		for _, l := range []series.Labels{raw(series.MetricName, "up", "a", "1", "c", "1"), raw(series.MetricName, "up")} {
			if _, err := b.Add(l); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Add(next); !errors.Is(err, series.ErrUnsortedLabels) {
			t.Errorf("err = %v", err)
		}
	}
}

func BenchmarkBatch(b *testing.B) {
	all := make([]series.Labels, 2000)
	for i := range all {
		pairs := []string{series.MetricName, fmt.Sprintf("cpu_%d", i%10)}
		for k := range 12 {
			value := "some value"
			if k < 3 {
				value = fmt.Sprintf("host-%d.example", i/10)
			}
			pairs = append(pairs, fmt.Sprintf("label_%02d", k), value)
		}
		all[i] = raw(pairs...)
	}
	b.Run("add", func(b *testing.B) {
		b.ReportAllocs()
		var batch Batch
		for i := range b.N {
			if i%len(all) == 0 {
				batch.Reset()
			}
			if _, err := batch.Add(all[i%len(all)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("equal", func(b *testing.B) {
		var batch Batch
		var table Table
		known := make([]Set, len(all))
		for i := range all {
			if _, err := batch.Add(all[i]); err != nil {
				b.Fatal(err)
			}
		}
		table.Bind(&batch)
		for i := range all {
			known[i] = table.Add(i)
		}
		for i := range b.N {
			k := i % len(all)
			if k == 0 {
				table.Bind(&batch)
			}
			if !table.Equal(known[k], k) {
				b.Fatal("not equal")
			}
		}
	})
}
