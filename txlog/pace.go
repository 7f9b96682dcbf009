package txlog

import "time"

const (
	// politeFor is how many versions in a row a process makes way after, once
	// it has seen one of another's.
	politeFor = 16
	// airEvery is after how many versions in a row it makes way although it
	// has seen nobody: whoever never wins cannot be seen.
	airEvery = 32
	// maxPause bounds each pause.
	maxPause = 250 * time.Millisecond
)

// pace keeps a busy process from shutting others out of the log. Whoever wins
// a version can offer the next one at once; who lost must first read what won,
// which takes a round trip, and so comes too late every time. So a winner
// pauses for one or two round trips, in which transactions gather for its next
// entry. Log.mu guards it.
type pace struct {
	own       int           // versions of ours in a row, none of another's between
	polite    int           // versions of ours yet to come after which to make way
	last      string        // txnId of the last one
	roundTrip time.Duration // of the last conditional put that won
	free      time.Time     // not before that the next entry goes out
}

// won notes a version of ours; jitter is at least 0 and less than 1.
func (p *pace) won(s *Snapshot, roundTrip time.Duration, now time.Time, jitter float64) {
	p.own++
	p.last, p.roundTrip = s.txnID, roundTrip
	pause := 0.0
	switch {
	case p.polite > 0:
		p.polite--
		pause = 1.2 + jitter
	case p.own%airEvery == 0:
		// Others may be reading what we commit, a version a round trip: two to
		// find that no more follows and to offer theirs, and some air.
		pause = 2.5 + jitter
	}
	p.free = now.Add(min(time.Duration(float64(p.roundTrip)*pause), maxPause))
}

// saw notes that a version came after the last one known.
func (p *pace) saw(s *Snapshot) {
	if s.txnID != p.last {
		p.own, p.polite = 0, politeFor
	}
}

// backoff is how long at most to step aside after a lost race. It does not
// grow: whoever has lost more often shall not wait longer than others.
func (p *pace) backoff() time.Duration {
	return min(max(p.roundTrip, time.Millisecond), maxPause)
}
