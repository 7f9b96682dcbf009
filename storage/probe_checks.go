package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// probeRacers is how many writers race: enough that a check-then-write
	// without a lock shows (log-protocol, section 9).
	probeRacers = 32
	// maxStoreClockError is how far an object's time may lie outside of the
	// store's clock around its writing, and how far that clock may go back.
	// Ages that matter are minutes and more.
	maxStoreClockError = 10 * time.Second
)

func (p *probe) checkReadAfterWrite(ctx context.Context) (string, error) {
	key := p.key("value")
	for _, value := range []string{"first", "the second, longer", "3"} {
		info, err := p.put(ctx, key, []byte(value))
		if err != nil {
			return "", err
		}
		data, read, err := p.get(ctx, key)
		if err != nil {
			return "", told("get after a put", err)
		}
		if string(data) != value {
			return "", lacks("a get after the put of %q returned %q", value, data)
		}
		if read.ETag != info.ETag || read.ETag == "" {
			return "", lacks("the put returned ETag %q, the get %q", info.ETag, read.ETag)
		}
	}
	if err := p.timed(OpDelete, func() error { return p.store.Delete(ctx, key) }); err != nil {
		return "", told("delete", err)
	}
	if _, _, err := p.get(ctx, key); err == nil {
		return "", lacks("the object can be read after its delete")
	} else if !errors.Is(err, ErrNotFound) {
		return "", told("get after a delete", err)
	}
	return "new, overwritten and deleted objects are seen at once", nil
}

func (p *probe) checkRangeRead(ctx context.Context) (string, error) {
	key := p.key("range")
	if _, err := p.put(ctx, key, []byte("0123456789")); err != nil {
		return "", err
	}
	read := func(offset, length int64) (data []byte, err error) {
		err = p.timed(OpGetRange, func() error {
			data, err = p.store.GetRange(ctx, key, offset, length)
			return err
		})
		return data, err
	}
	data, err := read(3, 4)
	if err != nil {
		return "", told("get range", err)
	}
	if string(data) != "3456" {
		return "", lacks("bytes 3 to 6 of 0123456789 came as %q", data)
	}
	if data, err := read(8, 4); err == nil {
		return "", lacks("a range beyond the end came as %q", data)
	} else if !errors.Is(err, ErrInvalidRange) {
		return "", told("get of a range beyond the end", err)
	}
	return "exact, also at the end", nil
}

func (p *probe) checkPutIfAbsent(ctx context.Context) (string, error) {
	key := p.key("race-absent")
	write := func(racer int) error {
		_, err := p.store.PutIfAbsent(ctx, key, []byte(strconv.Itoa(racer)))
		return err
	}
	if err := p.race(ctx, key, write, ErrAlreadyExists); err != nil {
		return "", err
	}
	if err := p.refuses(p.putIfAbsent(ctx, key, []byte("late")), ErrAlreadyExists, "a put-if-absent on an object that is there"); err != nil {
		return "", err
	}
	return fmt.Sprintf("one of %d racers won, each other was told so", probeRacers), nil
}

func (p *probe) checkPutIfMatch(ctx context.Context) (string, error) {
	key := p.key("race-match")
	info, err := p.put(ctx, key, []byte("start"))
	if err != nil {
		return "", err
	}
	write := func(racer int) error {
		_, err := p.store.PutIfMatch(ctx, key, []byte(strconv.Itoa(racer)), info.ETag)
		return err
	}
	if err := p.race(ctx, key, write, ErrPreconditionFailed); err != nil {
		return "", err
	}
	err = p.refuses(p.putIfMatch(ctx, key, []byte("late"), info.ETag), ErrPreconditionFailed, "a put-if-match on an older ETag")
	if err != nil {
		return "", err
	}
	err = p.refuses(p.putIfMatch(ctx, p.key("match-absent"), []byte("x"), info.ETag), ErrPreconditionFailed, "a put-if-match on no object")
	if err != nil {
		return "", err
	}
	_, current, err := p.get(ctx, key)
	if err != nil {
		return "", told("get", err)
	}
	if err := p.putIfMatch(ctx, key, []byte("next"), current.ETag); err != nil {
		return "", told("a put-if-match on the current ETag", err)
	}
	return fmt.Sprintf("one of %d racers won, each other was told so", probeRacers), nil
}

// refuses checks that a conditional put was refused by the typed error.
func (p *probe) refuses(err, want error, what string) error {
	switch {
	case err == nil:
		return lacks("%s was admitted", what)
	case errors.Is(err, want):
		return nil
	}
	return told(what, err)
}

// race lets all racers write at one moment, and checks that one was admitted,
// that the object is its, and that each other heard the typed error lost. Who
// heard "unknown" asks again, as a committer would, and must then hear it.
func (p *probe) race(ctx context.Context, key string, write func(racer int) error, lost error) error {
	var (
		errs  [probeRacers]error
		start = make(chan struct{})
		group sync.WaitGroup
	)
	for i := range probeRacers {
		group.Go(func() {
			<-start
			errs[i] = write(i)
		})
	}
	close(start)
	group.Wait()
	p.report.Requests += probeRacers

	var winners, unknown []int
	for i, err := range errs {
		switch {
		case err == nil:
			winners = append(winners, i)
		case errors.Is(err, ErrUnknownOutcome) && ctx.Err() == nil:
			unknown = append(unknown, i)
		case !errors.Is(err, lost):
			return told(fmt.Sprintf("racer %d of %d", i+1, probeRacers), err)
		}
	}
	for _, i := range unknown {
		p.report.Requests++
		err := write(i)
		switch {
		case err == nil:
			winners = append(winners, i)
		case !errors.Is(err, lost):
			return told(fmt.Sprintf("racer %d of %d, asking again", i+1, probeRacers), err)
		}
	}
	data, _, err := p.get(ctx, key)
	if err != nil {
		return told("get after the race", err)
	}
	holder, err := strconv.Atoi(string(data))
	if err != nil {
		return lacks("after the race the object holds %q, which no racer wrote", data)
	}
	// A racer whose outcome was unknown has won if the object is its.
	if slices.Contains(unknown, holder) && !slices.Contains(winners, holder) {
		winners = append(winners, holder)
	}
	switch {
	case len(winners) > 1:
		return lacks("%d of %d racers were admitted", len(winners), probeRacers)
	case len(winners) == 0:
		return lacks("all %d racers were told that they lost", probeRacers)
	case winners[0] != holder:
		return lacks("racer %d was admitted, but the object is racer %d's", winners[0]+1, holder+1)
	}
	return nil
}

// checkAtomicPut reads an object again and again while it is overwritten.
func (p *probe) checkAtomicPut(ctx context.Context) (string, error) {
	const states, size, maxReads = 6, 64 << 10, 14
	key := p.key("big")
	state := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, size+i) }
	begin := time.Now()
	if _, err := p.put(ctx, key, state(0)); err != nil {
		return "", err
	}
	// Some reads fall into each put, however fast the store is.
	ticker := time.NewTicker(max(time.Since(begin)/3, time.Microsecond))
	defer ticker.Stop()

	// The writer runs beside; this goroutine alone touches the report.
	written := make(chan error, 1)
	go func() {
		for i := 1; i < states; i++ {
			if _, err := p.store.Put(ctx, key, bytes.NewReader(state(i))); err != nil {
				written <- told("put", err)
				return
			}
		}
		written <- nil
	}()
	p.report.Requests += states - 1

	reads := 0
	read := func() error {
		reads++
		data, _, err := p.get(ctx, key)
		if err != nil {
			return told("get while the object is overwritten", err)
		}
		if i := len(data) - size; i < 0 || i >= states || !bytes.Equal(data, state(i)) {
			return lacks("a get while the object was overwritten returned %d bytes of no one state", len(data))
		}
		return nil
	}
	for {
		err := read()
		if err == nil && reads < maxReads {
			select {
			case <-ticker.C:
				continue
			case err = <-written:
			}
		} else {
			err = cmp.Or(err, <-written)
		}
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%d reads of an object under %d overwrites saw whole states", reads, states-1), nil
	}
}

// listNames are listed by the next three checks. Their byte order is not that
// of a walk through directories, nor that of letters, nor that of their
// writing.
var listNames = []string{"b", "a/b", "a-b", "a0", "B", "a.b", "a/a/c", "é"}

func (p *probe) checkListAfterPut(ctx context.Context) (string, error) {
	etags := map[string]ETag{}
	dir := p.dir + "list/"
	compare := func(after string) error {
		infos, err := p.list(ctx, dir, "")
		if err != nil {
			return err
		}
		seen := map[string]ETag{}
		for _, info := range infos {
			if _, ok := etags[info.Key]; !ok {
				return lacks("%s, %q was listed", after, strings.TrimPrefix(info.Key, dir))
			}
			seen[info.Key] = info.ETag
		}
		for key, etag := range etags {
			switch listed, ok := seen[key]; {
			case !ok:
				return lacks("%s, %q was not listed", after, strings.TrimPrefix(key, dir))
			case listed != etag:
				return lacks("%s, %q was listed with the ETag %s and not %s", after, strings.TrimPrefix(key, dir), listed, etag)
			}
		}
		return nil
	}
	gone := p.key("list/gone")
	for _, name := range append([]string{"gone"}, listNames...) {
		key := p.key("list/" + name)
		info, err := p.put(ctx, key, []byte(name))
		if err != nil {
			return "", err
		}
		etags[key] = info.ETag
		if err := compare("right after the put of " + strconv.Quote(name)); err != nil {
			return "", err
		}
	}
	info, err := p.put(ctx, p.key("list/b"), []byte("overwritten"))
	if err != nil {
		return "", err
	}
	etags[p.dir+"list/b"] = info.ETag
	if err := compare("right after an overwriting put"); err != nil {
		return "", err
	}
	if err := p.timed(OpDelete, func() error { return p.store.Delete(ctx, gone) }); err != nil {
		return "", told("delete", err)
	}
	delete(etags, gone)
	if err := compare("right after a delete"); err != nil {
		return "", err
	}
	return "puts, overwrites and deletes show in the next listing", nil
}

// listedNames lists what checkListAfterPut wrote.
func (p *probe) listedNames(ctx context.Context, startAfter string) ([]string, error) {
	dir := p.dir + "list/"
	infos, err := p.list(ctx, dir, startAfter)
	var names []string
	for _, info := range infos {
		names = append(names, strings.TrimPrefix(info.Key, dir))
	}
	return names, err
}

func (p *probe) checkListOrder(ctx context.Context) (string, error) {
	got, err := p.listedNames(ctx, "")
	if err != nil {
		return "", err
	}
	if want := sortedNames(); !slices.Equal(got, want) {
		return "", lacks("listed %q, byte order is %q", got, want)
	}
	return "ascending byte order of keys", nil
}

func (p *probe) checkStartAfter(ctx context.Context) (string, error) {
	names := sortedNames()
	// A key that exists, one that does not, and the last.
	for _, c := range []struct {
		startAfter string
		want       []string
	}{
		{names[3], names[4:]}, {names[3] + "!", names[4:]}, {names[len(names)-1], nil},
	} {
		got, err := p.listedNames(ctx, p.dir+"list/"+c.startAfter)
		if err != nil {
			return "", err
		}
		slices.Sort(got) // the order has a check of its own
		if !slices.Equal(got, c.want) {
			return "", lacks("behind %q listed %q and not %q", c.startAfter, got, c.want)
		}
	}
	return "a listing begins behind the given key", nil
}

func sortedNames() []string {
	names := slices.Clone(listNames)
	slices.Sort(names)
	return names
}

// startClock notes both clocks; whether the store's will do is found at the
// end, by checkClock.
func (p *probe) startClock(ctx context.Context) error {
	before := time.Now()
	now, err := p.now(ctx)
	if err != nil && ofCircumstances(err) {
		return fmt.Errorf("probe: %w", err)
	}
	if err != nil {
		return nil //nolint:nilerr // checkClock asks again, and says so
	}
	p.begin = before.Add(time.Since(before) / 2)
	p.storeBegin = now
	p.report.Skew = now.Sub(p.begin.Round(0))
	return nil
}

func (p *probe) checkClock(ctx context.Context) (string, error) {
	now, err := p.now(ctx)
	if err != nil {
		return "", told("the store tells no time", err)
	}
	if p.begin.IsZero() {
		return "", lacks("the store told no time when first asked")
	}
	if back := p.storeBegin.Sub(now); back > maxStoreClockError {
		return "", lacks("the store's clock went back by %v", back)
	}
	key := p.key("clock")
	if _, err := p.put(ctx, key, []byte("x")); err != nil {
		return "", err
	}
	_, info, err := p.get(ctx, key)
	if err != nil {
		return "", told("get", err)
	}
	after, err := p.now(ctx)
	if err != nil {
		return "", told("the store tells no time", err)
	}
	if info.ModTime.Before(now.Add(-maxStoreClockError)) || info.ModTime.After(after.Add(maxStoreClockError)) {
		return "", lacks("an object written at %v by the store's clock is dated %v", now.UTC(), info.ModTime.UTC())
	}
	// A clock that stands still, or runs at another rate than ours.
	if drift := now.Sub(p.storeBegin) - time.Since(p.begin); drift.Abs() > maxStoreClockError {
		return "", lacks("the store's clock gained %v on ours in %v", drift, time.Since(p.begin).Round(time.Millisecond))
	}
	return fmt.Sprintf("it is ours %+.3f s", p.report.Skew.Seconds()), nil
}
