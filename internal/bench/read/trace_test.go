package main

import (
	"testing"
	"time"
)

// TestRounds counts chains of requests, each of which begins after the one
// before.
func TestRounds(t *testing.T) {
	at := func(key string, begin, end int) call {
		return call{key: key, begin: time.UnixMilli(int64(begin)), end: time.UnixMilli(int64(end))}
	}
	for _, tc := range []struct {
		name string
		list []call
		want string
	}{
		{"none", nil, "0 requests in 0 rounds: "},
		{"beside each other", []call{at("t/_index/a", 0, 5), at("t/_index/b", 1, 6), at("t/_index/c", 4, 9)}, "3 requests in 1 rounds: index 3 in 1"},
		{
			"one after another", []call{at("t/_delta_log/1", 0, 5), at("t/_cardinal/pins/p", 5, 10), at("t/date=1/f", 10, 15), at("t/date=1/f", 15, 20)},
			"4 requests in 4 rounds: log 1 in 1, pins 1 in 1, footers 1 in 1, pages 1 in 1",
		},
		{
			"the longest chain counts", []call{at("t/_index/a", 0, 3), at("t/_index/a", 3, 6), at("t/_index/a", 6, 9), at("t/_index/b", 0, 8), at("t/_index/c", 0, 10)},
			"5 requests in 3 rounds: index 5 in 3",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := describe(tc.list); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}
