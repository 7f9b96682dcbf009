package reader

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"cardinalsin/lease"
	"cardinalsin/series"
	"cardinalsin/storage/fault"
	"cardinalsin/storage/meter"
	"cardinalsin/txlog"
)

// TestTraceGolden prints the requests of queries, in order:
//
//	write path at=µs [k=value]     another process commits a file
//	query [version=n] [times=n] [k=value] [labels]
//	renew                          a third of the pin's TTL passes
//
// Neighbours of one kind are sorted, since they may run at the same time.
func TestTraceGolden(t *testing.T) {
	datadriven.Walk(t, "testdata/trace", func(t *testing.T, path string) {
		e := newEnv(t, "k")
		var trace meter.Trace
		e.store = fault.New(meter.New(e.inner, meter.Options{OnCall: trace.Record}))
		r := e.start(t, Options{})
		trace.Take()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "write":
				var at int64
				k := "a"
				d.ScanArgs(t, "at", &at)
				d.MaybeScanArgs(t, "k", &k)
				return fmt.Sprintf("version %d\n", e.write(t, d.CmdArgs[0].Key, one(1, lbl("m", "k", k), at)))
			case "query":
				runQuery(t, r, d)
			case "renew":
				e.clock.advance(lease.TTL / 3)
				if err := e.pins.Renew(context.Background()); err != nil {
					t.Fatal(err)
				}
			default:
				t.Fatalf("unknown command %q", d.Cmd)
			}
			return tidy(trace.Take())
		})
	})
}

func runQuery(t *testing.T, r *Reader, d *datadriven.TestData) {
	ctx := context.Background()
	at, times, sel := txlog.Latest(), 1, everything
	if d.HasArg("version") {
		var n int64
		d.ScanArgs(t, "version", &n)
		at = txlog.AtVersion(version(n))
	}
	d.MaybeScanArgs(t, "times", &times)
	if d.HasArg("k") {
		var k string
		d.ScanArgs(t, "k", &k)
		sel.Matchers = []*series.Matcher{equal("k", k)}
	}
	for range times {
		v, err := r.At(ctx, at)
		if err != nil {
			t.Fatal(err)
		}
		if d.HasArg("labels") {
			_, err = v.LabelNames(ctx, sel, 0)
		} else {
			_, err = collect(v.Select(ctx, sel))
		}
		v.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
}

var pinName = regexp.MustCompile(`pins/[-0-9a-f]{36}`)

// tidy names pins alike, sorts neighbouring successful requests of one kind,
// which may run at the same time, and counts equal lines of a long trace.
func tidy(trace string) string {
	if trace == "" {
		return ""
	}
	lines := strings.Split(strings.TrimSuffix(pinName.ReplaceAllString(trace, "pins/<uuid>"), "\n"), "\n")
	kind := func(line string) string {
		op, rest, _ := strings.Cut(line, " ")
		if !strings.HasSuffix(rest, " ok") {
			return ""
		}
		return op
	}
	for i := 0; i < len(lines); {
		j := i + 1
		for j < len(lines) && kind(lines[i]) != "" && kind(lines[j]) == kind(lines[i]) {
			j++
		}
		slices.Sort(lines[i:j])
		i = j
	}
	if len(lines) <= 20 {
		return strings.Join(lines, "\n") + "\n"
	}
	count := map[string]int{}
	for _, l := range lines {
		count[l]++
	}
	var out strings.Builder
	for _, l := range lines {
		if n := count[l]; n > 0 {
			out.WriteString(strconv.Itoa(n) + " × " + l + "\n")
			count[l] = 0
		}
	}
	return out.String()
}
