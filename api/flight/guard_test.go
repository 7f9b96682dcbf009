package flight

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/codes"

	"cardinalsin/ingest"
	"cardinalsin/ingest/ingesttest"
	"cardinalsin/internal/arrowbatch"
	"cardinalsin/internal/flightguard"
)

// messages are the FlightData messages of a stream.
func messages(t testing.TB, schema *arrow.Schema, opts []ipc.Option, recs ...arrow.RecordBatch) []*flight.FlightData {
	t.Helper()
	var out recorder
	w := flight.NewRecordWriter(&out, append(opts, ipc.WithSchema(schema))...)
	for _, rec := range recs {
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

type recorder []*flight.FlightData

func (r *recorder) Send(d *flight.FlightData) error {
	*r = append(*r, &flight.FlightData{DataHeader: bytes.Clone(d.DataHeader), DataBody: bytes.Clone(d.DataBody)})
	return nil
}

// send sends messages as they are.
func send(t *testing.T, client flight.Client, data []*flight.FlightData) error {
	t.Helper()
	stream, err := client.DoPut(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range data {
		if err := stream.Send(d); err != nil {
			break // the status says why
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// TestHostileMessages: what claims more than it holds is refused before
// anything is allocated for it.
func TestHostileMessages(t *testing.T) {
	rows := record(t, plain, "["+goodRow+"]")
	zeros := largeText(t, 100<<20)
	window := func() []byte { // a frame with a window of 128 MiB, and one without a size
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b, zstd.WithWindowSize(128<<20), zstd.WithSingleSegment(false))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Flush(), w.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	for _, c := range []struct {
		name   string
		data   func() []*flight.FlightData
		reason ingest.Reason
		says   string
	}{
		{"no schema", func() []*flight.FlightData { return messages(t, plain, nil, rows)[1:] }, "malformed", "message type"},
		{"header is noise", func() []*flight.FlightData {
			m := messages(t, plain, nil, rows)
			m[1].DataHeader = bytes.Repeat([]byte{0xf3}, 64)
			return m
		}, "malformed", "message header"},
		{"header is cut", func() []*flight.FlightData {
			m := messages(t, plain, nil, rows)
			m[1].DataHeader = m[1].DataHeader[:12]
			return m
		}, "malformed", ""},
		{"body is cut", func() []*flight.FlightData {
			m := messages(t, plain, nil, rows)
			m[1].DataBody = m[1].DataBody[:9]
			return m
		}, "malformed", ""},
		{"offsets beyond the text", func() []*flight.FlightData {
			m := messages(t, plain, nil, rows)
			i := bytes.Index(m[1].DataBody, []byte{0, 0, 0, 0, 1, 0, 0, 0}) // metric_name's offsets
			m[1].DataBody[i+4] = 0x7f
			m[1].DataBody[i+6] = 0x7f
			return m
		}, "malformed", "offsets"},
		{"index beyond the dictionary", func() []*flight.FlightData {
			schema := schemaOf("timestamp", micros, "metric_name", words, "value", doubles)
			m := messages(t, schema, nil, record(t, schema, `[{"timestamp": 1, "metric_name": "m", "value": 1}]`))
			last := m[len(m)-1]
			last.DataBody = slices.Clone(last.DataBody)
			binary.LittleEndian.PutUint32(last.DataBody[8:], 77)
			for i := range last.DataBody { // wherever the writer put the indices
				if i%8 == 0 && i+4 <= len(last.DataBody) && binary.LittleEndian.Uint64(last.DataBody[i:]) == 0 {
					binary.LittleEndian.PutUint32(last.DataBody[i:], 77)
				}
			}
			return m
		}, "malformed", "dictionary of 1"},
		{"too many rows", func() []*flight.FlightData {
			b := array.NewRecordBuilder(memory.DefaultAllocator, plain)
			for _, f := range b.Fields() {
				f.AppendNulls(arrowbatch.MaxRows + 1)
			}
			return messages(t, plain, nil, b.NewRecordBatch())
		}, "too_large", "rows in a message"},
		{"bomb of lz4", func() []*flight.FlightData { return bomb(t, []ipc.Option{ipc.WithLZ4()}, zeros) }, "too_large", "decompresses to more"},
		{"bomb of zstd", func() []*flight.FlightData { return bomb(t, []ipc.Option{ipc.WithZstd()}, zeros) }, "too_large", "decompresses to more"},
		{"claimed size of 2^62", func() []*flight.FlightData {
			m := messages(t, plain, []ipc.Option{ipc.WithZstd()}, largeText(t, 1<<16))
			binary.LittleEndian.PutUint64(m[1].DataBody, 1<<62)
			return m
		}, "too_large", "decompresses to more"},
		{"claimed size is negative", func() []*flight.FlightData {
			m := messages(t, plain, []ipc.Option{ipc.WithZstd()}, largeText(t, 1<<16))
			binary.LittleEndian.PutUint64(m[1].DataBody, 1<<63)
			return m
		}, "too_large", "decompresses to more"},
		{"large window", func() []*flight.FlightData { return withFrame(t, window) }, "too_large", "window"},
		{"second frame", func() []*flight.FlightData { return withFrame(t, append(smallFrame(t), window...)) }, "malformed", "after the frame"},
		{"skippable frame", func() []*flight.FlightData {
			return withFrame(t, []byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4})
		}, "malformed", "without content"},
		{"dictionaries that only grow", func() []*flight.FlightData {
			schema := schemaOf("timestamp", micros, "metric_name", words, "value", doubles)
			m := messages(t, schema, []ipc.Option{ipc.WithDictionaryDeltas(true)},
				record(t, schema, `[{"timestamp": 1, "metric_name": "m", "value": 1}]`),
				record(t, schema, `[{"timestamp": 1, "metric_name": "m", "value": 1}, {"timestamp": 1, "metric_name": "n", "value": 1}]`))
			delta := m[3] // schema, dictionary, rows, delta, rows
			delta.DataBody = append(delta.DataBody, make([]byte, 50<<20)...)
			return append(m[:3], delta, delta, delta, delta)
		}, "too_large", "dictionaries of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := ingesttest.New(t, ingesttest.Options{})
			err := send(t, serve(t, sink, Options{}), c.data())
			checkRefusal(t, err, codes.InvalidArgument, c.says)
			if n := sink.Refused(c.reason); n != 1 {
				t.Errorf("%d refusals counted as %s, want 1", n, c.reason)
			}
		})
	}
}

// TestMessageTooLarge: a record batch above the server's bound is counted,
// although gRPC alone sees it, and answers it by itself.
func TestMessageTooLarge(t *testing.T) {
	sink := ingesttest.New(t, ingesttest.Options{})
	err := send(t, serve(t, sink, Options{}), messages(t, plain, nil, largeText(t, 65<<20)))
	checkRefusal(t, err, codes.ResourceExhausted, "larger than max")
	if sink.Refused("too_large") != 1 || sink.Tables() != 0 {
		t.Errorf("%d refusals, %d tables", sink.Refused("too_large"), sink.Tables())
	}
}

// largeText is one row, plain, with a host of n zero bytes.
func largeText(t *testing.T, n int) arrow.RecordBatch {
	t.Helper()
	b := array.NewStringBuilder(memory.DefaultAllocator)
	b.Append(string(make([]byte, n)))
	rec, err := record(t, plain, "["+goodRow+"]").SetColumn(3, b.NewArray())
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// bomb is a message of two buffers of 100 MB each.
func bomb(t *testing.T, opts []ipc.Option, rec arrow.RecordBatch) []*flight.FlightData {
	t.Helper()
	rec, err := rec.SetColumn(1, rec.Column(3))
	if err != nil {
		t.Fatal(err)
	}
	m := messages(t, plain, opts, rec)
	if n := len(m[1].DataBody); n > 1<<20 {
		t.Fatalf("the bomb has %d bytes", n)
	}
	return m
}

func smallFrame(t *testing.T) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(true))
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll([]byte("12345678"), nil)
}

// withFrame is a message whose first compressed buffer has other content. The
// buffer is made to hold 200,000 random bytes first, so that there is room.
func withFrame(t *testing.T, frame []byte) []*flight.FlightData {
	t.Helper()
	var noise []byte
	for i := range 50_000 {
		noise = fmt.Appendf(noise, "%x", uint32(i)*2654435761)
	}
	b := array.NewStringBuilder(memory.DefaultAllocator)
	b.Append(string(noise))
	rec, err := record(t, plain, "["+goodRow+"]").SetColumn(3, b.NewArray())
	if err != nil {
		t.Fatal(err)
	}
	m := messages(t, plain, []ipc.Option{ipc.WithZstd()}, rec)
	body := m[1].DataBody
	// The last buffer begins with the size of the text.
	at := bytes.LastIndex(body, binary.LittleEndian.AppendUint64(nil, uint64(len(noise))))
	if at < 0 || at+8+len(frame) > len(body) {
		t.Fatal("no room for the frame")
	}
	if len(frame) > 0 {
		copy(body[at+8:], frame)
	}
	return m
}

// FuzzPut: whatever the messages, reading and converting them ends with an
// error or a batch, and holds no more memory than the bounds allow.
func FuzzPut(f *testing.F) {
	schema := schemaOf("timestamp", micros, "nanos", arrow.PrimitiveTypes.Int16, "metric_name", words, "value", doubles, "histogram", arrow.BinaryTypes.Binary,
		"labels_overflow", textPairs, "host", arrow.BinaryTypes.LargeString)
	rows := `[{"timestamp": 1, "nanos": 3, "metric_name": "m", "value": 1, "host": "a host of more than twelve bytes", "labels_overflow": [{"key": "k", "value": "v"}]},
		{"timestamp": 2, "metric_name": "m", "value": 2}]`
	for _, opts := range [][]ipc.Option{nil, {ipc.WithZstd()}, {ipc.WithLZ4()}} {
		m := messages(f, schema, opts, record(f, schema, rows))
		last := m[len(m)-1]
		f.Add(m[1].DataHeader, m[1].DataBody, last.DataHeader, last.DataBody)
	}
	head := messages(f, schema, nil, record(f, schema, rows))[0]
	f.Fuzz(func(t *testing.T, dictHeader, dictBody, header, body []byte) {
		in := flightguard.New(&replay{head, {DataHeader: dictHeader, DataBody: dictBody}, {DataHeader: header, DataBody: body}}, limits)
		r, err := flight.NewRecordReader(in, ipc.WithAllocator(in))
		if err != nil {
			t.Fatal(err) // the schema is sound
		}
		defer r.Release()
		in.Expect(r.Schema())
		c, err := arrowbatch.New(r.Schema())
		if err != nil {
			t.Fatal(err)
		}
		for {
			rec, err := r.Read()
			if err != nil {
				return
			}
			b, err := c.Batch(rec)
			if reason, _ := ingest.Classify(err); err != nil && reason == "unavailable" {
				t.Errorf("an error without a reason: %v", err)
			}
			if n := int64(b.Samples()); err == nil && n != rec.NumRows() {
				t.Errorf("%d samples of %d rows", n, rec.NumRows())
			}
		}
	})
}

// replay is a stream of messages.
type replay []*flight.FlightData

func (r *replay) Recv() (*flight.FlightData, error) {
	if len(*r) == 0 {
		return nil, io.EOF
	}
	d := (*r)[0]
	*r = (*r)[1:]
	return d, nil
}
