package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Property names one thing that the log relies on (log-protocol, section 9).
type Property string

// The properties that Probe looks at, in its order.
const (
	PropertyReadAfterWrite Property = "read-after-write"
	PropertyRangeRead      Property = "range-read"
	PropertyPutIfAbsent    Property = "put-if-absent"
	PropertyPutIfMatch     Property = "put-if-match"
	PropertyAtomicPut      Property = "atomic-put"
	PropertyListAfterPut   Property = "list-after-put"
	PropertyListOrder      Property = "list-order"
	PropertyStartAfter     Property = "start-after"
	PropertyClock          Property = "clock"
)

// PropertyError says which property a store lacks, and how that showed. It is
// ErrStoreRefused.
type PropertyError struct {
	Property Property
	Detail   string
}

func (e *PropertyError) Error() string {
	return fmt.Sprintf("%v: %s: %s", ErrStoreRefused, e.Property, e.Detail)
}

// Unwrap returns ErrStoreRefused.
func (e *PropertyError) Unwrap() error { return ErrStoreRefused }

// ProbeReport is what Probe found.
type ProbeReport struct {
	Properties []PropertyResult // in the order in which they were tried
	// Skew is the store's clock minus ours, at the beginning.
	Skew     time.Duration
	Requests int // all calls, those of the races and the cleaning up included
	// Latencies are of the calls that were alone on their way.
	Latencies map[Op]Latency
}

// PropertyResult is one property, held or not.
type PropertyResult struct {
	Property Property
	Held     bool
	Detail   string // what was seen, in a few words
}

// Latency sums up calls of one kind.
type Latency struct {
	Calls          int
	Min, Mean, Max time.Duration
}

// Probe tries out on the store itself whether it has the properties that the
// log relies on: a store may pass every sequential test and still admit two
// racers. It writes a few small objects below prefix (empty, or ending with a
// slash) and removes them again; about 140 requests, 64 of them in two races.
//
// The error is a *PropertyError for each property that the store lacks, which
// refuses it. Any other error (ErrPermission, ErrUnavailable, ErrNoStore …)
// says that the probe could not be made, and nothing about the store. The
// report holds what was found up to then.
func Probe(ctx context.Context, s Store, prefix string) (ProbeReport, error) {
	p := &probe{store: s, dir: prefix + "_cardinal/probe/" + rand.Text() + "/"}
	p.report.Latencies = map[Op]Latency{}
	if err := ValidateKey(p.dir + "k"); err != nil {
		return ProbeReport{}, fmt.Errorf("probe below %q: %w", prefix, err)
	}
	err := errors.Join(p.run(ctx), p.cleanUp(ctx))
	return p.report, err
}

// probe is one run.
type probe struct {
	store   Store
	dir     string
	report  ProbeReport
	written []string // keys that may exist

	begin      time.Time // by our clock
	storeBegin time.Time // by the store's
}

// cleanUpTime bounds the removal of what the probe wrote when its own context
// has ended.
const cleanUpTime = 30 * time.Second

// lack is the finding of a check that a property does not hold.
type lack struct{ detail string }

func (l *lack) Error() string { return l.detail }

func lacks(format string, args ...any) error { return &lack{fmt.Sprintf(format, args...)} }

func (p *probe) run(ctx context.Context) error {
	if err := p.startClock(ctx); err != nil {
		return err
	}
	var found []error
	for _, c := range []struct {
		property Property
		check    func(context.Context) (string, error)
	}{
		{PropertyReadAfterWrite, p.checkReadAfterWrite},
		{PropertyRangeRead, p.checkRangeRead},
		{PropertyPutIfAbsent, p.checkPutIfAbsent},
		{PropertyPutIfMatch, p.checkPutIfMatch},
		{PropertyAtomicPut, p.checkAtomicPut},
		{PropertyListAfterPut, p.checkListAfterPut},
		{PropertyListOrder, p.checkListOrder},
		{PropertyStartAfter, p.checkStartAfter},
		{PropertyClock, p.checkClock},
	} {
		detail, err := c.check(ctx)
		var l *lack
		switch {
		case errors.As(err, &l):
			p.report.Properties = append(p.report.Properties, PropertyResult{Property: c.property, Detail: l.detail})
			found = append(found, &PropertyError{Property: c.property, Detail: l.detail})
		case err != nil:
			return errors.Join(append(found, fmt.Errorf("probe %s: %w", c.property, err))...)
		default:
			p.report.Properties = append(p.report.Properties, PropertyResult{Property: c.property, Held: true, Detail: detail})
		}
	}
	return errors.Join(found...)
}

// cleanUp removes every object that may be there, whether the probe ended
// well or not.
func (p *probe) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	for _, key := range p.written {
		err := p.timed(OpDelete, func() error { return p.store.Delete(ctx, key) })
		if err != nil {
			return fmt.Errorf("probe: clean up: %w", err)
		}
	}
	return nil
}

// told turns the error of a call that should have succeeded into a finding,
// unless it is of circumstances.
func told(what string, err error) error {
	if ofCircumstances(err) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return lacks("%s: %v", what, err)
}

// ofCircumstances reports errors that say nothing about a store's properties.
func ofCircumstances(err error) bool {
	for _, circumstance := range []error{
		context.Canceled, context.DeadlineExceeded,
		ErrPermission, ErrNoStore, ErrUnavailable, ErrUnknownOutcome, ErrFull, ErrInvalidKey,
	} {
		if errors.Is(err, circumstance) {
			return true
		}
	}
	return false
}

// timed counts a call and measures it.
func (p *probe) timed(op Op, call func() error) error {
	begin := time.Now()
	err := call()
	took := time.Since(begin)
	p.report.Requests++
	l := p.report.Latencies[op]
	if l.Calls == 0 || took < l.Min {
		l.Min = took
	}
	l.Max = max(l.Max, took)
	l.Mean += (took - l.Mean) / time.Duration(l.Calls+1)
	l.Calls++
	p.report.Latencies[op] = l
	return err
}

func (p *probe) key(name string) string {
	key := p.dir + name
	if !slices.Contains(p.written, key) {
		p.written = append(p.written, key)
	}
	return key
}

func (p *probe) put(ctx context.Context, key string, data []byte) (info ObjectInfo, err error) {
	err = p.timed(OpPut, func() error {
		info, err = p.store.Put(ctx, key, bytes.NewReader(data))
		return err
	})
	if err != nil {
		return info, told("put", err)
	}
	return info, nil
}

func (p *probe) get(ctx context.Context, key string) (data []byte, info ObjectInfo, err error) {
	err = p.timed(OpGet, func() error {
		data, info, err = p.store.Get(ctx, key)
		return err
	})
	return data, info, err
}

func (p *probe) putIfAbsent(ctx context.Context, key string, data []byte) error {
	return p.timed(OpPutIfAbsent, func() error {
		_, err := p.store.PutIfAbsent(ctx, key, data)
		return err
	})
}

func (p *probe) putIfMatch(ctx context.Context, key string, data []byte, etag ETag) error {
	return p.timed(OpPutIfMatch, func() error {
		_, err := p.store.PutIfMatch(ctx, key, data, etag)
		return err
	})
}

func (p *probe) list(ctx context.Context, prefix, startAfter string) (infos []ObjectInfo, err error) {
	err = p.timed(OpList, func() error {
		infos, err = Collect(p.store.List(ctx, prefix, startAfter))
		return err
	})
	if err != nil {
		return nil, told("list", err)
	}
	return infos, nil
}

func (p *probe) now(ctx context.Context) (now time.Time, err error) {
	err = p.timed(OpNow, func() error {
		now, err = p.store.Now(ctx)
		return err
	})
	return now, err
}
