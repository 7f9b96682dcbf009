package shard

import (
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"cardinalsin/series"

	"github.com/prometheus/prometheus/model/labels"
)

// Any sequence of splits keeps the invariant, and every key has exactly one
// owner, the one that its range says.
func TestSplitTilesTheKeySpace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := Initial()
		for range rapid.IntRange(0, 20).Draw(t, "splits") {
			s := m.Shards[rapid.IntRange(0, len(m.Shards)-1).Draw(t, "shard")]
			at := Key(rapid.Uint64Range(uint64(s.Range.Min), uint64(s.Range.Max)).Draw(t, "boundary"))
			next, err := m.Split(s.ID, at)
			if at == s.Range.Min {
				if !errors.Is(err, ErrInvalidBoundary) {
					t.Fatalf("split at the lower end: %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if next.Epoch != m.Epoch+1 {
				t.Fatalf("epoch %d follows %d", next.Epoch, m.Epoch)
			}
			m = next
		}
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		k := Key(rapid.Uint64().Draw(t, "key"))
		owners := 0
		for _, s := range m.Shards {
			if s.Range.Contains(k) {
				owners++
				if got := m.Of(k); got != s.ID {
					t.Fatalf("Of(%d) = %q, range says %q", k, got, s.ID)
				}
			}
		}
		if owners != 1 {
			t.Fatalf("key %d has %d owners", k, owners)
		}
		back, err := Parse(m.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m, back); d != "" {
			t.Fatal(d)
		}
	})
}

func TestSplitErrors(t *testing.T) {
	m := Initial()
	if _, err := m.Split("10", 5); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown shard: %v", err)
	}
	if _, err := m.Split("1", 0); !errors.Is(err, ErrInvalidBoundary) {
		t.Errorf("boundary at the lower end: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, conf := range map[string]string{
		"no JSON":  `{`,
		"empty":    `{}`,
		"gap":      `{"epoch":1,"shards":[{"id":"1","range":{"min":0,"max":5}},{"id":"2","range":{"min":7,"max":18446744073709551615}}]}`,
		"overlap":  `{"epoch":1,"shards":[{"id":"1","range":{"min":0,"max":5}},{"id":"2","range":{"min":5,"max":18446744073709551615}}]}`,
		"open end": `{"epoch":1,"shards":[{"id":"1","range":{"min":0,"max":5}}]}`,
		"twice":    `{"epoch":1,"shards":[{"id":"1","range":{"min":0,"max":5}},{"id":"1","range":{"min":6,"max":18446744073709551615}}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse(conf); !errors.Is(err, ErrInvalidMap) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Series of one metric share the high half of the key and differ in the low.
func TestKeyOf(t *testing.T) {
	a := labels.FromStrings("__name__", "up", "job", "a")
	b := labels.FromStrings("__name__", "up", "job", "b")
	ka, kb := KeyOf(a, series.IDOf(a)), KeyOf(b, series.IDOf(b))
	if ka>>32 != kb>>32 {
		t.Errorf("one metric, two high halves: %x %x", ka, kb)
	}
	if ka == kb {
		t.Errorf("two series, one key: %x", ka)
	}
	if uint64(ka) == math.MaxUint64 {
		t.Error("implausible key")
	}
}
