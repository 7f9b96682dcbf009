// Package harness is what our benchmarks share: named steps, one line a
// measurement, targets that are counted, and processes – peers' servers, and
// this program itself as a child whose memory can be told.
//
// It stands above everything, is imported by benchmarks only, and prints:
//
//	bench <name> ours=… peer=… ratio=…
//
// ratio being how many times better ours is, above 1 where we are ahead.
package harness

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// Step is one benchmark of a command.
type Step struct {
	Name string
	Run  func(context.Context) error
}

// Report prints measurements and counts how their targets fared. It is used by
// one goroutine.
type Report struct {
	Out io.Writer
	// Only names the steps to run, separated by commas; default all.
	Only string

	met, missed int
}

// Run runs the steps in turn, ends with the first that fails, and prints how
// many targets were met.
func (r *Report) Run(ctx context.Context, steps ...Step) error {
	for _, s := range steps {
		if r.Only != "" && !strings.Contains(","+r.Only+",", ","+s.Name+",") {
			continue
		}
		begin := time.Now()
		if err := s.Run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		fmt.Fprintf(r.Out, "  (%s took %.0f s)\n", s.Name, time.Since(begin).Seconds())
	}
	fmt.Fprintf(r.Out, "targets: %d met, %d missed\n", r.met, r.missed)
	return nil
}

// Line prints a measurement; ratio is how many times better ours is, 0 where
// nothing is compared.
func (r *Report) Line(name, ours, peer string, ratio float64) {
	text := "-"
	if ratio != 0 {
		text = fmt.Sprintf("%.2f", ratio)
	}
	fmt.Fprintf(r.Out, "bench %s ours=%s peer=%s ratio=%s\n", name, ours, peer, text)
}

// Note prints a line beneath a measurement.
func (r *Report) Note(format string, args ...any) {
	fmt.Fprintf(r.Out, "  %s\n", fmt.Sprintf(format, args...))
}

// Target notes whether a target was met.
func (r *Report) Target(text string, met bool) {
	word := "met"
	if met {
		r.met++
	} else {
		r.missed++
		word = "MISSED"
	}
	r.Note("target %s: %s", text, word)
}

// Millis writes a duration in milliseconds, with as many decimals as matter.
func Millis(d time.Duration) string {
	decimals := 0
	switch {
	case d < time.Millisecond:
		decimals = 3
	case d < time.Second:
		decimals = 1
	}
	return fmt.Sprintf("%.*fms", decimals, d.Seconds()*1e3)
}
