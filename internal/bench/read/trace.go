package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cardinalsin/storage"
	"cardinalsin/storage/meter"
)

// call is one request as the store saw it.
type call struct {
	key        string
	write      bool
	begin, end time.Time
	bytes      int64
}

// calls are the requests of one question.
type calls struct {
	mu   sync.Mutex // guards list
	list []call
}

// slow lets a request that has ended take longer, and notes it.
func (c *calls) slow(e meter.Event) {
	if e.Op == storage.OpNow { // which earlier answers carry
		return
	}
	begin := time.Now().Add(-e.Time)
	time.Sleep(requestDelay)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, call{e.Key, e.Op.Writes(), begin, time.Now(), e.Bytes})
}

// take returns the requests since the last take, in the order of their ends.
func (c *calls) take() []call {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.list
	c.list = nil
	return out
}

// kinds of requests in the order in which they are told.
var kinds = []string{"log", "pins", "index", "footers", "pages"}

// kindsOf says what each request was for. Of a data file the first range is
// taken for its footer, which is where reading it begins.
func kindsOf(list []call) []string {
	out := make([]string, len(list))
	seen := map[string]bool{}
	for i, c := range list {
		switch {
		case strings.Contains(c.key, "/_delta_log/"):
			out[i] = "log"
		case strings.Contains(c.key, "/_cardinal/"):
			out[i] = "pins"
		case strings.Contains(c.key, "/_index/"):
			out[i] = "index"
		case !seen[c.key]:
			seen[c.key] = true
			out[i] = "footers"
		default:
			out[i] = "pages"
		}
	}
	return out
}

// rounds is the length of the longest chain of requests of which each began
// after the one before it had ended: what a slower store multiplies.
func rounds(list []call) int {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b call) int { return a.end.Compare(b.end) })
	n := make([]int, len(list)) // of the longest chain up to each
	most := 0
	for i := range list {
		n[i] = 1
		for k := range i {
			if !list[k].end.After(list[i].begin) {
				n[i] = max(n[i], n[k]+1)
			}
		}
		most = max(most, n[i])
	}
	return most
}

// describe tells how many requests there were, in how many rounds, and what
// for.
func describe(list []call) string {
	of := map[string][]call{}
	for i, kind := range kindsOf(list) {
		of[kind] = append(of[kind], list[i])
	}
	var parts []string
	for _, kind := range kinds {
		if n := len(of[kind]); n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d in %d", kind, n, rounds(of[kind])))
		}
	}
	return fmt.Sprintf("%d requests in %d rounds: %s", len(list), rounds(list), strings.Join(parts, ", "))
}
