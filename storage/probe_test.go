package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/mem"
)

// broken is a store in memory of which a test replaces some calls.
type broken struct {
	*mem.Store

	get         func(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error)
	getRange    func(ctx context.Context, key string, offset, length int64) ([]byte, error)
	put         func(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error)
	putIfAbsent func(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error)
	putIfMatch  func(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error)
	list        func(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error]
	now         func(ctx context.Context) (time.Time, error)
}

func newBroken() *broken {
	m := mem.New(mem.Options{})
	return &broken{
		Store: m, get: m.Get, getRange: m.GetRange, put: m.Put,
		putIfAbsent: m.PutIfAbsent, putIfMatch: m.PutIfMatch, list: m.List, now: m.Now,
	}
}

func (b *broken) Get(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
	return b.get(ctx, key)
}

func (b *broken) GetRange(ctx context.Context, key string, offset, length int64) ([]byte, error) {
	return b.getRange(ctx, key, offset, length)
}

func (b *broken) Put(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
	return b.put(ctx, key, body)
}

func (b *broken) PutIfAbsent(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	return b.putIfAbsent(ctx, key, data)
}

func (b *broken) PutIfMatch(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
	return b.putIfMatch(ctx, key, data, etag)
}

func (b *broken) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return b.list(ctx, prefix, startAfter)
}

func (b *broken) Now(ctx context.Context) (time.Time, error) { return b.now(ctx) }

// overwrite is the fallback that no store may have.
func (b *broken) overwrite(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
	return b.Store.Put(ctx, key, bytes.NewReader(data))
}

var errUnsupported = errors.New("501 not implemented")

func TestProbeHolds(t *testing.T) {
	for name, opts := range map[string]mem.Options{"etags of writes": {}, "etags of contents": {ContentETags: true}} {
		t.Run(name, func(t *testing.T) {
			s := mem.New(opts)
			if _, err := s.PutIfAbsent(t.Context(), "t/table/x", nil); err != nil {
				t.Fatal(err)
			}
			report, err := storage.Probe(t.Context(), s, "t/table/")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range report.Properties {
				if !r.Held || r.Detail == "" {
					t.Errorf("%+v", r)
				}
				got = append(got, string(r.Property))
			}
			want := strings.Fields("read-after-write range-read put-if-absent put-if-match atomic-put list-after-put list-order start-after clock")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if report.Requests > 150 {
				t.Errorf("%d requests", report.Requests)
			}
			for _, op := range storage.Ops {
				if l := report.Latencies[op]; l.Calls == 0 || l.Min > l.Mean || l.Mean > l.Max {
					t.Errorf("%s: %+v", op, l)
				}
			}
			infos, err := storage.Collect(s.List(t.Context(), "", ""))
			if err != nil || len(infos) != 1 {
				t.Errorf("left behind: %v, %v", infos, err)
			}
		})
	}
}

// Each kind of unfit store is refused, by the name of what it lacks.
func TestProbeRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*broken)
		want  string // the properties found lacking
	}{
		{"ignores the condition of put-if-absent", func(b *broken) { b.putIfAbsent = b.overwrite }, "put-if-absent"},
		{"ignores the condition of put-if-match", func(b *broken) {
			b.putIfMatch = func(ctx context.Context, key string, data []byte, _ storage.ETag) (storage.ObjectInfo, error) {
				return b.overwrite(ctx, key, data)
			}
		}, "put-if-match"},
		{"knows no put-if-absent", func(b *broken) {
			b.putIfAbsent = func(context.Context, string, []byte) (storage.ObjectInfo, error) {
				return storage.ObjectInfo{}, errUnsupported
			}
		}, "put-if-absent"},
		{"knows no put-if-match", func(b *broken) {
			b.putIfMatch = func(context.Context, string, []byte, storage.ETag) (storage.ObjectInfo, error) {
				return storage.ObjectInfo{}, errUnsupported
			}
		}, "put-if-match"},
		{"admits two racers to an absent key", func(b *broken) {
			var n atomic.Int64
			b.putIfAbsent = func(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
				if n.Add(1) == 17 {
					return b.overwrite(ctx, key, data)
				}
				return b.Store.PutIfAbsent(ctx, key, data)
			}
		}, "put-if-absent"},
		{"admits two racers to one ETag", func(b *broken) {
			var n atomic.Int64
			b.putIfMatch = func(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
				if n.Add(1) == 17 {
					return b.overwrite(ctx, key, data)
				}
				return b.Store.PutIfMatch(ctx, key, data, etag)
			}
		}, "put-if-match"},
		{"checks, then writes", func(b *broken) {
			b.putIfAbsent = func(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
				if _, _, err := b.Store.Get(ctx, key); err == nil {
					return storage.ObjectInfo{}, storage.ErrAlreadyExists
				}
				time.Sleep(time.Millisecond)
				return b.overwrite(ctx, key, data)
			}
		}, "put-if-absent"},
		{"admits nobody", func(b *broken) {
			b.putIfAbsent = func(ctx context.Context, key string, _ []byte) (storage.ObjectInfo, error) {
				_, _ = b.Store.PutIfAbsent(ctx, key, []byte("0"))
				return storage.ObjectInfo{}, storage.ErrAlreadyExists
			}
		}, "put-if-absent"},
		{"tells losers nothing typed", func(b *broken) {
			b.putIfAbsent = func(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
				info, err := b.Store.PutIfAbsent(ctx, key, data)
				if err != nil {
					err = errors.New("400 bad request")
				}
				return info, err
			}
		}, "put-if-absent"},
		{"tells the losers of a race nothing typed", func(b *broken) {
			var n atomic.Int64
			b.putIfMatch = func(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
				info, err := b.Store.PutIfMatch(ctx, key, data, etag)
				if err != nil && n.Add(1) == 1 {
					err = errors.New("500 internal error")
				}
				return info, err
			}
		}, "put-if-match"},
		{"tells a loser that it won", func(b *broken) {
			var n atomic.Int64
			b.putIfMatch = func(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
				info, err := b.Store.PutIfMatch(ctx, key, data, etag)
				if n.Add(1) == 9 {
					return info, nil
				}
				return info, err
			}
		}, "put-if-match"},
		{"takes an older ETag", func(b *broken) {
			var n atomic.Int64
			b.putIfMatch = func(ctx context.Context, key string, data []byte, etag storage.ETag) (storage.ObjectInfo, error) {
				if n.Add(1) > 32 {
					return b.overwrite(ctx, key, data)
				}
				return b.Store.PutIfMatch(ctx, key, data, etag)
			}
		}, "put-if-match"},
		{"lists late", func(b *broken) {
			b.list = func(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
				return func(yield func(storage.ObjectInfo, error) bool) {
					for info, err := range b.Store.List(ctx, prefix, startAfter) {
						if err == nil && time.Since(info.ModTime) < 50*time.Millisecond {
							continue
						}
						if !yield(info, err) {
							return
						}
					}
				}
			}
		}, "list-after-put list-order start-after"},
		{"lists what is deleted", func(b *broken) {
			var ghost storage.ObjectInfo
			b.list = func(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
				return func(yield func(storage.ObjectInfo, error) bool) {
					infos, err := storage.Collect(b.Store.List(ctx, prefix, startAfter))
					for _, info := range infos {
						if strings.HasSuffix(info.Key, "/gone") {
							ghost = info
						}
					}
					if ghost.Key > startAfter && !slices.Contains(infos, ghost) {
						infos = append(infos, ghost)
						slices.SortFunc(infos, func(a, b storage.ObjectInfo) int { return strings.Compare(a.Key, b.Key) })
					}
					for _, info := range infos {
						if !yield(info, err) {
							return
						}
					}
				}
			}
		}, "list-after-put list-order start-after"},
		{"lists in the order of directories", func(b *broken) {
			b.list = reorder(b, func(x, y storage.ObjectInfo) int {
				return slices.Compare(strings.Split(x.Key, "/"), strings.Split(y.Key, "/"))
			})
		}, "list-order"},
		{"lists in the order of time", func(b *broken) {
			b.list = reorder(b, func(x, y storage.ObjectInfo) int { return x.ModTime.Compare(y.ModTime) })
		}, "list-order"},
		{"ignores start-after", func(b *broken) {
			b.list = func(ctx context.Context, prefix, _ string) iter.Seq2[storage.ObjectInfo, error] {
				return b.Store.List(ctx, prefix, "")
			}
		}, "start-after"},
		{"starts at, not after", func(b *broken) {
			b.list = func(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
				if startAfter != "" {
					startAfter = startAfter[:len(startAfter)-1] + string(startAfter[len(startAfter)-1]-1) + "~"
				}
				return b.Store.List(ctx, prefix, startAfter)
			}
		}, "start-after"},
		{"reads late", func(b *broken) {
			var mu sync.Mutex
			last := map[string][]byte{}
			b.get = func(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
				data, info, err := b.Store.Get(ctx, key)
				mu.Lock()
				defer mu.Unlock()
				if old, ok := last[key]; ok && err == nil && strings.HasSuffix(key, "/value") {
					return old, info, nil
				}
				last[key] = data
				return data, info, err
			}
		}, "read-after-write"},
		{"reads what is deleted", func(b *broken) {
			b.get = func(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
				data, info, err := b.Store.Get(ctx, key)
				if errors.Is(err, storage.ErrNotFound) {
					return nil, info, nil
				}
				return data, info, err
			}
		}, "read-after-write"},
		{"ignores ranges", func(b *broken) {
			b.getRange = func(ctx context.Context, key string, _, _ int64) ([]byte, error) {
				data, _, err := b.Store.Get(ctx, key)
				return data, err
			}
		}, "range-read"},
		{"cuts ranges short", func(b *broken) {
			b.getRange = func(ctx context.Context, key string, offset, length int64) ([]byte, error) {
				data, _, err := b.Store.Get(ctx, key)
				return data[offset:min(offset+length, int64(len(data)))], err
			}
		}, "range-read"},
		{"tears puts", func(b *broken) {
			b.put = func(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
				data, err := io.ReadAll(body)
				if err != nil {
					return storage.ObjectInfo{}, err
				}
				if len(data) > 1000 {
					if _, err := b.overwrite(ctx, key, data[:1000]); err != nil {
						return storage.ObjectInfo{}, err
					}
					time.Sleep(5 * time.Millisecond)
				}
				return b.overwrite(ctx, key, data)
			}
		}, "atomic-put"},
		{"removes, then puts", func(b *broken) {
			b.put = func(ctx context.Context, key string, body io.ReadSeeker) (storage.ObjectInfo, error) {
				if err := b.Delete(ctx, key); err != nil {
					return storage.ObjectInfo{}, err
				}
				time.Sleep(2 * time.Millisecond)
				return b.Store.Put(ctx, key, body)
			}
		}, "atomic-put"},
		{"has no clock", func(b *broken) {
			b.now = func(context.Context) (time.Time, error) {
				return time.Time{}, fmt.Errorf("%w: no Date", storage.ErrStoreRefused)
			}
		}, "clock"},
		{"has a clock that goes back", func(b *broken) {
			var n atomic.Int64
			b.now = func(context.Context) (time.Time, error) {
				return time.Now().Add(-time.Duration(n.Add(1)) * time.Minute), nil
			}
		}, "clock"},
		{"has a clock that runs away", func(b *broken) {
			var n atomic.Int64
			b.now = func(context.Context) (time.Time, error) {
				return time.Now().Add(time.Duration(n.Add(1)) * time.Minute), nil
			}
		}, "clock"},
		{"dates objects by another clock", func(b *broken) {
			b.now = func(context.Context) (time.Time, error) { return time.Now().Add(time.Hour), nil }
		}, "clock"},
		{"has ETags that differ by the call", func(b *broken) {
			b.get = func(ctx context.Context, key string) ([]byte, storage.ObjectInfo, error) {
				data, info, err := b.Store.Get(ctx, key)
				info.ETag = storage.ETag(strings.Trim(string(info.ETag), `"`))
				return data, info, err
			}
		}, "read-after-write put-if-match"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBroken()
			c.spoil(b)
			report, err := storage.Probe(t.Context(), b, "")
			var first *storage.PropertyError
			if !errors.As(err, &first) || !errors.Is(err, storage.ErrStoreRefused) {
				t.Fatalf("not refused: %v", err)
			}
			var lacking []string
			for _, r := range report.Properties {
				if !r.Held {
					lacking = append(lacking, string(r.Property))
				}
			}
			if diff := cmp.Diff(c.want, strings.Join(lacking, " ")); diff != "" {
				t.Errorf("lacking (-want +got):\n%s\n%v", diff, err)
			}
			if first.Property != storage.Property(lacking[0]) || first.Detail == "" || !strings.Contains(err.Error(), lacking[0]) {
				t.Errorf("first error %+v", first)
			}
			infos, err := storage.Collect(b.Store.List(t.Context(), "", ""))
			if err != nil || len(infos) != 0 {
				t.Errorf("left behind: %v, %v", infos, err)
			}
		})
	}
}

func reorder(b *broken, by func(x, y storage.ObjectInfo) int) func(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
		return func(yield func(storage.ObjectInfo, error) bool) {
			infos, err := storage.Collect(b.Store.List(ctx, prefix, startAfter))
			if err != nil {
				yield(storage.ObjectInfo{}, err)
				return
			}
			slices.SortStableFunc(infos, by)
			for _, info := range infos {
				if !yield(info, nil) {
					return
				}
			}
		}
	}
}

// A racer may hear that its outcome is unknown (S3 answers 409 to some
// races): that alone is no lack.
func TestProbeTakesUnknownOutcomes(t *testing.T) {
	b := newBroken()
	var n atomic.Int64
	unknown := func(err error) error {
		if n.Add(1)%3 == 0 {
			return fmt.Errorf("409: %w", storage.ErrUnknownOutcome)
		}
		return err
	}
	var racing atomic.Int64
	b.putIfAbsent = func(ctx context.Context, key string, data []byte) (storage.ObjectInfo, error) {
		info, err := b.Store.PutIfAbsent(ctx, key, data)
		if racing.Add(1) <= 32 {
			err = unknown(err) // also the winner, at times
		}
		return info, err
	}
	for range 20 {
		racing.Store(0)
		if _, err := storage.Probe(t.Context(), b, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever call of it fails for another reason, the probe refuses nobody, and
// says what failed.
func TestProbeUnderFaults(t *testing.T) {
	for i := 0; ; i += 3 { // every third call, of some 150
		f := fault.New(mem.New(mem.Options{}))
		f.FailAt(i, fault.Before)
		report, err := storage.Probe(t.Context(), f, "")
		if f.Fired() == 0 {
			if err != nil || i < 100 {
				t.Errorf("call %d: %v", i, err)
			}
			return
		}
		if errors.Is(err, storage.ErrStoreRefused) {
			t.Errorf("call %d: refused: %v", i, err)
		}
		for _, r := range report.Properties {
			if !r.Held {
				t.Errorf("call %d: %+v", i, r)
			}
		}
		// A racer's unknown outcome is settled by asking again.
		if err != nil && !errors.Is(err, storage.ErrUnavailable) && !errors.Is(err, storage.ErrUnknownOutcome) {
			t.Errorf("call %d: %v", i, err)
		}
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	inner := mem.New(mem.Options{})
	f := fault.New(inner)
	f.Inject(fault.Fault{Op: storage.OpGetRange, OnCall: func(context.Context, fault.Call) { cancel() }})
	if _, err := storage.Probe(ctx, f, ""); !errors.Is(err, context.Canceled) || errors.Is(err, storage.ErrStoreRefused) {
		t.Error(err)
	}
	infos, err := storage.Collect(inner.List(t.Context(), "", ""))
	if err != nil || len(infos) != 0 {
		t.Errorf("left behind: %v, %v", infos, err)
	}
	if _, err := storage.Probe(t.Context(), inner, "no/../prefix/"); !errors.Is(err, storage.ErrInvalidKey) {
		t.Error(err)
	}
}
