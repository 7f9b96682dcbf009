package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// TestFlightSQL: each tenant reads its own rows by Flight SQL, those that are
// only in the head included, and what HTTP reads is the same.
func TestFlightSQL(t *testing.T) {
	dir := t.TempDir()
	o := serverOptions{FlightSQL: "127.0.0.1:0"}
	o.HTTP = "127.0.0.1:0"
	o.Tables.Store, o.Tables.WALDir = filepath.Join(dir, "store"), filepath.Join(dir, "wal")
	s, err := openServer(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, out) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	ready, err := bufio.NewReader(in).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, address, ok := strings.Cut(strings.TrimSpace(ready), " flight_sql=")
	if !ok {
		t.Fatalf("no address in %q", ready)
	}
	ask := func(path, tenant, body string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.HTTPAddr()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Scope-OrgID", tenant)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode/100 != 2 {
			t.Fatalf("%s: %s: %s, %v", path, resp.Status, answer, err)
		}
		return strings.TrimSpace(string(answer))
	}
	ask("/write?db=x", "default", "cpu usage=1 1\ncpu usage=2 2\n")
	ask("/write?db=x", "acme", "cpu usage=3 3\n")

	client, err := flightsql.NewClient(address, nil, nil, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	count := func(tenant string) (string, error) {
		ctx := ctx
		if tenant != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-scope-orgid", tenant)
		}
		info, err := client.Execute(ctx, "SELECT count(*) AS n FROM metrics")
		if err != nil {
			return "", err
		}
		r, err := client.DoGet(ctx, info.Endpoint[0].Ticket)
		if err != nil {
			return "", err
		}
		defer r.Release()
		if !r.Next() {
			return "", r.Err()
		}
		return r.RecordBatch().Column(0).ValueStr(0), nil
	}
	for tenant, want := range map[string]string{"": "2", "default": "2", "acme": "1"} {
		if got, err := count(tenant); err != nil || got != want {
			t.Errorf("tenant %q has %s rows, want %s: %v", tenant, got, want, err)
		}
	}
	if got := ask("/api/v1/sql", "acme", `{"query": "SELECT count(*) AS n FROM metrics", "format": "csv"}`); got != "n\r\n1" && got != "n\n1" {
		t.Errorf("over HTTP: %q", got)
	}
	for tenant, want := range map[string]codes.Code{"nobody": codes.NotFound, "a/b": codes.InvalidArgument} {
		if _, err := count(tenant); status.Code(err) != want {
			t.Errorf("tenant %q: %v, want %v", tenant, err, want)
		}
	}
}
