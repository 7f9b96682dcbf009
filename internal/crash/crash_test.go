//go:build crash

package crash

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/prometheus/prompb"

	"cardinalsin/internal/remotewrite"
)

var (
	binary = flag.String("binary", "", "the cardinal program to kill")
	rounds = flag.Int("rounds", 20, "number of kills")
	seed   = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of the moments")
)

const (
	senders   = 6
	perSeries = 5
	perBatch  = 40 // series a batch
)

// key identifies one sample of the load; no two batches share one, so a row
// that occurs twice was stored twice.
type key struct {
	sender, series, micros int64
}

type ledger struct {
	mu     sync.Mutex
	acked  map[key]float64
	unsure map[key]float64 // sent, no answer
}

// server is one run of the program.
type server struct {
	cmd  *exec.Cmd
	url  string
	done chan error
}

func start(t *testing.T, store, walDir string) *server {
	t.Helper()
	cmd := exec.Command(*binary, "server", "--store", store, "--wal-dir", walDir, "--http", "127.0.0.1:0",
		"--flush-age", "300ms", "--compact-every", "1s", "--log-level", "warn")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &server{cmd: cmd, done: make(chan error, 1)}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the server did not get ready: %v", errors.Join(err, cmd.Wait()))
	}
	go func() { s.done <- cmd.Wait() }()
	for _, f := range strings.Fields(line) {
		if addr, ok := strings.CutPrefix(f, "http="); ok {
			s.url = "http://" + addr
		}
	}
	if s.url == "" {
		t.Fatalf("no address in %q", line)
	}
	return s
}

// load sends unique batches until the server is gone, and keeps the ledger.
func load(ctx context.Context, s *server, sender int64, next *int64, l *ledger) {
	client := remotewrite.Client{URL: s.url + "/api/v1/write", HTTP: &http.Client{Timeout: 10 * time.Second}}
	for ctx.Err() == nil {
		batch := map[key]float64{}
		var ts []prompb.TimeSeries
		for i := range int64(perBatch) {
			p := prompb.TimeSeries{Labels: []prompb.Label{
				{Name: "__name__", Value: fmt.Sprintf("load_%d", i%3)},
				{Name: "sender", Value: strconv.FormatInt(sender, 10)},
				{Name: "series", Value: strconv.FormatInt(i, 10)},
			}}
			for range perSeries {
				*next++
				v := rand.Float64()
				batch[key{sender, i, *next * 1000}] = v
				p.Samples = append(p.Samples, prompb.Sample{Timestamp: *next, Value: v})
			}
			ts = append(ts, p)
		}
		err := client.Send(ctx, ts)
		var status *remotewrite.StatusError
		l.mu.Lock()
		for k, v := range batch {
			switch {
			case err == nil:
				l.acked[k] = v
			case !errors.As(err, &status):
				l.unsure[k] = v
			}
		}
		l.mu.Unlock()
		if err != nil && !errors.As(err, &status) {
			return
		}
	}
}

// TestKill kills the server at random moments under load, restarts it each
// time, and reads back: acknowledged samples are there, no sample twice, and
// the table is sound.
func TestKill(t *testing.T) {
	if *binary == "" {
		t.Fatal("-binary is required; run `make crash`")
	}
	t.Logf("seed %d", *seed)
	rng := rand.New(rand.NewPCG(*seed, 0))
	store, walDir := "file://"+t.TempDir(), t.TempDir()
	l := &ledger{acked: map[key]float64{}, unsure: map[key]float64{}}
	next := make([]int64, senders)
	for i := range next {
		next[i] = 1_790_000_000_000
	}
	for round := range *rounds {
		s := start(t, store, walDir)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range senders {
			wg.Go(func() { load(ctx, s, int64(i), &next[i], l) })
		}
		after := time.Duration(200+rng.IntN(1800)) * time.Millisecond
		time.Sleep(after)
		if err := s.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-s.done
		wg.Wait()
		cancel()
		l.mu.Lock()
		t.Logf("kill %2d after %v: %d acknowledged, %d unanswered so far", round+1, after, len(l.acked), len(l.unsure))
		l.mu.Unlock()
	}
	s := start(t, store, walDir)
	compare(t, "after the last restart", readBack(t, s.url), l)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-s.done; err != nil {
		t.Fatalf("graceful stop: %v", err)
	}
	s = start(t, store, walDir)
	rows := readBack(t, s.url)
	compare(t, "from the table alone", rows, l)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-s.done; err != nil {
		t.Fatalf("graceful stop: %v", err)
	}
	// The load repeats no sample, so the files must hold as many rows as the
	// queries return: deduplication hides nothing.
	if stored := storedRows(t, store); stored != len(rows) {
		t.Errorf("%d rows in the files, %d after deduplication", stored, len(rows))
	}
	out, err := exec.Command(*binary, "check", "--deep", "--store", store).CombinedOutput()
	if err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	t.Logf("%d kills, %d acknowledged samples, %d rows stored, check ok", *rounds, len(l.acked), len(rows))
}

func compare(t *testing.T, when string, rows map[key][]float64, l *ledger) {
	t.Helper()
	lost, wrong, doubled, unknown := 0, 0, 0, 0
	for k, v := range l.acked {
		switch got := rows[k]; {
		case len(got) == 0:
			lost++
		case got[0] != v:
			wrong++
		}
	}
	for k, got := range rows {
		if len(got) > 1 {
			doubled++
		}
		_, a := l.acked[k]
		_, u := l.unsure[k]
		if !a && !u {
			unknown++
		}
	}
	if lost+wrong+doubled+unknown > 0 {
		t.Errorf("%s: of %d acknowledged samples %d lost, %d wrong; of %d stored %d doubled, %d never sent", when, len(l.acked), lost, wrong, len(rows), doubled, unknown)
	}
}

func readBack(t *testing.T, url string) map[key][]float64 {
	t.Helper()
	body := `{"query":"SELECT sender, series, epoch_us(\"timestamp\") AS us, value FROM metrics WHERE metric_name LIKE 'load_%'","format":"csv"}`
	resp, err := http.Post(url+"/api/v1/sql", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		msg, err := io.ReadAll(resp.Body)
		t.Fatalf("sql: status %d: %s %v", resp.StatusCode, msg, err)
	}
	r := csv.NewReader(resp.Body)
	if _, err := r.Read(); err != nil {
		t.Fatal(err)
	}
	rows := map[key][]float64{}
	for {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			return rows
		}
		if err != nil {
			t.Fatal(err)
		}
		var n [3]int64
		for i := range n {
			if n[i], err = strconv.ParseInt(rec[i], 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		v, err := strconv.ParseFloat(rec[3], 64)
		if err != nil {
			t.Fatal(err)
		}
		k := key{n[0], n[1], n[2]}
		rows[k] = append(rows[k], v)
	}
}

func storedRows(t *testing.T, store string) int {
	t.Helper()
	out, err := exec.Command(*binary, "files", "--json", "--store", store).Output()
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var f struct {
			Rows int `json:"rows"`
		}
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			return total
		} else if err != nil {
			t.Fatal(err)
		}
		total += f.Rows
	}
}
