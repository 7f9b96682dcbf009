package sqlengine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	promql "github.com/prometheus/prometheus/promql/parser"

	"cardinalsin/action"
	"cardinalsin/planner"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// TestGolden runs the scripts under testdata/sql.
//
//	flush                  writes a file; lines are: metric{label="value"} value@second …
//	head                   replaces the head by the same
//	sql [format] [version] prints a result, or the condition and its message
//	explain                prints what is read and skipped
func TestGolden(t *testing.T) {
	datadriven.Walk(t, "testdata/sql", func(t *testing.T, path string) {
		tb := newTable(t, Options{Threads: 1})
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			switch d.Cmd {
			case "flush":
				fmt.Fprintf(&out, "version %d\n", tb.flush(t, parseRows(t, d.Input)...))
			case "head":
				tb.head = newHead(parseRows(t, d.Input)...)
			case "sql":
				format, version := string(FormatCSV), int64(-1)
				d.MaybeScanArgs(t, "format", &format)
				d.MaybeScanArgs(t, "version", &version)
				var opts QueryOptions
				if version >= 0 {
					opts.At = txlog.AtVersion(action.Version(version))
				}
				text, err := tb.text(d.Input, Format(format), opts)
				if err != nil {
					return condition(err)
				}
				return text
			case "explain":
				x, err := tb.engine.Explain(context.Background(), d.Input, QueryOptions{})
				if err != nil {
					return condition(err)
				}
				for _, s := range x.Tables {
					fmt.Fprintf(&out, "%s version %d: %d files", s.Table, s.Version, s.Files)
					if s.Head {
						out.WriteString(" and the head")
					}
					for _, r := range planner.Reasons {
						if n := s.Skipped[r]; n > 0 {
							fmt.Fprintf(&out, ", %d skipped by %s", n, r)
						}
					}
					if s.Compared > 0 {
						fmt.Fprintf(&out, ", %d compared, duplicates: %v", s.Compared, s.Duplicates)
					}
					out.WriteByte('\n')
				}
				if x.Plan == "" {
					t.Error("no plan")
				}
			default:
				d.Fatalf(t, "unknown command %s", d.Cmd)
			}
			return out.String()
		})
	})
}

// text returns a whole result in one format.
func (tb *table) text(sql string, f Format, opts QueryOptions) (string, error) {
	ctx := context.Background()
	rows, err := tb.engine.Query(ctx, sql, opts)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var out bytes.Buffer
	if _, err := f.Write(ctx, &out, rows); err != nil {
		return "", err
	}
	return out.String(), nil
}

// condition prints an error: what a caller can branch on, then the message.
func condition(err error) string {
	name := "error"
	for n, e := range map[string]error{
		"ErrSyntax": ErrSyntax, "ErrNotAllowed": ErrNotAllowed, "ErrExecution": ErrExecution, "ErrTooLarge": ErrTooLarge,
		"ErrVersionNotFound": txlog.ErrVersionNotFound, "ErrVersionVacuumed": txlog.ErrVersionVacuumed,
	} {
		if errors.Is(err, e) {
			name = n
		}
	}
	return name + ": " + err.Error() + "\n"
}

// parseRows reads lines of metric{label="value"} value@second …
func parseRows(t *testing.T, input string) []series.Series {
	t.Helper()
	var out []series.Series
	for line := range strings.Lines(input) {
		at := strings.LastIndexByte(line, '}') + 1
		l, err := promql.NewParser(promql.Options{}).ParseMetric(line[:at])
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		s := series.Series{Labels: l}
		for _, f := range strings.Fields(line[at:]) {
			v, second, _ := strings.Cut(f, "@")
			value, err1 := strconv.ParseFloat(v, 64)
			offset, err2 := strconv.ParseFloat(second, 64)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			s.Samples = append(s.Samples, series.Sample{Time: day + series.Timestamp(offset*1e6), Value: value})
		}
		slices.SortFunc(s.Samples, series.Sample.Compare)
		out = append(out, s)
	}
	return out
}
