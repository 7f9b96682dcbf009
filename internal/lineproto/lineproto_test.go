package lineproto

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/ingest"
	"cardinalsin/series"
	"cardinalsin/writer"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 678_901_234, time.UTC)

func clock() time.Time { return now }

// print is a line a sample: labels, nanoseconds, value's bits.
func print(b series.Batch) string {
	var out strings.Builder
	for _, s := range b {
		for _, p := range s.Samples {
			fmt.Fprintf(&out, "%s %d+%d %x\n", s.Labels, p.Time, p.Nanos, math.Float64bits(p.Value))
		}
	}
	return out.String()
}

func TestNext(t *testing.T) {
	for name, c := range map[string]struct {
		opts  Options
		in    string
		want  string
		stats Stats
	}{
		"float":         {in: "cpu,host=a usage=0.5 1", want: `{__name__="cpu_usage", host="a"} 0+1 3fe0000000000000`},
		"no tags":       {in: "cpu usage=1 1000", want: `{__name__="cpu_usage"} 1+0 3ff0000000000000`},
		"minus zero":    {in: "cpu usage=-0 1000", want: `{__name__="cpu_usage"} 1+0 8000000000000000`},
		"integer":       {in: "cpu usage=-3i 1000", want: `{__name__="cpu_usage"} 1+0 c008000000000000`},
		"unsigned":      {in: "cpu usage=3u 1000", want: `{__name__="cpu_usage"} 1+0 4008000000000000`},
		"true":          {in: "cpu up=t 1000", want: `{__name__="cpu_up"} 1+0 3ff0000000000000`},
		"false":         {in: "cpu up=FALSE 1000", want: `{__name__="cpu_up"} 1+0 0`},
		"text left out": {in: "cpu v=1,s=\"a b\",w=2 1000", want: "{__name__=\"cpu_v\"} 1+0 3ff0000000000000\n{__name__=\"cpu_w\"} 1+0 4000000000000000", stats: Stats{Strings: 1, FirstString: `line 1, field "s"`}},
		"only text": {
			in: "# note\n\ncpu s=\"1\n2\" 1\ncpu s=\"3\" 2\ncpu v=1 3000", want: `{__name__="cpu_v"} 3+0 3ff0000000000000`,
			stats: Stats{Strings: 2, FirstString: `line 4, field "s"`},
		},
		"rounded":         {in: "m a=9007199254740993i,b=9007199254740992i,c=18446744073709551615u,d=-9223372036854775808i,e=9223372036854775807i 0", want: "{__name__=\"m_a\"} 0+0 4340000000000000\n{__name__=\"m_b\"} 0+0 4340000000000000\n{__name__=\"m_c\"} 0+0 43f0000000000000\n{__name__=\"m_d\"} 0+0 c3e0000000000000\n{__name__=\"m_e\"} 0+0 43e0000000000000", stats: Stats{Rounded: 3}},
		"names are kept":  {in: `cpu\ load\,x,ta\=g=va\ lue,straße=ß us\,age=1 0`, want: `{__name__="cpu load,x_us,age", "straße"="ß", "ta=g"="va lue"} 0+0 3ff0000000000000`},
		"negative time":   {in: "cpu v=1 -1", want: `{__name__="cpu_v"} -1+999 3ff0000000000000`},
		"earliest":        {in: "cpu v=1 -9223372036854775808", want: `{__name__="cpu_v"} -9223372036854776+192 3ff0000000000000`},
		"latest":          {in: "cpu v=1 9223372036854775807", want: `{__name__="cpu_v"} 9223372036854775+807 3ff0000000000000`},
		"no time":         {in: "cpu v=1", want: `{__name__="cpu_v"} 1767323045678901+234 3ff0000000000000`},
		"no time, s":      {opts: Options{Unit: time.Second}, in: "cpu v=1", want: `{__name__="cpu_v"} 1767323045000000+0 3ff0000000000000`},
		"µs":              {opts: Options{Unit: time.Microsecond}, in: "cpu v=1 7", want: `{__name__="cpu_v"} 7+0 3ff0000000000000`},
		"ms":              {opts: Options{Unit: time.Millisecond}, in: "cpu v=1 -7", want: `{__name__="cpu_v"} -7000+0 3ff0000000000000`},
		"h":               {opts: Options{Unit: time.Hour}, in: "cpu v=1 2", want: `{__name__="cpu_v"} 7200000000+0 3ff0000000000000`},
		"year 9999":       {opts: Options{Unit: time.Second}, in: "cpu v=1 253402300799", want: `{__name__="cpu_v"} 253402300799000000+0 3ff0000000000000`},
		"database":        {opts: Options{Database: "x"}, in: "cpu,a=b v=1 0", want: `{__name__="cpu_v", a="b", db="x"} 0+0 3ff0000000000000`},
		"database is tag": {opts: Options{Database: "x"}, in: "cpu,db=y v=1 0", want: `{__name__="cpu_v", db="y"} 0+0 3ff0000000000000`},
		"one series":      {in: "cpu,a=1,b=2 v=1 0\ncpu,b=2,a=1 v=2 1\r\ncpu,a=1,b=3 v=3 2\ncpu,a=1,b=2 v=4 0", want: "{__name__=\"cpu_v\", a=\"1\", b=\"2\"} 0+0 3ff0000000000000\n{__name__=\"cpu_v\", a=\"1\", b=\"2\"} 0+0 4010000000000000\n{__name__=\"cpu_v\", a=\"1\", b=\"3\"} 0+2 4008000000000000\n{__name__=\"cpu_v\", a=\"1\", b=\"2\"} 0+1 4000000000000000"},
		"nothing":         {},
		"comments":        {in: "# a\n# b"},
	} {
		t.Run(name, func(t *testing.T) {
			c.opts.Now = clock
			r := NewReader(strings.NewReader(c.in), c.opts)
			var got string
			for {
				b, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got += print(b)
			}
			if c.want != "" {
				c.want += "\n"
			}
			if d := cmp.Diff(sorted(c.want), sorted(got)); d != "" {
				t.Errorf("samples, -want +got:\n%s", d)
			}
			if d := cmp.Diff(c.stats, r.Stats()); d != "" {
				t.Errorf("stats, -want +got:\n%s", d)
			}
		})
	}
}

func sorted(s string) map[string]int {
	out := map[string]int{}
	for _, l := range strings.Split(s, "\n") {
		out[l]++
	}
	return out
}

func TestMalformed(t *testing.T) {
	long := strings.Repeat("x", maxLabelSetBytes)
	for name, c := range map[string]struct {
		in   string
		opts Options
		want error
		line string
	}{
		"no field":            {in: "ok v=1\ncpu\n", want: ingest.ErrMalformed, line: "line 2"},
		"no value":            {in: "cpu v=\n", want: ingest.ErrMalformed, line: "line 1"},
		"no measurement":      {in: ",a=b v=1", want: ingest.ErrMalformed},
		"empty tag name":      {in: "cpu,=b v=1", want: ingest.ErrMalformed},
		"empty tag value":     {in: "cpu,a= v=1", want: ingest.ErrMalformed},
		"duplicate tag":       {in: "ok v=1\n\n# c\ncpu,a=1,b=2,a=1 v=1", want: series.ErrDuplicateLabel, line: "line 4"},
		"tag __name__":        {in: "cpu,__name__=1 v=1", want: series.ErrInvalidLabel},
		"no number":           {in: "cpu v=nan", want: ingest.ErrMalformed},
		"infinite":            {in: "cpu v=1e400", want: ingest.ErrMalformed},
		"integer too large":   {in: "cpu v=9223372036854775808i", want: ingest.ErrMalformed},
		"negative unsigned":   {in: "cpu v=-1u", want: ingest.ErrMalformed},
		"open string":         {in: "cpu v=\"a", want: ingest.ErrMalformed},
		"not UTF-8":           {in: "cpu,a=\xff v=1", want: ingest.ErrMalformed},
		"field not UTF-8":     {in: "cpu v\xc3=1", want: ingest.ErrMalformed},
		"zero byte":           {in: "cpu\x00 v=1", want: ingest.ErrMalformed},
		"time no number":      {in: "cpu v=1 soon", want: ingest.ErrMalformed},
		"time of two minuses": {in: "a v=1 1\ncpu v=1 --1", want: ingest.ErrMalformed, line: "line 2"},
		"time too large":      {in: "cpu v=1 9223372036854775808", want: ingest.ErrMalformed},
		"time past 9999":      {in: "cpu v=1 253402300800", opts: Options{Unit: time.Second}, want: writer.ErrInvalidSample},
		"time overflows":      {in: "cpu v=1 9223372036854775807", opts: Options{Unit: time.Hour}, want: writer.ErrInvalidSample},
		"time before year 1":  {in: "cpu v=1 -62135596801", opts: Options{Unit: time.Second}, want: writer.ErrInvalidSample},
		"long tag":            {in: "cpu,a=" + long + " v=1", want: series.ErrInvalidLabel},
		"long field":          {in: "cpu " + long + "=1", want: series.ErrInvalidLabel},
		"long line":           {in: "ok v=1\ncpu v=\"" + strings.Repeat("x", maxLineBytes), want: ingest.ErrTooLarge, line: "line 2"},
		"many fields":         {in: "cpu " + strings.Repeat("v=1,", 100) + "w=1", opts: Options{MaxSamples: 100}, want: ingest.ErrTooLarge},
		"much label text":     {in: "cpu,a=" + long[:1000] + " a=1,b=1,c=1", opts: Options{MaxLabelBytes: 3000}, want: ingest.ErrTooLarge},
		"binary":              {in: "\x1f\x8b\x08\x00\x00", want: ingest.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(strings.NewReader(c.in), c.opts)
			b, err := r.Next()
			if !errors.Is(err, c.want) || b != nil {
				t.Fatalf("%d series and error %v, want %v", len(b), err, c.want)
			}
			if !strings.HasPrefix(err.Error(), c.line) {
				t.Errorf("%q does not name %s", err, c.line)
			}
			if _, again := r.Next(); !errors.Is(again, err) {
				t.Errorf("the next call says %v, want the same error", again)
			}
		})
	}
}

// TestBatches: what is read in small batches, from an input that gives a byte
// at a time, is what is read at once.
func TestBatches(t *testing.T) {
	var in strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&in, "cpu,host=h%d a=%d,b=%di,c=\"x\" %d\r\n", i%10, i, i, i)
	}
	read := func(r io.Reader, o Options) (samples map[string]int, batches int) {
		samples = map[string]int{}
		lp := NewReader(r, o)
		for {
			b, err := lp.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if o.MaxSamples > 0 && b.Samples() > o.MaxSamples+1 {
				t.Errorf("a batch of %d samples, want at most %d and a line", b.Samples(), o.MaxSamples)
			}
			batches++
			for line := range sorted(print(b)) {
				samples[line]++
			}
		}
		if lp.Stats().Strings != 1000 {
			t.Errorf("%d strings, want 1000", lp.Stats().Strings)
		}
		delete(samples, "")
		return samples, batches
	}
	want, n := read(strings.NewReader(in.String()), Options{})
	if len(want) != 2000 || n != 1 {
		t.Fatalf("%d samples in %d batches, want 2000 in 1", len(want), n)
	}
	for name, o := range map[string]Options{"samples": {MaxSamples: 10}, "labels": {MaxLabelBytes: 100}} {
		got, n := read(iotest.OneByteReader(strings.NewReader(in.String())), o)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("by %s, -want +got:\n%s", name, d)
		}
		if n < 100 {
			t.Errorf("by %s: %d batches, want more", name, n)
		}
	}
}

func TestInputFails(t *testing.T) {
	broken := errors.New("broken")
	r := NewReader(io.MultiReader(strings.NewReader("cpu v=1 1\ncpu v=2"), iotest.ErrReader(broken)), Options{})
	if b, err := r.Next(); !errors.Is(err, broken) || b != nil {
		t.Errorf("%v and error %v, want %v", b, err, broken)
	}
}

func FuzzNext(f *testing.F) {
	for _, s := range []string{
		"cpu,host=a usage=0.5,n=1i,u=2u,b=t,s=\"x\\\"y\" 1", "cpu v=1\n# c\n\r\ncpu v=2 -1", `a\ b,c\,d=e\=f g\ h=1`, "cpu,a=\xff v=1", "cpu v=\"a\nb\" 1",
	} {
		f.Add([]byte(s))
	}
	known := []error{ingest.ErrMalformed, ingest.ErrTooLarge, series.ErrInvalidLabel, series.ErrDuplicateLabel, writer.ErrInvalidSample}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in), Options{Now: clock, Database: "d", MaxSamples: 50, MaxLabelBytes: 1 << 16})
		for {
			b, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				for _, k := range known {
					if errors.Is(err, k) {
						return
					}
				}
				t.Fatalf("an error of no kind: %v", err)
			}
			for _, s := range b {
				if err := series.Validate(s.Labels); err != nil {
					t.Fatalf("invalid series %s: %v", s.Labels, err)
				}
				if len(s.Samples) == 0 {
					t.Fatalf("no samples of %s", s.Labels)
				}
			}
		}
	})
}

func BenchmarkNext(b *testing.B) {
	var in strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&in, "cpu,hostname=host_%d,region=eu-west-1,datacenter=eu-west-1c,rack=87,os=Ubuntu16.04LTS,arch=x64,team=NYC,service=18,service_version=1,service_environment=production usage_user=58i,usage_system=2i,usage_idle=24i,usage_nice=61i,usage_iowait=22i,usage_irq=63i,usage_softirq=6i,usage_steal=44i,usage_guest=80i,usage_guest_nice=38i 1451606400000000000\n", i)
	}
	b.SetBytes(int64(in.Len()))
	samples := 0
	for b.Loop() {
		batch, err := NewReader(strings.NewReader(in.String()), Options{}).Next()
		if err != nil {
			b.Fatal(err)
		}
		samples += batch.Samples()
	}
	b.ReportMetric(float64(samples)/b.Elapsed().Seconds(), "samples/s")
}
