package index

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// indexed is a data file of a segment.
type indexed struct {
	path     string
	size     int64
	identity int64 // bytes of the columns that identify series
	time     series.TimeRange
}

// where is a run of a series in a file of the segment.
type where struct{ file, group, first, rows int }

// builder makes one segment. It is given series in order, and keeps the
// encoded pages and every label's values and postings in memory.
type builder struct {
	files  []indexed
	out    []byte
	page   []byte
	inPage int
	starts []uint32 // of every restartSeries-th series in the page
	pages  []int
	total  int
	labels map[string]*labelBuild
	last   map[string]string // values in the page, by label
	order  []string          // labels by ordinal, as the pages name them
	ords   map[string]int
	sets   fileSets
	values int64 // bytes that the values and postings take
}

// What a value and a posting take, besides the value's text: a string, a
// pointer and their share of a map, the value and a first posting; four bytes.
const (
	valueBytes   = 88
	postingBytes = 4
)

// memory is about what the builder keeps.
func (b *builder) memory() int64 { return b.values + int64(len(b.out)) }

type labelBuild struct {
	set    int
	values map[string]*valueBuild
}

type valueBuild struct {
	set      int
	postings []uint32
}

// fileSets numbers the sets of files that occur: a few, since most series are
// in the same ones.
type fileSets struct {
	lists  [][]uint32
	byText map[string]int
	unions map[[2]int]int
}

func (f *fileSets) of(list []uint32) int {
	key := string(appendOrdinals(nil, list))
	if n, ok := f.byText[key]; ok {
		return n
	}
	n := len(f.lists)
	f.lists = append(f.lists, slices.Clone(list))
	f.byText[key] = n
	return n
}

func (f *fileSets) union(a, b int) int {
	if a == b {
		return a
	}
	key := [2]int{min(a, b), max(a, b)}
	if n, ok := f.unions[key]; ok {
		return n
	}
	list := append(slices.Clone(f.lists[a]), f.lists[b]...)
	slices.Sort(list)
	n := f.of(slices.Compact(list))
	f.unions[key] = n
	return n
}

func newBuilder(files []indexed) *builder {
	return &builder{
		files: files, out: []byte(magic), labels: map[string]*labelBuild{}, last: map[string]string{}, ords: map[string]int{},
		sets: fileSets{byText: map[string]int{}, unions: map[[2]int]int{}},
	}
}

// add appends the next series, with its runs by file and row.
func (b *builder) add(l series.Labels, id series.ID, runs []where) {
	var files []uint32
	for _, r := range runs {
		if n := len(files); n == 0 || files[n-1] != uint32(r.file) {
			files = append(files, uint32(r.file))
		}
	}
	set := b.sets.of(files)
	if b.inPage%restartSeries == 0 {
		clear(b.last)
		b.starts = append(b.starts, uint32(len(b.page)))
	}
	b.page = binary.LittleEndian.AppendUint64(b.page, uint64(id))
	b.page = binary.AppendUvarint(b.page, uint64(l.Len()))
	l.Range(func(l labels.Label) {
		label := b.labels[l.Name]
		if label == nil {
			// What is kept must not hold on to whole label sets.
			name := strings.Clone(l.Name)
			label = &labelBuild{set: set, values: map[string]*valueBuild{}}
			b.labels[name] = label
			b.ords[name] = len(b.order)
			b.order = append(b.order, name)
		}
		label.set = b.sets.union(label.set, set)
		v := label.values[l.Value]
		if v == nil {
			v = &valueBuild{set: set}
			label.values[strings.Clone(l.Value)] = v
			b.values += valueBytes + int64(len(l.Value))
		}
		b.values += postingBytes
		v.set = b.sets.union(v.set, set)
		v.postings = append(v.postings, uint32(b.total))
		shared := sharedPrefix(b.last[l.Name], l.Value)
		b.page = binary.AppendUvarint(b.page, uint64(b.ords[l.Name]))
		b.page = binary.AppendUvarint(b.page, uint64(shared))
		b.page = appendText(b.page, l.Value[shared:])
		b.last[l.Name] = l.Value
	})
	b.page = binary.AppendUvarint(b.page, uint64(len(runs)))
	for _, r := range runs {
		for _, v := range []int{r.file, r.group, r.first, r.rows} {
			b.page = binary.AppendUvarint(b.page, uint64(v))
		}
	}
	b.total++
	if b.inPage++; b.inPage == seriesPerPage {
		b.endPage()
	}
}

func (b *builder) endPage() {
	for _, at := range b.starts {
		b.page = binary.LittleEndian.AppendUint32(b.page, at)
	}
	var n int
	b.out, n = appendFrame(plainCodec(), b.out, b.page)
	b.pages = append(b.pages, n)
	b.page, b.starts, b.inPage = b.page[:0], b.starts[:0], 0
}

func sharedPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// finish completes the segment, and tells how much of its end is to be read
// first: the directory, the pages of small labels before it, or all of it.
func (b *builder) finish() (data []byte, head int64, err error) {
	if b.inPage > 0 {
		b.endPage()
	}
	postings := len(b.out)
	blocks := map[*valueBuild]spot{}
	inline := map[*valueBuild][]byte{}
	names := slices.Clone(b.order)
	slices.Sort(names)
	for _, name := range names {
		label := b.labels[name]
		for _, value := range slices.Sorted(maps.Keys(label.values)) {
			v := label.values[value]
			if len(v.postings) <= maxInline {
				continue
			}
			m := roaring.BitmapOf(v.postings...)
			m.RunOptimize()
			raw, err := m.ToBytes()
			if err != nil {
				return nil, 0, fmt.Errorf("encode postings: %w", err)
			}
			if len(raw) <= maxInline {
				inline[v] = raw
				continue
			}
			at := len(b.out) - postings
			var n int
			b.out, n = appendBlock(b.out, raw)
			blocks[v] = spot{at, n}
		}
	}

	var dir []byte
	put := func(v int64) { dir = binary.AppendUvarint(dir, uint64(v)) }
	put(int64(len(b.files)))
	for _, f := range b.files {
		dir = appendText(dir, f.path)
		put(f.size)
		put(f.identity)
		dir = binary.AppendUvarint(dir, zigzag(int64(f.time.Min)))
		dir = binary.AppendUvarint(dir, zigzag(int64(f.time.Max)))
	}
	put(int64(len(b.sets.lists)))
	for _, list := range b.sets.lists {
		put(int64(len(list)))
		dir = appendOrdinals(dir, list)
	}
	put(int64(b.total))
	put(int64(len(magic)))
	put(int64(len(b.pages)))
	for _, n := range b.pages {
		put(int64(n))
	}
	put(int64(postings))
	// The pages name labels by the order in which they were met; the directory
	// lists them so, and readers sort. Their pages come with the largest label
	// first: the small ones lie together, before the directory, and are read
	// with it or with each other.
	pages := make([]valuePages, len(b.order))
	bySize := make([]int, len(b.order))
	for i, name := range b.order {
		pages[i] = b.labels[name].pages(blocks, inline)
		bySize[i] = i
	}
	slices.SortStableFunc(bySize, func(i, j int) int { return cmp.Compare(len(pages[j].data), len(pages[i].data)) })
	starts := make([]int, len(b.order))
	for _, i := range bySize {
		starts[i] = len(b.out)
		b.out = append(b.out, pages[i].data...)
	}
	near := 0
	for _, i := range slices.Backward(bySize) {
		if near+len(pages[i].data) > nearBytes {
			break
		}
		near += len(pages[i].data)
	}
	put(int64(len(b.order)))
	for i, name := range b.order {
		label := b.labels[name]
		dir = appendText(dir, name)
		put(int64(label.set))
		put(int64(len(label.values)))
		put(int64(starts[i]))
		put(int64(len(pages[i].lengths)))
		for j, n := range pages[i].lengths {
			dir = appendText(dir, pages[i].firsts[j])
			put(int64(n))
		}
	}
	var n int
	b.out, n = appendBlock(b.out, dir)
	b.out = binary.LittleEndian.AppendUint64(b.out, uint64(n))
	b.out = append(b.out, magic...)
	head = int64(near + n + tailBytes)
	if len(b.out) <= nearBytes {
		head = int64(len(b.out))
	}
	return b.out, head, nil
}

// valuePages are the pages of one label.
type valuePages struct {
	data    []byte
	firsts  []string
	lengths []int
}

// spot is where a block of postings lies, from the first one.
type spot struct{ offset, length int }

func (l *labelBuild) pages(blocks map[*valueBuild]spot, inline map[*valueBuild][]byte) (out valuePages) {
	var raw []byte
	first, last := "", ""
	flush := func() {
		var n int
		out.data, n = appendBlock(out.data, raw)
		out.firsts, out.lengths = append(out.firsts, first), append(out.lengths, n)
		raw, last = raw[:0], ""
	}
	for _, value := range slices.Sorted(maps.Keys(l.values)) {
		v := l.values[value]
		if len(raw) == 0 {
			first = value
		}
		shared := sharedPrefix(last, value)
		raw = binary.AppendUvarint(raw, uint64(shared))
		raw = appendText(raw, value[shared:])
		raw = binary.AppendUvarint(raw, uint64(v.set))
		raw = binary.AppendUvarint(raw, uint64(len(v.postings)))
		at, out := blocks[v]
		switch {
		case out:
			raw = append(raw, postingsBlock)
			raw = binary.AppendUvarint(raw, uint64(at.offset))
			raw = binary.AppendUvarint(raw, uint64(at.length))
		case inline[v] != nil:
			raw = append(raw, postingsBitmap)
			raw = appendText(raw, string(inline[v]))
		default:
			raw = append(raw, postingsList)
			raw = appendOrdinals(raw, v.postings)
		}
		last = value
		if len(raw) >= valuePageBytes {
			flush()
		}
	}
	if len(raw) > 0 {
		flush()
	}
	return out
}
