package index

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/prometheus/prometheus/model/labels"
)

// task is what a selector asks of one label.
type task struct {
	label    *label
	matchers []*labels.Matcher
	// exclude: the label may be absent, so that the values which do not match
	// are looked for, and their series taken out.
	exclude bool
	// finite: only these values can be what is looked for. They ascend.
	finite bool
	values []string
	prefix string
	pages  []valuePage
	// sets are the file sets of the values that were found.
	sets map[int]struct{}
}

// newTask plans one label. none is true where no series can match.
func (s *segment) newTask(name string, matchers []*labels.Matcher) (t *task, none bool) {
	t = &task{label: s.label(name), matchers: matchers}
	t.exclude = t.matches("")
	if t.label == nil {
		return nil, !t.exclude
	}
	for _, m := range matchers {
		var set []string
		switch {
		case !t.exclude && m.Type == labels.MatchEqual, t.exclude && m.Type == labels.MatchNotEqual:
			set = []string{m.Value}
		case !t.exclude && m.Type == labels.MatchRegexp, t.exclude && m.Type == labels.MatchNotRegexp:
			set = m.SetMatches()
		}
		switch {
		case t.exclude:
			// Excluded is what any of them refuses, so all must be finite.
			if len(set) == 0 {
				t.finite, t.values = false, nil
				goto planned
			}
			t.finite = true
			t.values = append(t.values, set...)
		case len(set) > 0 && (!t.finite || len(set) < len(t.values)):
			t.finite, t.values = true, slices.Clone(set)
		case m.Type == labels.MatchRegexp && len(m.Prefix()) > len(t.prefix):
			t.prefix = m.Prefix()
		}
	}
planned:
	slices.Sort(t.values)
	t.values = slices.Compact(t.values)
	t.values = slices.DeleteFunc(t.values, func(v string) bool { return v == "" || t.matches(v) == t.exclude })
	t.choosePages()
	return t, t.finite && len(t.values) == 0 && !t.exclude
}

func (t *task) matches(v string) bool {
	for _, m := range t.matchers {
		if !m.Matches(v) {
			return false
		}
	}
	return true
}

// hit reports whether the value is one that is looked for.
func (t *task) hit(v []byte) bool {
	if t.finite {
		_, ok := slices.BinarySearchFunc(t.values, v, func(a string, v []byte) int {
			switch { // none of these copies v
			case a < string(v):
				return -1
			case a > string(v):
				return 1
			}
			return 0
		})
		return ok
	}
	return t.matches(string(v)) != t.exclude
}

// choosePages keeps the pages that can hold a value which is looked for.
func (t *task) choosePages() {
	all := t.label.pages
	pageOf := func(v string) int { // the last page that begins with v or less
		i, ok := slices.BinarySearchFunc(all, v, func(p valuePage, v string) int { return strings.Compare(p.first, v) })
		if !ok {
			i--
		}
		return i
	}
	switch {
	case t.finite:
		last := -1
		for _, v := range t.values {
			if i := pageOf(v); i > last {
				t.pages = append(t.pages, all[i])
				last = i
			}
		}
	case t.prefix != "" && !t.exclude:
		from := max(pageOf(t.prefix), 0)
		for _, p := range all[from:] {
			if p.first > t.prefix && !strings.HasPrefix(p.first, t.prefix) {
				break
			}
			t.pages = append(t.pages, p)
		}
	default:
		t.pages = all
	}
}

func (t *task) bytes() (n int64) {
	for _, p := range t.pages {
		n += p.length
	}
	return n
}

// fewPages: where what is left lies in so few pages of series, their labels
// tell the rest.
const fewPages = 16

// candidates returns the series that may match, nil for all; exact says that
// all of them do. Matchers that name values are asked first; of the others
// only those that cost less than what they can save.
//
// reach, if it is not nil, loses the files, by ordinal, that have none of them.
func (s *segment) candidates(ctx context.Context, matchers []*labels.Matcher, limit int64, reach []bool) (hits *roaring.Bitmap, exact bool, err error) {
	byName := map[string][]*labels.Matcher{}
	var names []string
	for _, m := range matchers {
		if byName[m.Name] == nil {
			names = append(names, m.Name)
		}
		byName[m.Name] = append(byName[m.Name], m)
	}
	var named, scans []*task
	for _, name := range names {
		t, none := s.newTask(name, byName[name])
		switch {
		case none:
			return roaring.New(), true, nil
		case t == nil:
		case t.finite:
			named = append(named, t)
		default:
			scans = append(scans, t)
		}
	}
	exact = true
	apply := func(tasks []*task) error {
		sets, err := s.ask(ctx, tasks)
		if err != nil {
			return err
		}
		for i, t := range tasks {
			t.narrow(s, reach)
			switch {
			case sets[i] == nil:
				exact = false
			case !t.exclude && hits == nil:
				hits = sets[i]
			case !t.exclude:
				hits.And(sets[i])
			case !sets[i].IsEmpty():
				if hits == nil {
					hits = roaring.New()
					hits.AddRange(0, uint64(s.total))
				}
				hits.AndNot(sets[i])
			}
		}
		return nil
	}
	// Those that take out come last: they need something to take from.
	slices.SortStableFunc(named, func(a, b *task) int { return cmp.Compare(b2i(a.exclude), b2i(b.exclude)) })
	if err := apply(named); err != nil {
		return nil, false, err
	}
	slices.SortStableFunc(scans, func(a, b *task) int { return cmp.Compare(a.bytes(), b.bytes()) })
	for _, t := range scans {
		left := int64(math.MaxInt64)
		if hits != nil {
			if hits.IsEmpty() {
				return hits, true, nil
			}
			if hits.GetCardinality() <= fewPages*seriesPerPage {
				left = s.pageBytes(hits.ToArray())
			}
		}
		if t.bytes() > min(left, limit) {
			exact = false
			continue
		}
		if err := apply([]*task{t}); err != nil {
			return nil, false, err
		}
	}
	return hits, exact, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// narrow takes files out of reach in which no value of the task is.
func (t *task) narrow(s *segment, reach []bool) {
	if reach == nil || t.exclude {
		return
	}
	has := make([]bool, len(reach))
	for set := range t.sets {
		for _, f := range s.sets[set] {
			has[f] = true
		}
	}
	for f := range reach {
		reach[f] = reach[f] && has[f]
	}
}

// ask finds the series with the values that each task looks for: one round
// trip for the pages of all, one for long postings. It does without those, and
// gives nil for their task, where what the others leave lies in few pages.
func (s *segment) ask(ctx context.Context, tasks []*task) ([]*roaring.Bitmap, error) {
	var pages []span
	for _, t := range tasks {
		for _, p := range t.pages {
			pages = append(pages, p.span)
		}
	}
	raw, err := s.spans(ctx, pages)
	if err != nil {
		return nil, err
	}
	out := make([]*roaring.Bitmap, len(tasks))
	later := make([][]span, len(tasks))
	var long []span
	for i, t := range tasks {
		out[i] = roaring.New()
		var fault error
		for _, p := range t.pages {
			err := s.values(raw[p.span], func(v *value) bool {
				if !t.hit(v.text) {
					// Values ascend: past the last one that is looked for
					// there is nothing.
					n := len(t.values)
					return !t.finite || n == 0 || string(v.text) < t.values[n-1]
				}
				if t.sets == nil {
					t.sets = map[int]struct{}{}
				}
				t.sets[v.set] = struct{}{}
				if v.kind == postingsBlock {
					later[i] = append(later[i], v.block)
					long = append(long, v.block)
					return true
				}
				fault = s.postingsInto(out[i], v)
				return fault == nil
			})
			if err == nil {
				err = fault
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if len(long) == 0 {
		return out, nil
	}
	if s.isFew(tasks, out, later) {
		for i := range tasks {
			if len(later[i]) > 0 {
				out[i] = nil
			}
		}
		return out, nil
	}
	if raw, err = s.spans(ctx, long); err != nil {
		return nil, err
	}
	for i := range tasks {
		for _, at := range later[i] {
			m, err := openBitmap(raw[at], s.total)
			if err != nil {
				return nil, err
			}
			out[i].Or(m)
		}
	}
	return out, nil
}

// isFew reports whether the tasks whose postings are all there leave so little
// that the labels of the series tell the rest.
func (s *segment) isFew(tasks []*task, sets []*roaring.Bitmap, later [][]span) bool {
	var left *roaring.Bitmap
	for i, t := range tasks {
		switch {
		case t.exclude || len(later[i]) > 0:
		case left == nil:
			left = sets[i].Clone()
		default:
			left.And(sets[i])
		}
	}
	if left == nil || left.GetCardinality() > fewPages*seriesPerPage {
		return false
	}
	pages, last := 0, -1
	for _, o := range left.ToArray() {
		if p := int(o) / seriesPerPage; p != last {
			pages, last = pages+1, p
		}
	}
	return pages <= fewPages
}

// spans reads blocks in any order, each once.
func (s *segment) spans(ctx context.Context, want []span) (map[span][]byte, error) {
	want = slices.Clone(want)
	slices.SortFunc(want, func(a, b span) int { return cmp.Compare(a.offset, b.offset) })
	want = slices.Compact(want)
	raw, err := s.blocks(ctx, want)
	if err != nil {
		return nil, err
	}
	out := make(map[span][]byte, len(want))
	for i, at := range want {
		out[at] = raw[i]
	}
	return out, nil
}

// postingsInto adds the series of a value whose postings lie in its page.
func (s *segment) postingsInto(m *roaring.Bitmap, v *value) error {
	if v.kind == postingsBitmap {
		p, err := openBitmap(v.raw, s.total)
		if err == nil {
			m.Or(p)
		}
		return err
	}
	r := &reading{b: v.raw}
	r.ordinals(v.count, s.total, func(o int) { m.Add(uint32(o)) })
	return r.end("postings")
}
