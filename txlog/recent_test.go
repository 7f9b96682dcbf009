package txlog

import (
	"testing"

	"cardinalsin/action"
)

// Two versions may follow one snapshot: what another process committed, and
// what ours then offers in vain. Neither sees the other's files.
func TestRecentAddsBranch(t *testing.T) {
	commit := func(path string) *action.Commit { return &action.Commit{Adds: []action.Add{{Path: path}}} }
	r := recentAdds{}
	for v := range action.Version(9) {
		r = r.then(v, commit("old"))
		a := r.then(v+1, commit("a"))
		b := r.then(v+1, commit("b"))
		for want, got := range map[string]recentAdds{"a": a, "b": b} {
			if last := got.keys[len(got.keys)-1]; last[0].Path != want {
				t.Errorf("version %d: the branch of %s has %v", v, want, last)
			}
		}
	}
}
