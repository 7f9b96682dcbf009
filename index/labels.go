package index

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
	"cardinalsin/txlog"
)

// LabelValues returns the values of a label among the selected series of the
// files, sorted, and the paths of the files that must still be read for it.
// With a limit above 0 it returns the first values only, up to that many.
// Time counts by the file. Errors are those of Find.
func (x *Index) LabelValues(ctx context.Context, snap *txlog.Snapshot, name string, sel series.Selector, files []string, limit int) (values, uncovered []string, err error) {
	seen := samePages{pages: map[string]*samePage{}}
	values, uncovered, err = x.texts(ctx, snap, name, sel, files, limit, func(ctx context.Context, c *claim) ([]string, bool, error) {
		l := c.seg.label(name)
		if l == nil {
			return nil, true, nil
		}
		switch {
		case len(sel.Matchers) == 0 && limit <= 0 && c.all:
			out, err := c.allValues(ctx, l, &seen)
			return out, true, err
		case len(sel.Matchers) == 0:
			out, err := c.values(ctx, l, limit, nil)
			return out, true, err
		}
		return c.selectedValues(ctx, l, sel, limit)
	})
	if err != nil {
		err = fmt.Errorf("values of label %q in the index: %w", name, err)
	}
	return values, uncovered, err
}

// LabelNames is LabelValues for the names of labels.
func (x *Index) LabelNames(ctx context.Context, snap *txlog.Snapshot, sel series.Selector, files []string, limit int) (names, uncovered []string, err error) {
	names, uncovered, err = x.texts(ctx, snap, "", sel, files, limit, func(ctx context.Context, c *claim) ([]string, bool, error) {
		var out []string
		if len(sel.Matchers) == 0 {
			for _, i := range c.seg.sorted {
				if c.wants(c.seg.labels[i].set) {
					out = append(out, c.seg.labels[i].name)
				}
			}
			return out, true, nil
		}
		set := map[string]struct{}{}
		ok, err := c.visit(ctx, sel, func(l series.Labels) {
			l.Range(func(l labels.Label) {
				if _, known := set[l.Name]; !known {
					set[strings.Clone(l.Name)] = struct{}{}
				}
			})
		})
		return sorted(set), ok, err
	})
	if err != nil {
		err = fmt.Errorf("label names in the index: %w", err)
	}
	return names, uncovered, err
}

// texts asks each segment and joins what they say; label is the one whose
// values they are, if any.
func (x *Index) texts(ctx context.Context, snap *txlog.Snapshot, label string, sel series.Selector, files []string, limit int, ask func(context.Context, *claim) ([]string, bool, error)) (texts, uncovered []string, err error) {
	claims, err := x.claim(ctx, snap, sel.Range, files)
	if err != nil {
		return nil, nil, err
	}
	key := ""
	if label != "" && len(sel.Matchers) == 0 {
		key = listKey(label, claims)
		if kept, ok := x.lists.Get(key); ok {
			for i := range claims {
				claims[i].ok = true
			}
			if limit > 0 {
				kept = kept[:min(limit, len(kept))]
			}
			return slices.Clone(kept), uncoveredBy(claims, files), nil
		}
	}
	found := make([][]string, len(claims))
	err = x.each(ctx, len(claims), func(ctx context.Context, i int) error {
		c := &claims[i]
		out, ok, err := ask(ctx, c)
		c.ok = ok && err == nil
		found[i] = out
		return x.forgive(ctx, strings.TrimPrefix(c.seg.key, x.log.Root()+"/"), err)
	})
	if err != nil {
		return nil, nil, err
	}
	settle(claims)
	var lists [][]string
	for i := range claims {
		if claims[i].ok {
			lists = append(lists, found[i])
		}
	}
	texts = union(lists, limit)
	// A segment that failed may do better next time.
	if key != "" && limit <= 0 && len(lists) == len(claims) {
		x.lists.put(key, texts)
	}
	return texts, uncoveredBy(claims, files), nil
}

// uncoveredBy lists the files that no claim answers for.
func uncoveredBy(claims []claim, files []string) (uncovered []string) {
	covered := make(map[string]bool, len(files))
	for i := range claims {
		if !claims[i].ok {
			continue
		}
		for f, want := range claims[i].wanted {
			if want {
				covered[claims[i].seg.files[f].path] = true
			}
		}
	}
	for _, f := range files {
		if !covered[f] {
			uncovered = append(uncovered, f)
		}
	}
	return uncovered
}

// union merges ascending lists, by halves: neighbours in time say nearly the
// same, so that the result does not grow.
func union(lists [][]string, limit int) []string {
	switch len(lists) {
	case 0:
		return nil
	case 1:
		if limit > 0 && len(lists[0]) > limit {
			return lists[0][:limit]
		}
		return lists[0]
	}
	a, b := union(lists[:len(lists)/2], limit), union(lists[len(lists)/2:], limit)
	if len(a) == 0 || slices.Equal(a, b) {
		return b
	}
	out := make([]string, 0, max(len(a), len(b)))
	for (len(a) > 0 || len(b) > 0) && (limit <= 0 || len(out) < limit) {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			out, a = append(out, a[0]), a[1:]
		case len(a) == 0 || b[0] < a[0]:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return out
}

// pagesAtOnce bounds the pages of values that are read before it is seen
// whether more are needed.
const pagesAtOnce = 256

// values lists the values of a label in wanted files, and, where among is set,
// of series that are in it.
func (c *claim) values(ctx context.Context, l *label, limit int, among *roaring.Bitmap) ([]string, error) {
	var out []string
	full := func() bool { return limit > 0 && len(out) >= limit }
	ahead := pagesAtOnce
	if limit > 0 {
		ahead = 1 + limit*len(l.pages)/max(l.values, 1)
	}
	for pages := l.pages; len(pages) > 0 && !full(); {
		now := pages[:min(len(pages), ahead, pagesAtOnce)]
		pages = pages[len(now):]
		spans := make([]span, len(now))
		for i := range now {
			spans[i] = now[i].span
		}
		raw, err := c.seg.blocks(ctx, spans)
		if err != nil {
			return nil, err
		}
		for _, page := range raw {
			var fault error
			err := c.seg.values(page, func(v *value) bool {
				if !c.wants(v.set) {
					return true
				}
				if among != nil {
					var in bool
					if in, fault = c.among(ctx, v, among); fault != nil || !in {
						return fault == nil
					}
				}
				out = append(out, string(v.text))
				return !full()
			})
			if err == nil {
				err = fault
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// samePages are the pages of one call, decoded once: where the series stay the
// same, so do a label's pages from day to day.
type samePages struct {
	mu    sync.Mutex // guards pages
	pages map[string]*samePage
}

type samePage struct {
	once   sync.Once
	values []string
	err    error
}

// allValues lists all values of a label.
func (c *claim) allValues(ctx context.Context, l *label, seen *samePages) ([]string, error) {
	var out []string
	for pages := l.pages; len(pages) > 0; {
		now := pages[:min(len(pages), pagesAtOnce)]
		pages = pages[len(now):]
		spans := make([]span, len(now))
		for i := range now {
			spans[i] = now[i].span
		}
		blocks, err := c.seg.stored(ctx, spans, func(b []byte) ([]byte, error) { return b, nil })
		if err != nil {
			return nil, err
		}
		for _, b := range blocks {
			seen.mu.Lock()
			// By all its bytes: a sum alone is no proof.
			p := seen.pages[string(b)]
			if p == nil {
				p = &samePage{}
				seen.pages[string(b)] = p
			}
			seen.mu.Unlock()
			p.once.Do(func() {
				var raw []byte
				if raw, p.err = openBlock(b); p.err == nil {
					p.err = c.seg.values(raw, func(v *value) bool {
						p.values = append(p.values, string(v.text))
						return true
					})
				}
			})
			if p.err != nil {
				return nil, p.err
			}
			out = append(out, p.values...)
		}
	}
	return out, nil
}

// among reports whether a value has a series in the set.
func (c *claim) among(ctx context.Context, v *value, set *roaring.Bitmap) (bool, error) {
	if v.kind == postingsBlock {
		raw, err := c.seg.blocks(ctx, []span{v.block})
		if err != nil {
			return false, err
		}
		m, err := openBitmap(raw[0], c.seg.total)
		return err == nil && m.Intersects(set), err
	}
	m := roaring.New()
	err := c.seg.postingsInto(m, v)
	return m.Intersects(set), err
}

// selectedValues is values for a selector with matchers.
func (c *claim) selectedValues(ctx context.Context, l *label, sel series.Selector, limit int) ([]string, bool, error) {
	var bounds Limits
	bounds.ensureDefaults()
	hits, exact, err := c.seg.candidates(ctx, sel.Matchers, bounds.Bytes, nil)
	if err != nil {
		return nil, false, err
	}
	// Postings know nothing of files: where some are not wanted, only the
	// series' rows tell. A long list of postings costs a request.
	if exact && c.all && l.values <= 1024 && (hits == nil || hits.GetCardinality() > fewPages*seriesPerPage) {
		out, err := c.values(ctx, l, limit, hits)
		return out, true, err
	}
	set := map[string]struct{}{}
	ok, err := c.visit(ctx, sel, func(ls series.Labels) {
		if v := ls.Get(l.name); v != "" {
			if _, known := set[v]; !known {
				set[strings.Clone(v)] = struct{}{}
			}
		}
	})
	return sorted(set), ok, err
}

// visit calls each for the selected series with rows in wanted files.
func (c *claim) visit(ctx context.Context, sel series.Selector, each func(series.Labels)) (bool, error) {
	var limit Limits
	limit.ensureDefaults()
	hits, exact, err := c.seg.candidates(ctx, sel.Matchers, limit.Bytes, nil)
	if err != nil {
		return false, err
	}
	ordinals := c.seg.ordinals(hits)
	if c.seg.pageBytes(ordinals) > limit.Bytes {
		return false, nil
	}
	if exact {
		sel.Matchers = nil
	}
	err = c.seg.series(ctx, ordinals, &decoding{}, func(r row) error {
		if sel.Matches(r.Labels) && slices.ContainsFunc(r.runs, func(w where) bool { return c.wanted[w.file] }) {
			each(r.Labels)
		}
		return nil
	})
	return err == nil, err
}

func sorted(set map[string]struct{}) []string {
	out := make([]string, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
