package otlp

import (
	"fmt"
	"strings"

	"cardinalsin/ingest"
)

// maxMessages bounds the different reasons that one answer spells out.
const maxMessages = 10

// report is what the client is told of data points that were left out, and of
// what was kept other than it was sent.
type report struct {
	points   int // of the request
	rejected map[ingest.Reason]int
	first    error // of the rejections
	reasons  messages
	notes    messages
	// exemplars are not data points, and counted by themselves.
	exemplars map[ingest.Reason]int
}

// messages counts texts, the first few by themselves.
type messages struct {
	order  []string
	counts map[string]int
	others int
}

func (m *messages) add(text string, n int) {
	if _, known := m.counts[text]; !known {
		if len(m.order) == maxMessages {
			m.others += n
			return
		}
		if m.counts == nil {
			m.counts = map[string]int{}
		}
		m.order = append(m.order, text)
	}
	m.counts[text] += n
}

func (m *messages) write(b *strings.Builder) {
	for _, text := range m.order {
		fmt.Fprintf(b, "; %d: %s", m.counts[text], text)
	}
	if m.others > 0 {
		fmt.Fprintf(b, "; %d for other reasons", m.others)
	}
}

// reject notes that n data points of a metric cannot be kept because of err.
func (r *report) reject(metric string, n int, err error) {
	if n == 0 {
		return
	}
	if r.rejected == nil {
		r.rejected = map[ingest.Reason]int{}
		r.first = err
	}
	reason, _ := ingest.Classify(err)
	r.rejected[reason] += n
	r.reasons.add(fmt.Sprintf("metric %.200q: %v", metric, err), n)
}

// note tells of n things that were kept as well as possible.
func (r *report) note(n int, text string) {
	if n > 0 {
		r.notes.add(text, n)
	}
}

// rejectExemplar notes that an exemplar cannot be kept; its data point is.
func (r *report) rejectExemplar(err error) {
	if r.exemplars == nil {
		r.exemplars = map[ingest.Reason]int{}
	}
	reason, _ := ingest.Classify(err)
	r.exemplars[reason]++
	r.note(1, fmt.Sprintf("exemplar left out: %v", err))
}

// left is how many data points were left out.
func (r *report) left() int {
	n := 0
	for _, k := range r.rejected {
		n += k
	}
	return n
}

// String is the error_message of the answer, "" when there is nothing to tell.
func (r *report) String() string {
	var b strings.Builder
	if n := r.left(); n > 0 {
		fmt.Fprintf(&b, "%d of %d data points were not kept", n, r.points)
		r.reasons.write(&b)
	}
	if len(r.notes.order) > 0 {
		if b.Len() > 0 {
			b.WriteString(". ")
		}
		b.WriteString("Kept with a difference")
		r.notes.write(&b)
	}
	return b.String()
}
