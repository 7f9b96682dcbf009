package s3

import (
	"testing"
	"time"
)

// The estimate stays within what each response allows, narrows to the true
// offset, and follows a clock that is set.
func TestClockEstimate(t *testing.T) {
	const rtt = 40 * time.Millisecond
	local := present()
	later := func(d time.Duration) instant { return instant{local.monotonic.Add(d), local.wall.Add(d)} }
	type response struct {
		after  time.Duration // since the first
		offset time.Duration // the server's clock minus ours
	}
	for _, c := range []struct {
		name      string
		responses []response
		within    time.Duration // of the last offset, afterwards
	}{
		{"one response", []response{{0, time.Hour + 700*time.Millisecond}}, time.Second + rtt},
		{"many narrow it", []response{
			{0, time.Hour}, {130 * time.Millisecond, time.Hour}, {370 * time.Millisecond, time.Hour},
			{590 * time.Millisecond, time.Hour}, {810 * time.Millisecond, time.Hour}, {985 * time.Millisecond, time.Hour},
			{1020 * time.Millisecond, time.Hour},
		}, 250 * time.Millisecond},
		{"set forward", []response{{0, 0}, {time.Second, time.Minute}}, time.Second + rtt},
		{"set back", []response{{0, 0}, {time.Second, -time.Minute}}, time.Second + rtt},
		{"drifts", []response{{0, 0}, {time.Hour, 3 * time.Second}, {2 * time.Hour, 6 * time.Second}}, time.Second + rtt},
	} {
		t.Run(c.name, func(t *testing.T) {
			var k clock
			var last response
			for _, r := range c.responses {
				written := later(r.after - rtt/2).wall.Add(r.offset)
				k.observe(written.Truncate(time.Second), later(r.after-rtt), later(r.after))
				last = r
			}
			at := later(last.after)
			got, ok := k.at(at)
			if !ok {
				t.Fatal("no estimate")
			}
			if off := got.Sub(at.wall) - last.offset; off.Abs() > c.within {
				t.Errorf("off by %v, want within %v", off, c.within)
			}
		})
	}
}

func TestClockAfterSleep(t *testing.T) {
	var k clock
	if _, ok := k.now(); ok {
		t.Error("a clock that was never told the time has an estimate")
	}
	begin := present()
	k.observe(begin.wall, begin, begin)
	for _, c := range []struct {
		monotonic, wall time.Duration
		want            bool
	}{
		{0, 0, true}, {time.Hour, time.Hour, true},
		{time.Second, time.Hour, false},  // asleep, or the wall clock was set
		{time.Hour, -time.Minute, false}, // set back
	} {
		at := instant{begin.monotonic.Add(c.monotonic), begin.wall.Add(c.wall)}
		if _, ok := k.at(at); ok != c.want {
			t.Errorf("after %v, by the wall clock %v: %v", c.monotonic, c.wall, ok)
		}
	}
	// The next response starts anew.
	at := instant{begin.monotonic.Add(time.Second), begin.wall.Add(time.Hour)}
	k.observe(at.wall, at, at)
	if got, ok := k.at(at); !ok || !got.Equal(at.wall) {
		t.Errorf("%v, %v", got, ok)
	}
}

func TestValidPart(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "a/b": "a/b", "a\x00b": "a", "\xff": "", "é\xc3": "é", "a\u0085": "a", "x\uffff": "x", "\ufffd": "\ufffd", "日本": "日本",
	} {
		if got := validPart(in); got != want {
			t.Errorf("validPart(%q) = %q, want %q", in, got, want)
		}
	}
}
