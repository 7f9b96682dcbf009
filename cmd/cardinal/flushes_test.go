package main

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/rogpeppe/go-internal/testscript"

	"cardinalsin"
	"cardinalsin/series"
)

// flushes writes to the table in the folder store as a server does: flush n
// has n rows, and each is a version.
func flushes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flushes N")
	}
	count, err := strconv.Atoi(args[0])
	ts.Check(err)
	ctx := context.Background()
	db, err := cardinalsin.Open(ctx, cardinalsin.Options{Store: ts.MkAbs("store"), WALDir: ts.MkAbs("wal")})
	ts.Check(err)
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for n := 1; n <= count; n++ {
		var samples []series.Sample
		for i := range n {
			samples = append(samples, series.Sample{Time: series.Timestamp(at.Add(time.Duration(100*n+i) * time.Second).UnixMicro()), Value: float64(n)})
		}
		ts.Check(db.Writer.Append(ctx, series.Batch{{Labels: labels.FromStrings(series.MetricName, "m"), Samples: samples}}))
		ts.Check(db.Writer.Flush(ctx))
	}
	ts.Check(db.Close(ctx))
}
