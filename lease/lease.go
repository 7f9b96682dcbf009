// Package lease keeps expiring claims as objects: the pins of readers and the
// claims on jobs. Both are timed by the store's clock alone.
//
// It stands on layer 1, above storage. An object is created by put-if-absent
// and changed by put-if-match; its age is its modification time as the store
// tells it. A claim on a job saves work and is never what makes a result
// correct; a pin is what keeps vacuum from the files of a version
// (log-protocol 5 to 7).
//
// A pin, <table>/_cardinal/pins/<uuid>.json:
//
//	min_version  number: files of this version and all later ones are in use
//	holder       string: host and process, for people
//	seq          number: counts the writes of this object, from 1, so that no
//	             two have the same bytes: S3 makes the ETag of them, and a
//	             revocation that saw the one must lose against the other
//	revoked      true once vacuum has taken the pin away
//
// A claim, <table>/_cardinal/leases/<job>.json:
//
//	holder       string: host and process, for people
//	token        string: UUID of this claim
//	ttl_ms       number: for how long after its last write it holds
//	seq          number: as in a pin
//
// INVARIANT: while Hold.Check returns nil, no vacuum that keeps to TTL and
// Grace has treated the held version as unpinned.
package lease

import (
	"errors"
	"fmt"
	"time"
)

// TTL is how long a reader may trust its pin after it sent the last
// acknowledged write of it. Renewals are due every third of it.
const TTL = 2 * time.Minute

// Grace is what others add to TTL before they take a pin or a claim for
// expired: modification times have a resolution of a second, and the holder
// measures the same span on another clock.
const Grace = time.Minute

// Conditions a caller branches on.
var (
	// ErrPinLost: the pin was not renewed in time, or was revoked. What was
	// read under it may be incomplete and must not be returned.
	ErrPinLost = errors.New("pin lost")
	// ErrClaimHeld: somebody else holds the claim; see HeldError.
	ErrClaimHeld = errors.New("claim is held")
	// ErrClaimLost: somebody else has taken the claim over.
	ErrClaimLost = errors.New("claim lost")
)

// HeldError says who holds a claim.
type HeldError struct {
	Key, Holder string
	Age         time.Duration // since its last write, by the store's clock
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s: %v by %s since %v", e.Key, ErrClaimHeld, e.Holder, e.Age.Round(time.Second))
}

// Is makes errors.Is(err, ErrClaimHeld) hold.
func (e *HeldError) Is(target error) bool { return target == ErrClaimHeld }

// maxObjectBytes bounds what is read as a pin or a claim; ours take 200 bytes
// and the holder's name.
const maxObjectBytes = 16 << 10

// instant is a moment by both clocks of this machine: the monotonic one stands
// still while the machine is suspended, and the wall clock may be set.
type instant struct {
	mono time.Duration
	wall time.Time // without a monotonic reading
}

// since is the longer of the times that the two clocks saw go by: a machine
// that was suspended, or whose clock was set back, must not take its lease for
// fresh.
func (i instant) since(earlier instant) time.Duration {
	return max(i.mono-earlier.mono, i.wall.Sub(earlier.wall))
}

// clockOf reads both clocks from one source of times.
func clockOf(now func() time.Time) func() instant {
	base := now()
	return func() instant {
		t := now()
		return instant{mono: t.Sub(base), wall: t.Round(0)}
	}
}
