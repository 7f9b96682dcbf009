package importer

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/ingest"
	"cardinalsin/series"
	"cardinalsin/storage/fault"
	"cardinalsin/txlog"
	"cardinalsin/writer"
)

const openMetricsText = `# HELP http_requests Requests, by "code".
# TYPE http_requests counter
http_requests_total{code="200",value="x"} 17 1700000000.123456789 # {trace_id="abc}d"} 1.5 1700000000.000000001
http_requests_total{code="200",value="x"} -0 1700000001
http_requests_created{code="200",value="x"} 1.6e9 1.7e9
# TYPE temp_celsius gauge
# UNIT temp_celsius celsius
temp_celsius NaN -1.000000001
temp_celsius +Inf 1700000000 # {trace_id="e"} 2
{"üñí.code",host="a b"} 3 1700000000
# EOF
`

const openMetricsRows = `{__name__="http_requests_created", code="200", value="x"} 1700000000000000000 41d7d78400000000
{__name__="http_requests_total", code="200", value="x"} 1700000000123456789 4031000000000000
{__name__="http_requests_total", code="200", value="x"} 1700000001000000000 8000000000000000
{__name__="temp_celsius"} -1000001999 7ff8000000000001
{__name__="temp_celsius"} 1700000000000000000 7ff0000000000000
{__name__="üñí.code", host="a b"} 1700000000000000000 4008000000000000
exemplar {__name__="http_requests_total", code="200", value="x"} {trace_id="abc}d"} 1700000000000000001 1.5
exemplar {__name__="temp_celsius"} {trace_id="e"} 1700000000000000000 2
metadata http_requests type=counter unit= help="Requests, by \"code\"." on 2023-11-14
metadata temp_celsius type=gauge unit=celsius help="" on 2023-11-14
`

// TestText: each text format arrives as it is, and a second run adds no row, no
// file and no version to any table.
func TestText(t *testing.T) {
	for _, c := range []struct {
		name, file, text string
		opts             Options
		want             string
		leftOut          int64
	}{
		{"openmetrics", "a.om", openMetricsText, Options{}, openMetricsRows, 0},
		{"openmetrics by content", "a.txt", openMetricsText, Options{}, openMetricsRows, 0},
		{"prometheus", "a.prom", `# TYPE m counter
# a comment

m{le="1"} 1 1700000000123
m 2 1
`, Options{Format: Prometheus}, `{__name__="m"} 1000000 4000000000000000
{__name__="m", le="1"} 1700000000123000000 3ff0000000000000
metadata m type=counter unit= help="" on 2023-11-14
`, 0},
		{"prometheus without an end of line", "a.prom", "m 2 1700000000000", Options{}, "{__name__=\"m\"} 1700000000000000000 4000000000000000\n", 0},
		{"time for samples without one", "a.prom", "m 2\n", Options{Time: time.Unix(1_600_000_000, 7)}, "{__name__=\"m\"} 1600000000000000007 4000000000000000\n", 0},
		{"influx", "a.lp", "cpu,host=a usage=1.5,up=true,name=\"text\" 1700000000123456789\ncpu,host=a usage=2 1\n", Options{}, `{__name__="cpu_up", host="a"} 1700000000123456789 3ff0000000000000
{__name__="cpu_usage", host="a"} 0001 4000000000000000
{__name__="cpu_usage", host="a"} 1700000000123456789 3ff8000000000000
`, 1},
		{"influx in seconds", "a.txt", "cpu v=1i 1700000000\n", Options{Format: Influx, Unit: time.Second}, "{__name__=\"cpu_v\"} 1700000000000000000 3ff0000000000000\n", 0},
		{"csv", "a.csv", "\ufefftimestamp,metric_name,value,host,_value,nanos,start_time_unix_nano,series_id,date,shard,histogram,labels_overflow\n" +
			"2023-11-14T22:13:20.123456Z,m,1,\"a,\nb\",v,789,5,1,2023-11-14,1,,\n" +
			"2023-11-14 22:13:20.5+00,m,NaN,,,,,,,,,\n2023-11-14 23:13:21+01:00,m,-0,,,,,,,,,\n", Options{}, `{__name__="m"} 1700000000500000000 7ff8000000000001
{__name__="m"} 1700000001000000000 8000000000000000
{__name__="m", host="a,\nb", value="v"} 1700000000123456789 3ff0000000000000 start 5
`, 0},
		{"csv in milliseconds", "a.csv", "timestamp,metric_name,value\n1700000000001,m,1\n-1,m,2\n", Options{Unit: time.Millisecond}, "{__name__=\"m\"} -1000000 4000000000000000\n{__name__=\"m\"} 1700000000001000000 3ff0000000000000\n", 0},
		{"csv in nanoseconds", "a.csv", "timestamp,metric_name,value\n-1,m,1\n", Options{Unit: time.Nanosecond}, "{__name__=\"m\"} -1999 3ff0000000000000\n", 0},
		{"nothing", "a.om", "# EOF\n", Options{}, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			tables := newTables(t)
			path := write1(t, c.file, c.text)
			results, err := Run(t.Context(), tables, path, c.opts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, tables.print()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			r := results[0]
			if n := int64(strings.Count(c.want, "\n")); r.Rows != n || r.Samples+r.Exemplars+r.Metadata != n || r.LeftOut != c.leftOut {
				t.Errorf("%+v; the tables have %d rows", r, n)
			}
			before := tables.versions()
			again, err := Run(t.Context(), tables, path, c.opts)
			if err != nil {
				t.Fatal(err)
			}
			r.Rows, r.Files = 0, 0
			if diff := cmp.Diff(r, again[0]); diff != "" || tables.versions() != before {
				t.Errorf("second run: versions %v after %v (-want +got)\n%s", tables.versions(), before, diff)
			}
		})
	}
}

// TestMalformed: of a part with an error nothing is stored, and the error says
// where it is.
func TestMalformed(t *testing.T) {
	for _, c := range []struct {
		name, file, text string
		opts             Options
		is               error
		says             string
	}{
		{"om: no end", "a.om", "m 1 1\n", Options{}, ingest.ErrMalformed, "line 2:"},
		{"om: more after the end", "a.om", "m 1 1\n# EOF\nm 1 2\n", Options{}, ingest.ErrMalformed, "line "},
		{"om: cut line", "a.om", "m 1 1\nm{a=\"b", Options{}, ingest.ErrMalformed, "line 2:"},
		{"om: no value", "a.om", "m 1 1\nn\n# EOF\n", Options{}, ingest.ErrMalformed, "line 2:"},
		{"om: no timestamp", "a.om", "m 1 1\nm 1\n# EOF\n", Options{}, ingest.ErrMalformed, "line 2:"},
		{"om: timestamp of picoseconds", "a.om", "m 1 1.0000000001\n# EOF\n", Options{}, writer.ErrInvalidSample, "line 1:"},
		{"om: timestamp in the year 10000", "a.om", "# TYPE m gauge\nm 1 253402300800\n# EOF\n", Options{}, writer.ErrInvalidSample, "line 2:"},
		{"om: duplicate label", "a.om", "m 1 1\nm{a=\"1\",a=\"2\"} 1 1\n# EOF\n", Options{}, series.ErrDuplicateLabel, "line 2:"},
		{"om: bad exemplar", "a.om", "# TYPE m counter\nm_total 1 1 # {a=\"b\"} x\n# EOF\n", Options{}, ingest.ErrMalformed, "line 2:"},
		{"om: unit that does not fit", "a.om", "# UNIT m seconds\nm 1 1\n# EOF\n", Options{}, ingest.ErrMalformed, "line 1:"},
		{"om: not UTF-8", "a.om", "m{a=\"\xff\"} 1 1\n# EOF\n", Options{}, ingest.ErrMalformed, "line 1:"},
		{"prom: noise", "a.prom", "# c\n\nm 1 1700000000000\n\n}{\n", Options{}, ingest.ErrMalformed, "line 5:"},
		{"prom: noise after comments", "a.prom", "# c\n\n# d\n \n}{\n", Options{}, ingest.ErrMalformed, "line 5:"},
		{"prom: seconds", "a.prom", "m 1 1700000000\n", Options{}, ErrFormat, "line 1:"},
		{"prom: no timestamp", "a.prom", "m 1 1700000000000\nm 1\n", Options{}, ingest.ErrMalformed, "line 2:"},
		{"influx: noise", "a.lp", "cpu v=1 1\ncpu v=x 2\n", Options{}, ingest.ErrMalformed, "line 2"},
		{"influx: no timestamp", "a.lp", "cpu v=1 1\ncpu v=1\n", Options{}, ingest.ErrMalformed, "timestamp"},
		{"influx: no field", "a.lp", "cpu,host=a 1\n", Options{}, ingest.ErrMalformed, "line 1"},
		{"csv: empty", "a.csv", "", Options{}, ingest.ErrMalformed, "line 1:"},
		{"csv: no value", "a.csv", "timestamp,metric_name\n", Options{}, ingest.ErrMalformed, `"value"`},
		{"csv: column twice", "a.csv", "timestamp,metric_name,value,a,a\n", Options{}, ingest.ErrMalformed, "line 1:"},
		{"csv: no label's column", "a.csv", "timestamp,metric_name,value,_a\n", Options{}, ingest.ErrMalformed, "line 1:"},
		{"csv: cells missing", "a.csv", "timestamp,metric_name,value\n2023-11-14T22:13:20Z,m,1\n\n2023-11-14T22:13:20Z,m\n", Options{}, ingest.ErrMalformed, "line 4:"},
		{"csv: value", "a.csv", "timestamp,metric_name,value\n2023-11-14T22:13:20Z,m,one\n", Options{}, ingest.ErrMalformed, "line 2:"},
		{"csv: no name", "a.csv", "timestamp,metric_name,value\n2023-11-14T22:13:20Z,,1\n", Options{}, series.ErrNoMetricName, "line 2:"},
		{"csv: number without a unit", "a.csv", "timestamp,metric_name,value\n1700000000,m,1\n", Options{}, ingest.ErrMalformed, "line 2:"},
		{"csv: number that overflows", "a.csv", "timestamp,metric_name,value\n9223372036854775807,m,1\n", Options{Unit: time.Hour}, writer.ErrInvalidSample, "line 2:"},
		{"csv: quote", "a.csv", "timestamp,metric_name,value\n\"2023,m,1\n", Options{}, ingest.ErrMalformed, "line "},
		{"csv: histogram", "a.csv", "timestamp,metric_name,value,histogram\n2023-11-14T22:13:20Z,m,1,x\n", Options{}, ingest.ErrUnsupported, "line 2:"},
		{"csv: nanos", "a.csv", "timestamp,metric_name,value,nanos\n2023-11-14T22:13:20Z,m,1,1000\n", Options{}, writer.ErrInvalidSample, "line 2:"},
		{"csv: not UTF-8", "a.csv", "timestamp,metric_name,value\n2023-11-14T22:13:20Z,\xff,1\n", Options{}, series.ErrInvalidLabel, "line 2:"},
		{"csv: huge cell", "a.csv", "timestamp,metric_name,value\n\"" + strings.Repeat("x", 18<<20), Options{}, ingest.ErrTooLarge, "after line"},
		{"om: huge line", "a.om", "m{a=\"" + strings.Repeat("x", 18<<20), Options{}, ingest.ErrTooLarge, "line 1:"},
		{"parquet: noise", "a.parquet", "PAR1 and no more", Options{}, ingest.ErrMalformed, ""},
		{"unknown", "a.txt", "m 1 1\n", Options{}, ErrFormat, "name"},
		{"file of another format", "a.om", "# EOF\n", Options{Format: TSDB}, ErrFormat, "tsdb"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tables := newTables(t)
			_, err := Run(t.Context(), tables, write1(t, c.file, c.text), c.opts)
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%.500v; want %v and %q", err, c.is, c.says)
			}
			if got := tables.print(); got != "" {
				t.Errorf("stored:\n%s", got)
			}
		})
	}
}

// longText is OpenMetrics of several blocks and parts, with a line in the
// middle that changes what comes after its family.
func longText(lines int) string {
	var b bytes.Buffer
	for i := range lines {
		if i%1000 == 0 {
			fmt.Fprintf(&b, "# TYPE m%d summary\n", i/1000)
		}
		// Only in a summary is quantile written as a float: the type must
		// survive the end of a block.
		fmt.Fprintf(&b, "m%d{quantile=\"1\",line=\"%d\",pad=\"%s\"} %d %d.5\n", i/1000, i, strings.Repeat("x", 50), i, 1_700_000_000+i)
	}
	return b.String() + "# EOF\n"
}

// TestBlocks: where blocks and parts end does not show in what is stored.
func TestBlocks(t *testing.T) {
	const lines = 40_000
	text := longText(lines)
	if len(text) < 3*blockBytes {
		t.Fatalf("only %d bytes", len(text))
	}
	tables := newTables(t)
	results, err := Run(t.Context(), tables, write1(t, "a.om", text), Options{FlushBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[float64]bool{}
	for _, s := range tables.rows(Samples) {
		if s.Labels.Get("quantile") != "1.0" {
			t.Fatalf("%s: the type of its family was forgotten", s.Labels)
		}
		for _, p := range s.Samples {
			i := int(p.Value)
			if want := series.Timestamp(1_700_000_000+i)*1_000_000 + 500_000; p.Time != want || s.Labels.Get("line") != fmt.Sprint(i) {
				t.Fatalf("sample %d at %d in %s", i, p.Time, s.Labels)
			}
			seen[p.Value] = true
		}
	}
	if len(seen) != lines || results[0].Samples != lines || results[0].Rows != lines+lines/1000 {
		t.Errorf("%d of %d samples, %+v", len(seen), lines, results[0])
	}
	if v := tables.version(Samples); v < 4 {
		t.Errorf("version %d: it was meant to take several commits", v)
	}
}

// TestMalformedLater: the parts before the one with an error stay, that one is
// not stored, and the line is counted through all blocks.
func TestMalformedLater(t *testing.T) {
	text := longText(40_000)
	lines := strings.SplitAfter(text, "\n")
	const bad = 35_000 // of 40,041 lines
	lines[bad-1] = "m{ 1\n"
	tables := newTables(t)
	_, err := Run(t.Context(), tables, write1(t, "a.om", strings.Join(lines, "")), Options{FlushBytes: 1})
	if !errors.Is(err, ingest.ErrMalformed) || !strings.Contains(err.Error(), fmt.Sprintf("line %d:", bad)) {
		t.Errorf("%v; want line %d", err, bad)
	}
	n := 0
	for _, s := range tables.rows(Samples) {
		n += len(s.Samples)
	}
	// 34,965 samples come before it: four parts of 8,192. How many of them are
	// flushed is the writer's to choose.
	if n == 0 || n%partSamples != 0 || n > 4*partSamples {
		t.Errorf("%d samples stored", n)
	}
}

// TestResume: an import that is struck at any request to the store, by any kind
// of fault, is whole once it has been run again, and every row lies in one file.
func TestResume(t *testing.T) {
	const lines = 60 // three parts, of a commit each
	opts := Options{FlushBytes: 1, partSamples: 20}
	path := write1(t, "a.om", longText(lines))
	want := ""
	for _, mode := range fault.Modes {
		for call := 0; ; call++ {
			tables := newTables(t)
			inner := tables.store
			faulty := fault.New(inner)
			faulty.FailAt(call, mode)
			tables.store = faulty
			_, firstErr := Run(t.Context(), tables, path, opts)
			if faulty.Fired() == 0 {
				if firstErr != nil {
					t.Fatal(firstErr)
				}
				if call < 10 {
					t.Errorf("%s: only %d calls", mode, call)
				}
				break
			}
			faulty.Clear()
			faulty.Land(t.Context())
			tables.store, tables.logs = inner, map[Kind]*txlog.Log{}
			if _, err := Run(t.Context(), tables, path, opts); err != nil {
				t.Fatalf("%s at call %d (%v), run again: %v", mode, call, firstErr, err)
			}
			if n := tables.liveRows(); n != lines {
				t.Errorf("%s at call %d (%v): %d rows in all files, want %d", mode, call, firstErr, n, lines)
			}
			if got := tables.print(); want == "" {
				want = got
			} else if got != want {
				t.Errorf("%s at call %d (%v): other content", mode, call, firstErr)
			}
		}
	}
}

// TestSeconds: timestamps in text are exact.
func TestSeconds(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1e9, "-1.5": -15e8, "1700000000.123456789": 1700000000123456789, "1.7e9": 17e17, "1e-9": 1, "0.000000001": 1, "1.10": 11e8,
	} {
		if got, err := seconds(text); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "NaN", "Inf", "1e400000000", "1e-400000000", "1e11", "0.0000000001", "1/3", strings.Repeat("0", 100)} {
		if got, err := seconds(text); !errors.Is(err, writer.ErrInvalidSample) {
			t.Errorf("%.20s: %d, %v", text, got, err)
		}
	}
	if us, ns := split(math.MinInt64); us != -9223372036854776 || ns != 192 {
		t.Errorf("split: %d %d", us, ns)
	}
}
