package index

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// BenchmarkDays: a million series of twelve labels on each of 14 days, one file
// a day. It prints bytes of a segment for a series, and what building one took.
func BenchmarkDays(b *testing.B) {
	const n, days = 1_000_000, 14
	tb := newTable(b, nil)
	began := time.Now()
	build := newBuilder([]indexed{{path: "day-00.parquet", size: 1, identity: 1 << 30}})
	for i := range n {
		l := metric("http_requests_total",
			"cluster", fmt.Sprintf("c%d", i%3), "container", "app", "endpoint", "metrics", "instance", fmt.Sprintf("10.%d.%d.%d:9090", i>>16&255, i>>8&255, i&255),
			"job", "kubelet", "method", []string{"GET", "POST", "PUT"}[i%3], "namespace", fmt.Sprintf("ns-%d", i%100), "pod", fmt.Sprintf("app-%d-%08x", i%1000, uint32(i)*2654435761),
			"region", fmt.Sprintf("region-%d", i%10), "service", fmt.Sprintf("svc-%d", i%500), "status", fmt.Sprint(200+i%5))
		build.add(l, series.IDOf(l), []where{{0, i / 100_000, i % 100_000, 1}})
	}
	// The days differ in the name of their file alone, so that all but the
	// directory is made once.
	data, _, err := build.finish()
	if err != nil {
		b.Fatal(err)
	}
	directory := int64(binary.LittleEndian.Uint64(data[len(data)-tailBytes:])) + tailBytes
	took := time.Since(began)
	body := data[:int64(len(data))-directory]
	raw, err := openBlock(data[len(body) : len(data)-tailBytes])
	if err != nil {
		b.Fatal(err)
	}
	var c configuration
	tx := tb.log.Begin(nil, txlog.Operation{Name: "WRITE"})
	for d := range days {
		path := fmt.Sprintf("day-%02d.parquet", d)
		date := (firstDay + series.Timestamp(d)*series.Timestamp(24*time.Hour/time.Microsecond)).Date()
		key := fmt.Sprintf("%s/%s.idx", Folder, date)
		data, n := appendBlock(slices.Clone(body), bytes.Replace(raw, []byte("day-00"), fmt.Appendf(nil, "day-%02d", d), 1))
		data = append(binary.LittleEndian.AppendUint64(data, uint64(n)), magic...)
		if _, err := tb.store.Put(b.Context(), root+"/"+key, bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
		c.Segments = append(c.Segments, Segment{Key: key, Bytes: int64(len(data)), Directory: int64(n) + tailBytes, Date: date.String(), Files: 1, Restarts: restartSeries})
		tx.Add(action.Add{Path: path, Size: 1, DataChange: true, PartitionValues: action.ObjectOf(map[string]string{chunk.ColumnDate: date.String(), chunk.ColumnShard: "0"})})
	}
	text, err := json.Marshal(c)
	if err != nil {
		b.Fatal(err)
	}
	tx.SetDomain(Domain, string(text))
	tb.commit(tx)
	snap := tb.latest()
	b.Logf("segment: %.1f bytes a series, directory %d KiB, built in %v", float64(len(data))/n, directory>>10, took.Round(time.Millisecond))

	warm := tb.open(Options{})
	all := series.Selector{Range: series.AllTime}
	namespace := series.Selector{Range: series.AllTime, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "namespace", "ns-7")}}
	one := podIs(fmt.Sprintf("app-5-%08x", 5*2654435761%(1<<32)))
	var files []string
	for d := range days {
		files = append(files, fmt.Sprintf("day-%02d.parquet", d))
	}
	for _, run := range []struct {
		name string
		do   func(x *Index) error
	}{
		{"values=namespace", func(x *Index) error {
			_, _, err := x.LabelValues(b.Context(), snap, "namespace", all, files, 0)
			return err
		}},
		{"values=pod/limit", func(x *Index) error {
			_, _, err := x.LabelValues(b.Context(), snap, "pod", all, files, 1000)
			return err
		}},
		{"values=pod", func(x *Index) error { _, _, err := x.LabelValues(b.Context(), snap, "pod", all, files, 0); return err }},
		{"values=service/namespace", func(x *Index) error {
			_, _, err := x.LabelValues(b.Context(), snap, "service", namespace, files, 0)
			return err
		}},
		{"find=pod", func(x *Index) error { _, err := x.Find(b.Context(), snap, one, files, Limits{}); return err }},
		{"find=namespace", func(x *Index) error { _, err := x.Find(b.Context(), snap, namespace, files, Limits{}); return err }},
	} {
		b.Run(run.name+"/cold", func(b *testing.B) {
			for b.Loop() {
				if err := run.do(tb.open(Options{})); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(run.name+"/warm", func(b *testing.B) {
			if err := run.do(warm); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := run.do(warm); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
