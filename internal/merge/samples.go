package merge

import (
	"cmp"
	"slices"

	"cardinalsin/series"
)

// Run is one source's samples of one series, sorted by (Time, Nanos); equal
// neighbours are allowed, the later wins.
type Run struct {
	Rank    Rank
	Samples []series.Sample
}

// Samples appends to dst the merged samples of one series, strictly ascending
// by (Time, Nanos). Of runs with equal rank the later argument wins. dst must
// not share memory with a run.
func Samples(dst []series.Sample, runs ...Run) []series.Sample {
	// Strongest first, so that a run's index tells its strength.
	order := make([]int, len(runs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		if c := runs[b].Rank.Compare(runs[a].Rank); c != 0 {
			return c
		}
		return cmp.Compare(b, a)
	})
	live := make([]run, 0, len(runs))
	for strength, i := range order {
		if s := runs[i].Samples; len(s) > 0 {
			live = append(live, run{strength: strength, rest: s})
		}
	}
	slices.SortFunc(live, run.compare)
	base, owner := len(dst), -1 // owner is the strength of the run that gave dst's last sample
	for len(live) > 0 {
		// live is sorted by next instant, then strength: live[0] gives that
		// instant, and all of its samples that lie before live[1]'s next.
		top := live[0]
		n := len(top.rest)
		if len(live) > 1 {
			limit := live[1].rest[0]
			for n = 1; n < len(top.rest) && top.rest[n].Compare(limit) < 0; {
				n++
			}
		}
		for _, s := range top.rest[:n] {
			last := len(dst) - 1
			switch {
			case last < base || dst[last].Compare(s) != 0:
				dst, owner = append(dst, s), top.strength
			case owner == top.strength:
				dst[last] = s // later in the same run
			}
		}
		// Put top back where its next sample belongs.
		live = live[1:]
		if top.rest = top.rest[n:]; len(top.rest) > 0 {
			at, _ := slices.BinarySearchFunc(live, top, run.compare)
			live = slices.Insert(live, at, top)
		}
	}
	return dst
}

// run is what is left of one Run; strength 0 is the strongest.
type run struct {
	strength int
	rest     []series.Sample
}

// compare orders runs by their next sample, the stronger first.
func (r run) compare(o run) int {
	if c := r.rest[0].Compare(o.rest[0]); c != 0 {
		return c
	}
	return cmp.Compare(r.strength, o.strength)
}
