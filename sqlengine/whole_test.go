package sqlengine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/google/go-cmp/cmp"
)

// TestWhole: columns that are copied at once have the values that DuckDB writes
// itself, nulls at any place, and of all lengths of a record.
func TestWhole(t *testing.T) {
	tb := newTable(t, Options{})
	for _, n := range []int{0, 1, 7, 8, 9, 63, 64, 65, 2047, 2049} {
		for _, nulls := range []string{"false", "true", "i % 3 = 1", "i % 8 = 7"} {
			t.Run(fmt.Sprint(n, " rows, null where ", nulls), func(t *testing.T) {
				columns := []string{"i", "i::UTINYINT", "i + 0.5::DOUBLE", "DATE '2026-01-01' + i::INTEGER", "repeat(chr(97 + i::INTEGER % 26), i::INTEGER % 20)", "encode(repeat('ü', i::INTEGER % 9))", "i % 2 = 0"}
				var values, texts []string
				for k, c := range columns {
					c = fmt.Sprintf("CASE WHEN NOT (%s) THEN %s END", nulls, c)
					values = append(values, fmt.Sprintf("%s AS c%d", c, k))
					text := fmt.Sprintf("CAST(c%d AS VARCHAR)", k)
					if strings.Contains(c, "encode") {
						text = fmt.Sprintf(`'\x' || lower(hex(c%d))`, k)
					}
					texts = append(texts, text)
				}
				from := fmt.Sprintf("(SELECT %s FROM range(%d) AS r(j), (SELECT 0) AS z(y), LATERAL (SELECT j %% 200 AS i) ORDER BY j)", strings.Join(values, ", "), n)
				got := tb.query(t, "SELECT * FROM "+from)
				want := tb.query(t, "SELECT "+strings.Join(texts, ", ")+" FROM "+from)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-DuckDB's texts +values):\n%s", diff)
				}
			})
		}
	}
}

// TestTextsThatShareMemory: what is short in DuckDB may be too long for Arrow.
func TestTextsThatShareMemory(t *testing.T) {
	tb := newTable(t, Options{})
	if _, err := tb.tryQuery("SELECT s FROM (SELECT repeat('x', 40000000) AS s), range(54)", QueryOptions{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("err %v, want %v", err, ErrTooLarge)
	}
}

// TestRecordsOwnTheirMemory: a record that is held stays what it is, however
// many come after it and are released, and however often it is sliced.
func TestRecordsOwnTheirMemory(t *testing.T) {
	tb := newTable(t, Options{})
	ctx := context.Background()
	const rows = 40_000
	result, err := tb.engine.Query(ctx, fmt.Sprintf("SELECT i, 'host-' || i AS s FROM range(%d) AS r(i) ORDER BY i", rows), QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	check := func(r arrow.RecordBatch, first int64) {
		t.Helper()
		for k := range int(r.NumRows()) {
			want := first + int64(k)
			if i, s := r.Column(0).(*array.Int64).Value(k), r.Column(1).(*array.String).Value(k); i != want || s != fmt.Sprint("host-", want) {
				t.Fatalf("row %d: %d, %q", want, i, s)
			}
		}
	}
	type kept struct {
		record arrow.RecordBatch
		first  int64
	}
	var held []kept
	next := int64(0)
	for n := 0; ; n++ {
		r, err := result.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		check(r, next)
		if n%2 == 0 {
			half := r.NumRows() / 2
			held = append(held, kept{r.NewSlice(half, r.NumRows()), next + half})
		}
		next += r.NumRows()
		r.Release()
	}
	if next != rows {
		t.Fatalf("%d rows", next)
	}
	for _, k := range held {
		check(k.record, k.first)
		k.record.Release()
	}
}
