package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
	"cardinalsin/storage"
	"cardinalsin/storage/mem"
)

// traced records the ranges that are read, and fails from request fail on.
type traced struct {
	Source
	fail  int
	err   error
	reads []string
	bytes int64
}

func (s *traced) ReadRange(ctx context.Context, offset, length int64) ([]byte, error) {
	if s.err != nil && len(s.reads) >= s.fail {
		return nil, s.err
	}
	s.reads = append(s.reads, fmt.Sprintf("%d+%d", offset, length))
	s.bytes += length
	return s.Source.ReadRange(ctx, offset, length)
}

// large is a file of several row groups, too long for the first read.
func large(t testing.TB) ([]byte, []Series) {
	t.Helper()
	in := tsbs(40, 300)
	return encode(t, Options{RowGroupRows: 30000, PageRows: 5000, SplitValues: true}, in).Data, in
}

func TestStoreSource(t *testing.T) {
	ctx := context.Background()
	store := mem.New(mem.Options{})
	data, in := fixture(t, Options{})
	if _, err := store.Put(ctx, "a/b.parquet", bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	f, err := Open(ctx, StoreSource(store, "a/b.parquet"), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := collect(f.Select(ctx, everything, nil))
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(in, got); d != "" {
		t.Fatal(d)
	}
	if _, err := Open(ctx, StoreSource(store, "missing"), int64(len(data))); !errors.Is(err, storage.ErrNotFound) || errors.Is(err, ErrCorrupt) {
		t.Errorf("missing object: %v", err)
	}
	if _, err := Open(ctx, StoreSource(store, "a/b.parquet"), int64(len(data))+1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("object shorter than logged: %v", err)
	}
}

// TestRequests pins how many requests a read costs.
func TestRequests(t *testing.T) {
	ctx := context.Background()
	small, _ := fixture(t, Options{RowGroupRows: 12})
	big, in := large(t)
	if len(big) <= footerGuess {
		t.Fatalf("the file has only %d bytes", len(big))
	}
	host := labels.MustNewMatcher(labels.MatchEqual, "hostname", "host_7")
	metric := labels.MustNewMatcher(labels.MatchEqual, series.MetricName, "cpu_usage_user")
	absent := labels.MustNewMatcher(labels.MatchEqual, series.MetricName, "nope")
	for _, tc := range []struct {
		name     string
		data     []byte
		matchers []*labels.Matcher
		want     int // after Open
	}{
		{"a small file is read by Open", small, nil, 0},
		{"all of a large file: neighbouring row groups together", big, nil, 1},
		{"one metric: one row group", big, []*labels.Matcher{metric}, 1},
		{"one host: row groups far apart would be apart", big, []*labels.Matcher{host}, 1},
		{"a metric that the file lacks: bounds suffice", big, []*labels.Matcher{absent}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src := &traced{Source: BytesSource("test", tc.data)}
			f, err := Open(ctx, src, int64(len(tc.data)))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([]string{fmt.Sprintf("%d+%d", max(0, len(tc.data)-footerGuess), min(len(tc.data), footerGuess))}, src.reads); d != "" {
				t.Fatalf("Open: -want +got:\n%s", d)
			}
			sel := series.Selector{Range: series.AllTime, Matchers: tc.matchers}
			got, err := collect(f.Select(ctx, sel, nil))
			if err != nil {
				t.Fatal(err)
			}
			if n := len(src.reads) - 1; n != tc.want {
				t.Errorf("%d requests, want %d: %v", n, tc.want, src.reads)
			}
			if tc.matchers != nil {
				if d := diff(filter(in, sel), got); d != "" {
					t.Error(d)
				}
			}
		})
	}
}

// TestLongFooter: a footer longer than the first read costs a second.
func TestLongFooter(t *testing.T) {
	var in []Series
	for i := range 600 {
		in = append(in, with(mk("a", fmt.Sprintf("label_%03d", i), "x"), 1))
	}
	sorted(in)
	data := encode(t, Options{}, in).Data
	src := &traced{Source: BytesSource("test", data)}
	f, err := Open(context.Background(), src, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if len(src.reads) != 2 {
		t.Fatalf("reads %v, want two", src.reads)
	}
	got, err := collect(f.Select(context.Background(), everything, nil))
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(in, got); d != "" {
		t.Fatal(d)
	}
}

// TestStagedRead: a row group that is larger than a request is read in two
// steps, and its samples only if a series matches.
func TestStagedRead(t *testing.T) {
	ctx := context.Background()
	var in []Series
	for i := range 2 {
		s := mk("a", "host", fmt.Sprint(i*2))
		for k := range 40 {
			blob := make([]byte, 256<<10)
			x := uint32(i*1000 + k + 1)
			for j := range blob {
				x = x*1664525 + 1013904223
				blob[j] = byte(x >> 24) // does not compress
			}
			s.Samples = append(s.Samples, series.Sample{Time: series.Timestamp(k), Histogram: blob})
		}
		in = append(in, s)
	}
	sorted(in)
	data := encode(t, Options{}, in).Data
	for host, hits := range map[string]bool{"2": true, "1": false} { // "1" lies within the bounds
		src := &traced{Source: BytesSource("test", data)}
		f, err := Open(ctx, src, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if f.RowGroups()[0].Bytes <= maxRequest {
			t.Fatalf("row group of %d bytes", f.RowGroups()[0].Bytes)
		}
		opened := src.bytes
		sel := series.Selector{Range: series.AllTime, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "host", host)}}
		got, err := collect(f.Select(ctx, sel, nil))
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(filter(in, sel), got); d != "" {
			t.Fatal("rows differ")
		}
		if read := src.bytes - opened; hits != (read > maxRequest) || !hits && read > 4096 {
			t.Errorf("host %s: read %d bytes by %v", host, read, src.reads)
		}
	}
}

// TestSourceFails: an error of the source reaches the caller as it is, named,
// at whichever request it comes, and is no corruption.
func TestSourceFails(t *testing.T) {
	ctx := context.Background()
	data, in := large(t)
	boom := errors.New("boom")
	for fail := 0; ; fail++ {
		src := &traced{Source: BytesSource("some/file", data), fail: fail, err: boom}
		got, err := func() ([]Series, error) {
			f, err := Open(ctx, src, int64(len(data)))
			if err != nil {
				return nil, err
			}
			return collect(f.Select(ctx, everything, []int{0, 2, 3}))
		}()
		if err == nil {
			if fail < 2 {
				t.Fatalf("only %d requests", fail)
			}
			if len(got) == 0 || len(got) >= len(in) {
				t.Fatalf("%d series of %d", len(got), len(in))
			}
			return
		}
		if !errors.Is(err, boom) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "some/file") {
			t.Fatalf("request %d: %v", fail, err)
		}
	}
}

func TestRowGroupNumbers(t *testing.T) {
	data, _ := fixture(t, Options{RowGroupRows: 12})
	f := reopen(t, data)
	for _, list := range [][]int{{-1}, {len(f.RowGroups())}, {1, 0}, {0, 0}} {
		if _, err := collect(f.Select(context.Background(), everything, list)); !errors.Is(err, ErrInvalidInput) {
			t.Errorf("%v: got %v, want ErrInvalidInput", list, err)
		}
	}
	if got, err := collect(f.Select(context.Background(), everything, []int{})); err != nil || got != nil {
		t.Errorf("no row groups: %v, %v", got, err)
	}
}

// TestConcurrentUse: a File may be read by many at a time (run with -race).
func TestConcurrentUse(t *testing.T) {
	data, in := fixture(t, Options{RowGroupRows: 12, PageRows: 5})
	f := reopen(t, data)
	done := make(chan error)
	for range 8 {
		go func() {
			got, err := collect(f.Select(context.Background(), everything, nil))
			if err == nil && diff(in, got) != "" {
				err = errors.New("rows differ")
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
