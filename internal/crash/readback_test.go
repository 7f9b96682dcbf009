//go:build crash

package crash

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"cardinalsin/ingest"
)

const sampleColumns = `metric_name, proto, sender, series, epoch_us("timestamp")*1000 + coalesce(nanos, 0), value`

// store is a tenant's place, as the programs' flags and environment say it.
type store struct {
	url    string
	env    []string
	tenant string // empty for the default one
}

// query asks a server that runs; it sees the head too.
func query(t *testing.T, s *server, tenant, sql string, row func([]string)) {
	t.Helper()
	body, err := json.Marshal(map[string]string{"query": sql, "format": "csv"})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.http+"/api/v1/sql", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if tenant != "" {
		req.Header.Set(ingest.TenantHeader, tenant)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		msg, err := io.ReadAll(resp.Body)
		t.Fatalf("sql: status %d: %s %v", resp.StatusCode, msg, err)
	}
	rows(t, resp.Body, row)
}

func rows(t *testing.T, in io.Reader, row func([]string)) {
	t.Helper()
	r := csv.NewReader(in)
	r.ReuseRecord = true
	if _, err := r.Read(); err != nil {
		t.Fatalf("header: %v", err)
	}
	for {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		row(rec)
	}
}

// run runs a subcommand on one table and returns what it prints.
func (p store) run(t *testing.T, table string, args ...string) string {
	t.Helper()
	args = append([]string{args[0], "--store", p.url, "--table", table}, args[1:]...)
	if p.tenant != "" {
		args = append([]string{args[0], "--tenant", p.tenant}, args[1:]...)
	}
	cmd := exec.Command(*binary, args...)
	cmd.Env = append(os.Environ(), p.env...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out, complaint.String())
	}
	return string(out)
}

// collect gathers the load's samples from the rows of sampleColumns.
func collect(t *testing.T, samples map[id][]float64) func([]string) {
	return func(rec []string) {
		k, v, err := parseID(rec)
		if err != nil {
			t.Fatalf("row %q: %v", rec, err)
		}
		k.protocol = strings.Clone(k.protocol)
		samples[k] = append(samples[k], v)
	}
}

// verifyHead asks a server that has just been restarted for all samples.
func verifyHead(t *testing.T, s *server, tenant string, l *ledger) {
	t.Helper()
	samples := map[id][]float64{}
	for _, p := range protocols {
		query(t, s, tenant, fmt.Sprintf(`SELECT %s FROM metrics WHERE metric_name IN ('%s', '%s') AND proto = '%s'`, sampleColumns, floatMetric, histogramMetric, p.name), collect(t, samples))
	}
	l.compareSamples(t, "after the last restart", samples)
}

// verifyTables reads the tables that nobody has open. If the load repeated
// nothing (once), nothing was written twice.
func verifyTables(t *testing.T, p store, l *ledger, once bool) {
	t.Helper()
	samples := map[id][]float64{}
	rows(t, strings.NewReader(p.run(t, "metrics", "sql", "--format", "csv", "SELECT "+sampleColumns+" FROM this_table WHERE proto IS NOT NULL")), collect(t, samples))
	l.compareSamples(t, "from the table alone", samples)
	// The load repeats no sample, so the flushes must have written as many
	// rows as the queries return: deduplication hides nothing. That is not asked of
	// metadata, which a server that has forgotten it may store once more.
	tables := map[string]int{"metrics": p.count(t, "metrics")}
	if len(l.exemplars) > 0 {
		stored := map[string]int{}
		rows(t, strings.NewReader(p.run(t, "metrics_exemplars", "sql", "--format", "csv", `SELECT ___exemplar__trace_id FROM this_table`)), tally(stored))
		compareSet(t, "exemplars", l.exemplars, l.exemplarsU, stored)
		tables["metrics_exemplars"] = len(stored)
	}
	for table, want := range tables {
		if !once {
			break
		}
		if written := p.writtenRows(t, table); written != want {
			t.Errorf("%s: flushes have written %d rows, %d differ", table, written, want)
		}
	}
	if len(l.help) > 0 {
		stored := map[string]int{}
		rows(t, strings.NewReader(p.run(t, "metrics_metadata", "sql", "--format", "csv", fmt.Sprintf(`SELECT help FROM this_table WHERE metric_name = '%s' AND help <> ''`, floatMetric))), tally(stored))
		compareSet(t, "metadata", l.help, l.helpU, stored)
		tables["metrics_metadata"] = len(stored)
	}
	for table := range tables {
		p.run(t, table, "check", "--deep")
	}
	t.Logf("tenant %q: rows stored: %v; check --deep ok", p.tenant, tables)
}

// tally counts the values of the first column.
func tally(in map[string]int) func([]string) {
	return func(rec []string) { in[strings.Clone(rec[0])]++ }
}

// count is how many rows queries see.
func (p store) count(t *testing.T, table string) (n int) {
	t.Helper()
	rows(t, strings.NewReader(p.run(t, table, "sql", "--format", "csv", "SELECT count(*) FROM this_table")), func(rec []string) {
		var err error
		if n, err = strconv.Atoi(rec[0]); err != nil {
			t.Fatal(err)
		}
	})
	return n
}

// writtenRows is how many rows the flushes have ever committed: compaction,
// which would hide what came twice, changes nothing in it.
func (p store) writtenRows(t *testing.T, table string) int {
	t.Helper()
	total := 0
	dec := json.NewDecoder(strings.NewReader(p.run(t, table, "log", "--json", "--limit", "0")))
	for {
		var v struct {
			Operation string `json:"operation"`
			RowsAdded int    `json:"rows_added"`
		}
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			return total
		} else if err != nil {
			t.Fatal(err)
		}
		if v.Operation == "WRITE" {
			total += v.RowsAdded
		}
	}
}
