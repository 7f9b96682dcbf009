package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// atOnce is a source that may be read concurrently.
type atOnce struct {
	mu sync.Mutex
	traced
}

func (s *atOnce) ReadRange(ctx context.Context, offset, length int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.traced.ReadRange(ctx, offset, length)
}

// excerptOf makes an excerpt of a file that is read through src.
func excerptOf(src Source, size int64, columns []string, groups []int) ([]byte, error) {
	ctx := context.Background()
	f, err := Open(ctx, src, size)
	if err != nil {
		return nil, err
	}
	e, err := f.Excerpt(ctx, func(name string) bool { return slices.Contains(columns, name) }, groups)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := e.Write(ctx, &out); err != nil {
		return nil, err
	}
	if int64(out.Len()) != e.Size() {
		return nil, fmt.Errorf("%d bytes, and Size is %d", out.Len(), e.Size())
	}
	return out.Bytes(), nil
}

// foreignRows reads columns and row groups of a Parquet file by arrow-go, as
// text; nil are all.
func foreignRows(t tester, data []byte, columns []string, groups []int) (names []string, rows [][]string, each []int64) {
	t.Helper()
	raw, err := file.NewParquetReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	r, err := pqarrow.NewFileReader(raw, pqarrow.ArrowReadProperties{}, memory.DefaultAllocator)
	if err != nil {
		t.Fatal(err)
	}
	leaves := []int{}
	root := raw.MetaData().Schema
	for i := range root.NumColumns() {
		if name := root.Column(i).ColumnPath()[0]; columns == nil || slices.Contains(columns, name) {
			leaves = append(leaves, i)
		}
	}
	if groups == nil {
		for i := range raw.NumRowGroups() {
			groups = append(groups, i)
		}
	}
	var sum int64
	for i := range raw.NumRowGroups() {
		sum += raw.MetaData().RowGroup(i).NumRows()
	}
	if sum != raw.NumRows() {
		t.Fatal(fmt.Errorf("row groups of %d rows in a file of %d", sum, raw.NumRows()))
	}
	for _, g := range groups {
		each = append(each, raw.MetaData().RowGroup(g).NumRows())
	}
	table, err := r.ReadRowGroups(context.Background(), leaves, groups)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Release()
	for i := range int(table.NumCols()) {
		names = append(names, table.Column(i).Name())
		row := 0
		for _, part := range table.Column(i).Data().Chunks() {
			for k := range part.Len() {
				if row == len(rows) {
					rows = append(rows, nil)
				}
				rows[row] = append(rows[row], part.ValueStr(k))
				row++
			}
		}
	}
	return names, rows, each
}

type tester interface {
	Helper()
	Fatal(args ...any)
}

// TestExcerpt: another engine finds in an excerpt the columns and row groups
// that were asked for, and nothing else.
func TestExcerpt(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		in := genSeries(rt)
		data := encode(t, genOptions(rt), in).Data
		f := reopen(t, data)
		all, _, _ := foreignRows(rt, data, nil, nil)
		columns := []string{}
		for _, name := range all {
			if rapid.IntRange(0, 2).Draw(rt, "wanted") == 0 {
				columns = append(columns, name)
			}
		}
		var groups []int
		for i := range f.RowGroups() {
			if rapid.Bool().Draw(rt, "group") {
				groups = append(groups, i)
			}
		}
		if len(groups) == 0 {
			groups = []int{rapid.IntRange(0, len(f.RowGroups())-1).Draw(rt, "only group")}
		}
		got, err := excerptOf(BytesSource("f", data), int64(len(data)), append(slices.Clone(columns), "no such column"), groups)
		if err != nil {
			rt.Fatal(err)
		}
		if len(columns) == 0 {
			columns = []string{ColumnMetricName}
		}
		names, rows, each := foreignRows(rt, got, nil, nil)
		wantNames, wantRows, wantEach := foreignRows(rt, data, columns, groups)
		if d := cmp.Diff(wantNames, names); d != "" {
			rt.Fatalf("columns: (-want +got)\n%s", d)
		}
		if d := cmp.Diff(wantRows, rows); d != "" {
			rt.Fatalf("rows: (-want +got)\n%s", d)
		}
		if d := cmp.Diff(wantEach, each); d != "" {
			rt.Fatalf("row groups: (-want +got)\n%s", d)
		}
	})
}

// TestExcerptReads: of a large file only the columns of an excerpt are read,
// each by its sum.
func TestExcerptReads(t *testing.T) {
	data := encode(t, Options{RowGroupRows: 400_000}, tsbs(400, 3000)).Data
	size := int64(len(data))
	groups := reopen(t, data).RowGroups()
	if len(groups) < 3 {
		t.Fatalf("%d row groups", len(groups))
	}
	some := []int{0, len(groups) - 1}
	src := &atOnce{traced: traced{Source: BytesSource("f", data)}}
	out, err := excerptOf(src, size, []string{ColumnTimestamp}, some)
	if err != nil {
		t.Fatal(err)
	}
	const footers = 2 * footerGuess // it is read by Open, and again
	if src.bytes > footers+int64(len(out)) {
		t.Errorf("%d bytes are read for an excerpt of %d out of %d: %v", src.bytes, len(out), size, src.reads)
	}
	f := reopen(t, data)
	column := f.groups[some[1]].columns[f.byName[ColumnTimestamp]]
	for at, corrupt := range map[int64]bool{column.offset: true, column.end() - 1: true, column.end(): false, column.offset - 1: false} {
		bad := slices.Clone(data)
		bad[at] ^= 1
		if _, err := excerptOf(BytesSource("f", bad), size, []string{ColumnTimestamp}, some); errors.Is(err, ErrCorrupt) != corrupt {
			t.Errorf("byte %d of a column at %d to %d is damaged: %v", at, column.offset, column.end(), err)
		}
	}
	failed := errors.New("failed")
	for n := range len(src.reads) {
		_, err := excerptOf(&atOnce{traced: traced{Source: BytesSource("f", data), fail: n, err: failed}}, size, []string{ColumnTimestamp}, some)
		if !errors.Is(err, failed) {
			t.Errorf("request %d fails: %v", n, err)
		}
	}
	for _, groups := range [][]int{nil, {-1}, {len(groups)}, {1, 1}, {1, 0}} {
		if _, err := excerptOf(BytesSource("f", data), size, nil, groups); !errors.Is(err, ErrInvalidInput) {
			t.Errorf("row groups %v: %v", groups, err)
		}
	}
}
