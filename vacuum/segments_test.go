package vacuum

import (
	"slices"
	"strings"
	"testing"
	"time"

	"cardinalsin/index"
	"cardinalsin/txlog"
)

// TestSegments: a segment of the index goes once no version names it and it is
// too old to be committed; with a damaged domain none goes.
func TestSegments(t *testing.T) {
	const named, left, young, other = "_index/2026-11-22-aa.idx", "_index/2026-11-22-bb.idx", "_index/2026-11-22-cc.idx", "_index/note.txt"
	setUp := func(t *testing.T, domain string) *table {
		tab := newTable(t)
		for _, key := range []string{named, left, other} {
			if _, err := tab.store.Put(t.Context(), root+"/"+key, strings.NewReader(key)); err != nil {
				t.Fatal(err)
			}
		}
		tx := tab.log.Begin(nil, txlog.Operation{Name: "INDEX"})
		tx.SetDomain(index.Domain, domain)
		if _, err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		tab.clock.tick(DefaultOrphanAge + time.Minute)
		if _, err := tab.store.Put(t.Context(), root+"/"+young, strings.NewReader(young)); err != nil {
			t.Fatal(err)
		}
		return tab
	}
	there := func(t *testing.T, tab *table) (out []string) {
		for o, err := range tab.store.List(t.Context(), root+"/_index/", "") {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, strings.TrimPrefix(o.Key, root+"/"))
		}
		return out
	}
	for _, c := range []struct {
		name, domain string
		want         []string
	}{
		{"sound", `{"segments":[{"key":"` + named + `","bytes":1,"date":"2026-11-22","files":1,"after":-1,"through":1}]}`, []string{named, young, other}},
		{"damaged", `{"segments":[{"key":"../elsewhere"}]}`, []string{named, left, young, other}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tab := setUp(t, c.domain)
			plan, err := NewPlan(t.Context(), tab.log, Options{})
			if err != nil {
				t.Fatal(err)
			}
			r, err := plan.Execute(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := there(t, tab); !slices.Equal(got, c.want) {
				t.Errorf("left %v, want %v", got, c.want)
			}
			if want := 4 - len(c.want); r.Segments != want || len(plan.Segments) != want {
				t.Errorf("report %d, plan %d, want %d", r.Segments, len(plan.Segments), want)
			}
		})
	}
}
