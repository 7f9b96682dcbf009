package flight

import (
	"context"
	"encoding/base64"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"cardinalsin/chunk"
	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/series"
	"cardinalsin/writer"
)

func marshal(t *testing.T, h prompb.Histogram) []byte {
	t.Helper()
	data, err := h.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestRoundTrip: every kind of sample comes back bit for bit, from the head and
// from chunks, however the client encodes and compresses.
func TestRoundTrip(t *testing.T) {
	day := series.Date(20_000).Start()
	integer := marshal(t, prompb.FromIntHistogram(0, tsdbutil.GenerateTestHistogram(3)))
	float := marshal(t, prompb.FromFloatHistogram(0, tsdbutil.GenerateTestFloatHistogram(3)))
	custom := marshal(t, prompb.FromIntHistogram(0, tsdbutil.GenerateTestCustomBucketsHistogram(3)))
	want := []series.Series{
		{Labels: labels.FromStrings("__name__", "a", "host", "x", "value", "label of that name"), Samples: []series.Sample{
			{Time: day, Value: math.Float64frombits(value.StaleNaN)},
			{Time: day + 1, Value: math.Float64frombits(0x7ff8dead0000beef)},
			{Time: day + 2, Value: math.Copysign(0, -1), Start: 1_234_567_890_123_456_789},
			{Time: day + 2, Nanos: 999, Value: math.Inf(-1)},
			{Time: series.MinTimestamp, Value: 1, Start: -5},
			{Time: series.MaxTimestamp, Value: 5e-324},
		}},
		{Labels: labels.FromStrings("__name__", "a", "a b", "no column", "host", "x"), Samples: []series.Sample{{Time: day, Value: 2}}},
		{Labels: labels.FromStrings("__name__", "h", "_under", "ü"), Samples: []series.Sample{
			{Time: day, Histogram: integer}, {Time: day + 1, Histogram: float, Start: 7}, {Time: day + 2, Histogram: custom}, {Time: day + 3, Value: 4},
		}},
	}
	for _, enc := range []struct {
		name  string
		label arrow.DataType
		opts  []ipc.Option
	}{
		{"text", text, nil},
		{"dictionaries", words, []ipc.Option{ipc.WithDictionaryDeltas(true)}},
		{"large text, lz4", arrow.BinaryTypes.LargeString, []ipc.Option{ipc.WithLZ4()}},
		{"views", arrow.BinaryTypes.StringView, nil},
		{"dictionaries, zstd", &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Uint8, ValueType: text}, []ipc.Option{ipc.WithZstd()}},
	} {
		t.Run(enc.name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			client := serve(t, sink, Options{})
			schema := schemaOf("timestamp", micros, "nanos", arrow.PrimitiveTypes.Int32, "start_time_unix_nano", longs, "metric_name", enc.label, "series_id", longs,
				"value", doubles, "histogram", arrow.BinaryTypes.Binary, "labels_overflow", textPairs, "host", enc.label, "_value", enc.label, "__under", enc.label,
				"date", arrow.FixedWidthTypes.Date32, "shard", text)
			var rows []string
			for _, s := range want {
				for _, p := range s.Samples {
					rows = append(rows, tableRow(s.Labels, p))
				}
			}
			rec := patchValues(t, record(t, schema, "["+strings.Join(rows, ",")+"]"), want)
			last, err := put(t.Context(), client, &flight.FlightDescriptor{Type: flight.DescriptorPATH, Path: []string{"metrics"}}, schema, enc.opts, rec, rec)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := last, fmt.Sprintf(`{"batches":2,"rows":%d}`, 2*len(rows)); got != want {
				t.Errorf("last acknowledgement %s, want %s", got, want)
			}
			sorted := slices.Clone(want)
			for i := range sorted {
				sorted[i].Samples = slices.Clone(sorted[i].Samples)
				slices.SortFunc(sorted[i].Samples, series.Sample.Compare)
			}
			slices.SortFunc(sorted, func(a, b series.Series) int {
				return series.Compare(a.Labels, b.Labels, series.IDOf(a.Labels), series.IDOf(b.Labels))
			})
			for _, from := range []string{"head", "chunks"} {
				if diff := cmp.Diff(ingesttest.Print(sorted), ingesttest.Print(sink.Samples(""))); diff != "" {
					t.Errorf("from %s (-sent +read):\n%s", from, diff)
				}
				sink.Flush()
			}
		})
	}
}

// tableRow is a sample as a row of the table, in Arrow's JSON form. Time and
// value come later: JSON has no NaN, and its numbers 53 bits.
func tableRow(l series.Labels, p series.Sample) string {
	var columns, overflow []string
	l.Range(func(l labels.Label) {
		switch l.Name {
		case "__name__":
			columns = append(columns, fmt.Sprintf(`"metric_name": %q`, l.Value))
		case "value", "_under":
			columns = append(columns, fmt.Sprintf(`"_%s": %q`, l.Name, l.Value))
		case "host":
			columns = append(columns, fmt.Sprintf(`"host": %q`, l.Value))
		default:
			overflow = append(overflow, fmt.Sprintf(`{"key": %q, "value": %q}`, l.Name, l.Value))
		}
	})
	if overflow != nil {
		columns = append(columns, `"labels_overflow": [`+strings.Join(overflow, ",")+`]`)
	}
	columns = append(columns, fmt.Sprintf(`"timestamp": 0, "series_id": "%d"`, int64(series.IDOf(l))))
	if p.Nanos != 0 {
		columns = append(columns, fmt.Sprintf(`"nanos": %d`, p.Nanos))
	}
	if p.Start != 0 {
		columns = append(columns, fmt.Sprintf(`"start_time_unix_nano": "%d"`, p.Start))
	}
	if p.Histogram != nil {
		columns = append(columns, fmt.Sprintf(`"histogram": %q`, base64.StdEncoding.EncodeToString(p.Histogram)))
	}
	return "{" + strings.Join(columns, ", ") + "}"
}

// patchValues fills the columns of times and values.
func patchValues(t *testing.T, rec arrow.RecordBatch, rows []series.Series) arrow.RecordBatch {
	t.Helper()
	times, b := array.NewTimestampBuilder(memory.DefaultAllocator, micros), array.NewFloat64Builder(memory.DefaultAllocator)
	for _, s := range rows {
		for _, p := range s.Samples {
			times.Append(arrow.Timestamp(p.Time))
			if p.Histogram != nil {
				b.AppendNull()
			} else {
				b.Append(p.Value)
			}
		}
	}
	for column, values := range map[string]arrow.Array{"timestamp": times.NewArray(), "value": b.NewArray()} {
		var err error
		if rec, err = rec.SetColumn(rec.Schema().FieldIndices(column)[0], values); err != nil {
			t.Fatal(err)
		}
	}
	return rec
}

const goodRow = `{"timestamp": 1700000000000000, "metric_name": "m", "value": 1, "host": "a"}`

// TestRefuses: what will never be kept ends the stream with INVALID_ARGUMENT
// and the reason, is counted, and nothing of its batch is stored.
func TestRefuses(t *testing.T) {
	with := func(pairs ...any) *arrow.Schema {
		return schemaOf(append([]any{"timestamp", micros, "metric_name", text, "value", doubles, "host", text}, pairs...)...)
	}
	tagged := func(column, label string) *arrow.Schema {
		f := arrow.Field{Name: column, Type: text, Nullable: true, Metadata: arrow.NewMetadata([]string{chunk.LabelMetadata}, []string{label})}
		return arrow.NewSchema(append(plain.Fields(), f), nil)
	}
	row := func(more string) string {
		return strings.TrimSuffix(goodRow, "}") + ", " + more + "}"
	}
	for _, c := range []struct {
		name   string
		schema *arrow.Schema
		row    string
		reason ingest.Reason
		says   string
	}{
		{"no timestamp column", schemaOf("metric_name", text, "value", doubles), `{}`, "malformed", `no column "timestamp"`},
		{"no metric name column", schemaOf("timestamp", micros, "value", doubles), `{}`, "malformed", `no column "metric_name"`},
		{"no value column", schemaOf("timestamp", micros, "metric_name", text), `{}`, "malformed", `no column "value"`},
		{"timestamp of wrong type", schemaOf("timestamp", longs, "metric_name", text, "value", doubles), `{}`, "malformed", `column "timestamp" has type int64`},
		{"value of wrong type", schemaOf("timestamp", micros, "metric_name", text, "value", longs), `{}`, "malformed", `column "value" has type int64`},
		{"label of wrong type", with("zone", longs), row(`"zone": 1`), "malformed", `column "zone" has type int64`},
		{"label of binary type", with("zone", arrow.BinaryTypes.Binary), row(`"zone": ""`), "malformed", `column "zone" has type binary`},
		{"overflow of wrong type", with("labels_overflow", text), goodRow, "malformed", `column "labels_overflow"`},
		{"column twice", with("value", doubles), goodRow, "malformed", `column "value" twice`},
		{"label twice", tagged("zone", "host"), goodRow, "malformed", "carry the same label"},
		{"name in a label's column", with("__name__", text), goodRow, "malformed", `"metric_name"`},
		{"name by metadata", tagged("zone", "__name__"), goodRow, "malformed", "cardinal.label"},
		{"column that no label has", with("_zone", text), goodRow, "malformed", `"__zone"`},
		{"column without a name", with("", text), goodRow, "malformed", "name"},
		{"null timestamp", plain, `{"metric_name": "m", "value": 1}`, "malformed", `row 1: malformed request: column "timestamp" is null`},
		{"null metric name", plain, `{"timestamp": 1, "value": 1}`, "no_metric_name", "row 1"},
		{"empty metric name", plain, `{"timestamp": 1, "metric_name": "", "value": 1}`, "no_metric_name", "row 1"},
		{"neither value nor histogram", plain, `{"timestamp": 1, "metric_name": "m"}`, "malformed", "row 1"},
		{"value and histogram", with("histogram", arrow.BinaryTypes.Binary), row(`"histogram": "AA=="`), "malformed", "row 1"},
		{"broken histogram", with("histogram", arrow.BinaryTypes.Binary), `{"timestamp": 1, "metric_name": "m", "histogram": "/w=="}`, "invalid_histogram", "row 1"},
		{"empty histogram", with("histogram", arrow.BinaryTypes.Binary), `{"timestamp": 1, "metric_name": "m", "histogram": ""}`, "invalid_histogram", "row 1"},
		{"nanos out of range", with("nanos", arrow.PrimitiveTypes.Int32), row(`"nanos": 1000`), "invalid_sample", "row 1"},
		{"negative nanos", with("nanos", arrow.PrimitiveTypes.Int32), row(`"nanos": -1`), "invalid_sample", "row 1"},
		{"time beyond the year 9999", plain, `{"timestamp": 253402300800000000, "metric_name": "m", "value": 1}`, "invalid_sample", ""},
		{"time before the year 1", plain, `{"timestamp": -62135596800000008, "metric_name": "m", "value": 1}`, "invalid_sample", ""},
		{"seconds that overflow", schemaOf("timestamp", seconds, "metric_name", text, "value", doubles, "host", text),
			`{"timestamp": 9223372036855, "metric_name": "m", "value": 1}`, "invalid_sample", "row 0"},
		{"wrong series_id", with("series_id", longs), row(`"series_id": 1`), "malformed", "row 1"},
		{"label in column and overflow", with("labels_overflow", textPairs), row(`"labels_overflow": [{"key": "host", "value": "b"}]`), "duplicate_label", ""},
		{"label twice in overflow", with("labels_overflow", textPairs), row(`"labels_overflow": [{"key": "q", "value": "b"}, {"key": "q", "value": "c"}]`), "duplicate_label", ""},
		{"empty name in overflow", with("labels_overflow", textPairs), row(`"labels_overflow": [{"key": "", "value": "b"}]`), "invalid_label", ""},
		{"metric name in overflow", with("labels_overflow", textPairs), row(`"labels_overflow": [{"key": "__name__", "value": "b"}]`), "malformed", "row 1"},
		{"label of 2 MiB", plain, `{"timestamp": 1, "metric_name": "m", "value": 1, "host": "` + strings.Repeat("x", 2<<20) + `"}`, "invalid_label", `row 1`},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			client := serve(t, sink, Options{})
			rows := c.row
			if c.schema.HasField("value") && c.schema.HasField("host") && c.schema.Field(0).Type != seconds {
				rows = goodRow + "," + c.row
				if c.schema.HasField("series_id") {
					rows = strings.Replace(goodRow, "}", fmt.Sprintf(`, "series_id": "%d"}`, int64(series.IDOf(labels.FromStrings("__name__", "m", "host", "a")))), 1) + "," + c.row
				}
			}
			if len(c.schema.FieldIndices("value")) > 1 {
				rows = "" // JSON cannot say it
			}
			_, err := put(t.Context(), client, nil, c.schema, nil, record(t, c.schema, "["+rows+"]"))
			checkRefusal(t, err, codes.InvalidArgument, c.says)
			if n := sink.Refused(c.reason); n != 1 {
				t.Errorf("%d refusals counted as %s, want 1", n, c.reason)
			}
			if n := sink.Tables(); n != 0 {
				t.Errorf("%d tables made", n)
			}
		})
	}
}

func checkRefusal(t *testing.T, err error, code codes.Code, says string) {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != code || !strings.Contains(st.Message(), says) {
		t.Errorf("%s: %.400s; want %s and %q", st.Code(), st.Message(), code, says)
	}
}

// TestInvalidText: labels that are no UTF-8 text, which JSON cannot say.
func TestInvalidText(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	client := serve(t, sink, Options{})
	rec := record(t, plain, "["+goodRow+"]")
	b := array.NewStringBuilder(memory.DefaultAllocator)
	b.Append("\xff\xfe")
	rec, err := rec.SetColumn(3, b.NewArray())
	if err != nil {
		t.Fatal(err)
	}
	_, err = put(t.Context(), client, nil, plain, nil, rec)
	checkRefusal(t, err, codes.InvalidArgument, "UTF-8")
	if sink.Refused("invalid_label") != 1 || sink.Tables() != 0 {
		t.Errorf("%d refusals, %d tables", sink.Refused("invalid_label"), sink.Tables())
	}
}

// TestBatchesBeforeStay: the batches before one that is refused are stored and
// acknowledged, and the status names the one that is not.
func TestBatchesBeforeStay(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	client := serve(t, sink, Options{})
	good := func(second int) arrow.RecordBatch {
		return record(t, plain, fmt.Sprintf(`[{"timestamp": %d, "metric_name": "m", "value": 1, "host": "a"}]`, 1_700_000_000_000_000+second*1_000_000))
	}
	bad := record(t, plain, `[`+strings.Replace(goodRow, `"a"`, `"b"`, 1)+`, {"timestamp": 1, "value": 1}]`)
	last, err := put(t.Context(), client, nil, plain, nil, good(0), good(1), bad, good(2))
	checkRefusal(t, err, codes.InvalidArgument, "record batch 2, after 2 rows")
	if want := `{"batches":2,"rows":2}`; last != want {
		t.Errorf("last acknowledgement %s, want %s", last, want)
	}
	rows := sink.Samples("")
	if len(rows) != 1 || len(rows[0].Samples) != 2 {
		t.Errorf("stored:\n%s", ingesttest.Print(rows))
	}
}

// TestLastWins: of equal times the later row counts, within a batch too, and
// although a dictionary may have a text twice.
func TestLastWins(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	client := serve(t, sink, Options{})
	schema := schemaOf("timestamp", micros, "metric_name", text, "value", doubles, "host", words)
	rec := record(t, plain, `[
		{"timestamp": 5, "metric_name": "m", "value": 1, "host": "a"},
		{"timestamp": 5, "metric_name": "m", "value": 2, "host": "a"},
		{"timestamp": 5, "metric_name": "m", "value": 3, "host": "a"}]`)
	twice := record(t, schemaOf("host", text), `[{"host": "a"}, {"host": "a"}, {"host": null}]`).Column(0)
	index := array.NewInt32Builder(memory.DefaultAllocator)
	index.AppendValues([]int32{0, 1, 0}, nil)
	columns := append(slices.Clone(rec.Columns()[:3]), array.NewDictionaryArray(words, index.NewArray(), twice))
	if _, err := put(t.Context(), client, nil, schema, nil, array.NewRecordBatch(schema, columns, 3)); err != nil {
		t.Fatal(err)
	}
	rows := sink.Samples("")
	if len(rows) != 1 || len(rows[0].Samples) != 1 || rows[0].Samples[0].Value != 3 {
		t.Errorf("stored:\n%s", ingesttest.Print(rows))
	}
}

// TestNanoseconds: timestamps of nanoseconds are split, also before 1970.
func TestNanoseconds(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	client := serve(t, sink, Options{})
	schema := schemaOf("timestamp", &arrow.TimestampType{Unit: arrow.Nanosecond}, "metric_name", text, "value", arrow.PrimitiveTypes.Float32)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	for _, ns := range []int64{-1, 1_700_000_000_123_456_789, 0, math.MinInt64} {
		b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(ns))
		b.Field(1).(*array.StringBuilder).Append("m")
		b.Field(2).(*array.Float32Builder).Append(0.1)
	}
	if _, err := put(t.Context(), client, nil, schema, nil, b.NewRecordBatch()); err != nil {
		t.Fatal(err)
	}
	bits := fmt.Sprintf("%016x", math.Float64bits(float64(float32(0.1))))
	var want string
	for _, ns := range []string{"-9223372036854776192", "-1999", "0000", "1700000000123456789"} { // micros, then nanos in three digits
		want += `{__name__="m"} ` + ns + " " + bits + "\n"
	}
	if diff := cmp.Diff(want, ingesttest.Print(sink.Samples(""))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestAnswers: each condition of the sink has its status, and nothing of it is
// counted a second time.
func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		code codes.Code
	}{
		{"overloaded", fmt.Errorf("test: %w", writer.ErrOverloaded), codes.ResourceExhausted},
		{"limit", fmt.Errorf("test: %w", ingest.ErrLimit), codes.InvalidArgument},
		{"anything else", fmt.Errorf("test: %w", context.Canceled), codes.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			client := serve(t, sink, Options{})
			sink.FailWith(c.err)
			stream, err := client.DoPut(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w := flight.NewRecordWriter(stream, ipc.WithSchema(plain))
			if err := w.Write(record(t, plain, "["+goodRow+"]")); err != nil {
				t.Fatal(err)
			}
			_, err = stream.Recv()
			checkRefusal(t, err, c.code, "record batch 0, after 0 rows")
			if c.code == codes.ResourceExhausted {
				if got := stream.Trailer().Get("retry-after"); !slices.Equal(got, []string{"10"}) {
					t.Errorf("trailer retry-after %q", got)
				}
			}
		})
	}
}

// TestRouting: the tenant comes with the metadata, and a descriptor may name
// only the table.
func TestRouting(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	client := serve(t, sink, Options{})
	rec := record(t, plain, "["+goodRow+"]")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-scope-orgid", "team-a")
	if _, err := put(ctx, client, nil, plain, nil, rec); err != nil {
		t.Fatal(err)
	}
	if len(sink.Samples("team-a")) != 1 || len(sink.Samples("")) != 0 {
		t.Error("not in the tenant's table alone")
	}
	ctx = metadata.AppendToOutgoingContext(t.Context(), "x-scope-orgid", "../up")
	_, err := put(ctx, client, nil, plain, nil, rec)
	checkRefusal(t, err, codes.InvalidArgument, "invalid tenant")
	for _, d := range []*flight.FlightDescriptor{
		{Type: flight.DescriptorPATH, Path: []string{"other"}},
		{Type: flight.DescriptorPATH, Path: []string{"metrics", "more"}},
		{Type: flight.DescriptorCMD, Cmd: []byte("INSERT")},
	} {
		_, err := put(t.Context(), client, d, plain, nil, rec)
		checkRefusal(t, err, codes.InvalidArgument, "descriptor")
	}
	if n := sink.Tables(); n != 1 {
		t.Errorf("%d tables, want 1", n)
	}
}

// counter is a sink that keeps nothing, and may be told to wait.
type counter struct {
	mu   sync.Mutex
	rows int
	wait chan struct{}
}

func (c *counter) Append(ctx context.Context, _ string, r *ingest.Request) error {
	if c.wait != nil {
		select {
		case <-c.wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rows += r.Samples.Samples()
	return nil
}

func (c *counter) Refuse(ingest.Protocol, ingest.Reason, int) {}

// TestUnreadAcks: a client may write 20,000 batches before it reads anything,
// which is more acknowledgements than gRPC keeps for it.
func TestUnreadAcks(t *testing.T) {
	const batches = 20_000
	client := serve(t, &counter{}, Options{})
	recs := slices.Repeat([]arrow.RecordBatch{record(t, plain, "["+goodRow+"]")}, batches)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	last, err := put(ctx, client, nil, plain, nil, recs...)
	if want := fmt.Sprintf(`{"batches":%d,"rows":%[1]d}`, batches); err != nil || last != want {
		t.Errorf("last acknowledgement %s, %v; want %s", last, err, want)
	}
}

// TestMemory: what a stream holds does not grow with its length, nor with the
// texts it has ever sent.
func TestMemory(t *testing.T) {
	sink := &counter{}
	client := serve(t, sink, Options{})
	stream, err := client.DoPut(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := flight.NewRecordWriter(stream, ipc.WithSchema(plain))
	const batches, rows = 300, 2000
	var early, late uint64
	for n := range batches {
		b := array.NewRecordBuilder(memory.DefaultAllocator, plain)
		for k := range rows {
			b.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(n))
			b.Field(1).(*array.StringBuilder).Append("m")
			b.Field(2).(*array.Float64Builder).Append(1)
			b.Field(3).(*array.StringBuilder).Append(fmt.Sprintf("host-%032d-%d", n, k))
		}
		if err := w.Write(b.NewRecordBatch()); err != nil {
			t.Fatal(err)
		}
		if n == 20 || n == batches-1 {
			if _, err := stream.Recv(); err != nil { // the server keeps up
				t.Fatal(err)
			}
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			if early == 0 {
				early = m.HeapAlloc
			}
			late = m.HeapAlloc
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// The texts alone are 40 bytes × 600,000 = 24 MB.
	if late > early+8<<20 {
		t.Errorf("the heap grew from %d to %d bytes", early, late)
	}
}

// TestMaxStreams: a stream too many is told to come back, and there is room
// again when one has ended.
func TestMaxStreams(t *testing.T) {
	sink := &counter{wait: make(chan struct{})}
	client := serve(t, sink, Options{MaxStreams: 1})
	rec := record(t, plain, "["+goodRow+"]")
	first, err := client.DoPut(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := flight.NewRecordWriter(first, ipc.WithSchema(plain))
	if err := w.Write(rec); err != nil {
		t.Fatal(err)
	}
	sink.wait <- struct{}{} // it is being served
	_, err = put(t.Context(), client, nil, plain, nil, rec)
	checkRefusal(t, err, codes.ResourceExhausted, "too many streams")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for err == nil || status.Code(err) == codes.ResourceExhausted {
		if _, err = first.Recv(); err != nil {
			break
		}
	}
	close(sink.wait)
	if _, err := put(t.Context(), client, nil, plain, nil, rec); err != nil {
		t.Errorf("after the first stream: %v", err)
	}
}
