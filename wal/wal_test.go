package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// testBatch is a batch that differs for every n, of one sample for small n and
// of many bytes from 1000.
func testBatch(n int) series.Batch {
	var b series.Batch
	for i := range max(1, n%50-9) {
		b = append(b, series.Series{
			Labels:  labels.FromStrings("__name__", "m", "batch", strconv.Itoa(n), "i", strconv.Itoa(i)),
			Samples: []series.Sample{float(series.Timestamp(1e15+n), float64(n)+float64(i)/100)},
		})
	}
	if n >= 1000 {
		b[0].Samples[0].Histogram = randomBytes(200_000)
	}
	return b
}

func mustOpen(t testing.TB, dir string, opts Options) *Log {
	t.Helper()
	l, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// mustAppend appends testBatch(n) for each n as one group.
func mustAppend(t testing.TB, l *Log, ns ...int) (first, last Sequence) {
	t.Helper()
	first, last, err := l.Append(testRecords(t, ns...))
	if err != nil {
		t.Fatal(err)
	}
	return first, last
}

func testRecords(t testing.TB, ns ...int) []Record {
	t.Helper()
	var rs []Record
	for _, n := range ns {
		rs = append(rs, mustEncode(t, testBatch(n)))
	}
	return rs
}

// crash ends a log as the end of its process would: nothing is sealed.
func crash(t testing.TB, l *Log) {
	t.Helper()
	l.appendMu.Lock()
	defer l.appendMu.Unlock()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	if err := l.closeFiles(); err != nil {
		t.Fatal(err)
	}
}

// contents replays a log into the form "sequence:n", n naming the batch, after
// comparing each batch with testBatch(n).
func contents(t testing.TB, l *Log, after Sequence) string {
	t.Helper()
	var out []string
	err := l.Replay(after, func(s Sequence, b series.Batch) error {
		n, err := strconv.Atoi(b[0].Labels.Get("batch"))
		if err != nil {
			return err
		}
		if !batchesEqual(testBatch(n), b) {
			t.Errorf("record %d: %s", s, cmp.Diff(testBatch(n), b, equalBatches))
		}
		out = append(out, fmt.Sprintf("%d:%d", s, n))
		return nil
	})
	if err != nil {
		t.Fatalf("replay: %v", err)
	}
	return strings.Join(out, " ")
}

func wantContents(t testing.TB, l *Log, after Sequence, want string) {
	t.Helper()
	if got := contents(t, l, after); got != want {
		t.Errorf("after %d the log holds %q, want %q", after, got, want)
	}
}

func segmentNames(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil {
		t.Fatal(err)
	}
	for i := range paths {
		paths[i] = filepath.Base(paths[i])
	}
	return paths
}

func TestAppendReplayReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b") // made by Open
	l := mustOpen(t, dir, Options{})
	if l.LastSequence() != 0 {
		t.Errorf("a new log ends at %d", l.LastSequence())
	}
	if first, last := mustAppend(t, l, 10); first != 1 || last != 1 {
		t.Errorf("first group is %d to %d", first, last)
	}
	if first, last := mustAppend(t, l, 20, 30, 40); first != 2 || last != 4 {
		t.Errorf("second group is %d to %d", first, last)
	}
	wantContents(t, l, 0, "1:10 2:20 3:30 4:40")
	wantContents(t, l, 2, "3:30 4:40")
	wantContents(t, l, 4, "")
	writer := l.Writer()

	for _, how := range []string{"close", "crash", "close"} {
		if how == "close" {
			mustClose(t, l)
		} else {
			crash(t, l)
		}
		var trimmed int64
		l = mustOpen(t, dir, Options{Events: Events{TailTrimmed: func(_ string, _, n int64) { trimmed += n }}})
		if l.Writer() != writer {
			t.Errorf("after %s the writer is %s, was %s", how, l.Writer(), writer)
		}
		if trimmed != 0 {
			t.Errorf("after %s %d bytes were trimmed", how, trimmed)
		}
		last := l.LastSequence()
		if first, _ := mustAppend(t, l, 50); first != last+1 {
			t.Errorf("after %s appending goes on at %d, not %d", how, first, last+1)
		}
	}
	wantContents(t, l, 0, "1:10 2:20 3:30 4:40 5:50 6:50 7:50")
}

func TestReplayStopsAtErrorOfFn(t *testing.T) {
	l := mustOpen(t, t.TempDir(), Options{})
	mustAppend(t, l, 1, 2, 3)
	stop, calls := errors.New("stop"), 0
	err := l.Replay(0, func(s Sequence, _ series.Batch) error {
		if calls++; s == 2 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || calls != 2 {
		t.Errorf("error is %v after %d calls", err, calls)
	}
}

func TestReplaySequenceGap(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{SegmentBytes: 1})
	mustAppend(t, l, 1)
	mustAppend(t, l, 2)
	mustAppend(t, l, 3)
	if err := l.Truncate(2); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		after Sequence
		want  error
	}{{0, ErrSequenceGap}, {1, ErrSequenceGap}, {2, nil}, {3, nil}, {4, ErrSequenceGap}, {1<<64 - 1, ErrSequenceGap}} {
		err := l.Replay(tc.after, func(Sequence, series.Batch) error { return nil })
		if !errors.Is(err, tc.want) {
			t.Errorf("replay after %d: error is %v, want %v", tc.after, err, tc.want)
		}
	}
}

func TestSegmentsRotateBySize(t *testing.T) {
	dir := t.TempDir()
	const size = 4 << 10
	l := mustOpen(t, dir, Options{SegmentBytes: size})
	var want []string
	for i := range 100 {
		mustAppend(t, l, i)
		want = append(want, fmt.Sprintf("%d:%d", i+1, i))
	}
	names := segmentNames(t, dir)
	if len(names) < 5 {
		t.Fatalf("100 records of half a kilobyte lie in %d segments", len(names))
	}
	total := int64(0)
	for _, name := range names {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
		if info.Size() > size+frameHeaderBytes { // its seal comes on top
			t.Errorf("segment %s has %d bytes", name, info.Size())
		}
	}
	if total != l.Bytes() {
		t.Errorf("Bytes is %d, the files have %d", l.Bytes(), total)
	}
	wantContents(t, l, 0, strings.Join(want, " "))
	wantContents(t, l, 50, strings.Join(want[50:], " "))
	mustClose(t, l)
	l = mustOpen(t, dir, Options{})
	wantContents(t, l, 0, strings.Join(want, " "))
}

func TestTruncate(t *testing.T) {
	for _, tc := range []struct {
		through  Sequence
		segments int
		contents string
	}{
		{0, 3, "1:1 2:2 3:3 4:4 5:5 6:6"},
		{2, 3, "1:1 2:2 3:3 4:4 5:5 6:6"},
		{3, 2, "4:4 5:5 6:6"},
		{5, 1, "5:5 6:6"},
		{6, 1, "5:5 6:6"}, // the active segment is small and stays
		{1<<64 - 1, 1, "5:5 6:6"},
	} {
		t.Run(fmt.Sprint("through ", tc.through), func(t *testing.T) {
			dir := t.TempDir()
			opts := Options{SegmentBytes: 1} // a segment for each group
			l := mustOpen(t, dir, opts)
			mustAppend(t, l, 1, 2, 3)
			mustAppend(t, l, 4)
			mustAppend(t, l, 5, 6)
			after := Sequence(6 - len(strings.Fields(tc.contents)))
			for range 2 {
				if err := l.Truncate(tc.through); err != nil {
					t.Fatal(err)
				}
				if n := len(segmentNames(t, dir)); n != tc.segments {
					t.Errorf("%d segments, want %d", n, tc.segments)
				}
				wantContents(t, l, after, tc.contents)
				crash(t, l)
				l = mustOpen(t, dir, opts)
				wantContents(t, l, after, tc.contents)
			}
			if first, _ := mustAppend(t, l, 7); first != 7 {
				t.Errorf("appending goes on at %d", first)
			}
		})
	}
}

// TestSequencesAreNeverUsedTwice truncates everything away, again and again,
// with and without a crash, and looks at what number comes next.
func TestSequencesAreNeverUsedTwice(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	want := Sequence(0)
	big := series.Batch{{Labels: labels.FromStrings("__name__", "b"), Samples: []series.Sample{{Histogram: randomBytes(2 << 20)}}}}
	for round := range 6 {
		mustAppend(t, l, round)
		if _, _, err := l.Append([]Record{mustEncode(t, big)}); err != nil {
			t.Fatal(err)
		}
		want += 2
		if err := l.Truncate(want); err != nil {
			t.Fatal(err)
		}
		if l.Bytes() != segmentHeaderBytes {
			t.Errorf("round %d: %d bytes are left of a log that was truncated to nothing", round, l.Bytes())
		}
		if round%2 == 0 {
			mustClose(t, l)
		} else {
			crash(t, l)
		}
		l = mustOpen(t, dir, Options{})
		if l.LastSequence() != want {
			t.Fatalf("round %d: the log ends at %d, want %d", round, l.LastSequence(), want)
		}
		wantContents(t, l, want, "")
	}
}

func TestUseAfterClose(t *testing.T) {
	l := mustOpen(t, t.TempDir(), Options{})
	mustAppend(t, l, 1)
	mustClose(t, l)
	mustClose(t, l) // a second time does nothing
	_, _, err := l.Append(testRecords(t, 2))
	for name, err := range map[string]error{
		"append": err, "sync": l.Sync(), "truncate": l.Truncate(1),
		"replay": l.Replay(0, func(Sequence, series.Batch) error { return nil }),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestAppendRefusesWhatEncodeDidNotMake(t *testing.T) {
	l := mustOpen(t, t.TempDir(), Options{})
	good := testRecords(t, 1)[0]
	for name, group := range map[string][]Record{"empty group": nil, "zero record": {good, {}}} {
		if _, _, err := l.Append(group); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, _, err := l.Append([]Record{good, {payload: make([]byte, MaxRecordBytes+1)}}); !errors.Is(err, ErrRecordTooLarge) {
		t.Errorf("large record: error is %v", err)
	}
	mustAppend(t, l, 7)
	wantContents(t, l, 0, "1:7")
}

func TestOptionsValidate(t *testing.T) {
	for _, o := range []Options{{SegmentBytes: -1}, {Sync: 9}} {
		if _, err := Open(t.TempDir(), o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

// TestTruncateWaitsForReplay: no segment is deleted while it is still to be
// read.
func TestTruncateWaitsForReplay(t *testing.T) {
	l := mustOpen(t, t.TempDir(), Options{SegmentBytes: 1})
	for n := range 5 {
		mustAppend(t, l, n)
	}
	truncated := make(chan error, 1)
	records := 0
	if err := l.Replay(0, func(s Sequence, _ series.Batch) error {
		if records++; s == 1 {
			go func() { truncated <- l.Truncate(5) }()
			time.Sleep(20 * time.Millisecond) // time enough to do harm
		}
		return nil
	}); err != nil || records != 5 {
		t.Errorf("%d records, error %v", records, err)
	}
	if err := <-truncated; err != nil {
		t.Error(err)
	}
	wantContents(t, l, 4, "5:4")
}

// TestConcurrentUse is for the race detector: appends, truncation and replay
// at once, and at the end every record that was not truncated.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, t.TempDir(), Options{SegmentBytes: 8 << 10})
	const appenders, groups = 4, 50
	var wg sync.WaitGroup
	seen := make([]Sequence, 0, appenders*groups*2)
	var mu sync.Mutex
	for range appenders {
		wg.Go(func() {
			for n := range groups {
				first, last := mustAppend(t, l, n, n+1)
				mu.Lock()
				seen = append(seen, first, last)
				mu.Unlock()
			}
		})
	}
	done := make(chan struct{})
	var through Sequence
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
			through = l.LastSequence() / 2
			if err := l.Truncate(through); err != nil {
				t.Error(err)
			}
			next := through + 1
			if err := l.Replay(through, func(s Sequence, _ series.Batch) error {
				if s != next {
					return fmt.Errorf("record %d, not %d", s, next)
				}
				next++
				return nil
			}); err != nil {
				t.Error(err)
			}
			if l.Bytes() <= 0 {
				t.Error("no bytes")
			}
		}
	})
	wg.Wait()
	close(done)
	readers.Wait()
	slices.Sort(seen)
	for i, s := range seen {
		if s != Sequence(i+1) {
			t.Fatalf("sequence %d at place %d: given twice or left out", s, i+1)
		}
	}
	if n := len(strings.Fields(contents(t, l, through))); n != len(seen)-int(through) {
		t.Errorf("%d records after %d of %d", n, through, len(seen))
	}
}

// TestReplayInPieces: to stop at every record and go on, over several segments
// and while more is appended, yields each record once; and what was read is not
// read again, or the last pieces would be the slowest.
func TestReplayInPieces(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{SegmentBytes: 4 << 10})
	stop := errors.New("stop")
	var got []Sequence
	after, appended := Sequence(0), 0
	for after < 300 {
		if appended < 300 {
			mustAppend(t, l, appended+1, appended+2)
			appended += 2
		}
		err := l.Replay(after, func(seq Sequence, b series.Batch) error {
			if seq > after+1 {
				return stop
			}
			got = append(got, seq)
			if b[0].Samples[0].Time == 0 {
				t.Errorf("record %d is empty", seq)
			}
			return nil
		})
		if err != nil && !errors.Is(err, stop) {
			t.Fatal(err)
		}
		after++
		if p := l.place(); p.next != min(after+1, l.LastSequence()+1) {
			t.Fatalf("after %d the next replay begins at %d", after, p.next)
		}
	}
	for i, seq := range got {
		if seq != Sequence(i+1) {
			t.Fatalf("record %d came as number %d", seq, i)
		}
	}
	// From before the place, everything is read again.
	wantSequences := 0
	if err := l.Replay(0, func(Sequence, series.Batch) error { wantSequences++; return nil }); err != nil || wantSequences != 300 {
		t.Errorf("%d records from the start, error %v", wantSequences, err)
	}
	names := segmentNames(t, dir)
	path := filepath.Join(dir, names[len(names)-1])
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[segmentHeaderBytes+frameHeaderBytes]++
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, 301)
	if got := contents(t, l, 300); got != "301:301" {
		t.Errorf("went on with %q", got)
	}
}
