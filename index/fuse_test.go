package index

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// fuseFilter is a binary fuse filter with fingerprints of 8 bits, after Graf and
// Lemire, Binary Fuse Filters (2022): BenchmarkStructures measures what a
// filter for each file would take.
type fuseFilter struct {
	seed        uint64
	length      uint32 // of a segment, a power of two
	starts      uint32 // where first positions can lie
	fingerprint []uint8
}

func (f *fuseFilter) at(key uint64) (print uint8, at [3]uint32) {
	h := mix(key + f.seed)
	hi, _ := bits.Mul64(h, uint64(f.starts))
	mask := f.length - 1
	at[0] = uint32(hi)
	at[1] = (at[0] + f.length) ^ uint32(h>>18)&mask
	at[2] = (at[0] + 2*f.length) ^ uint32(h)&mask
	return uint8(h ^ h>>32), at
}

func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func (f *fuseFilter) has(key uint64) bool {
	print, at := f.at(key)
	return print == f.fingerprint[at[0]]^f.fingerprint[at[1]]^f.fingerprint[at[2]]
}

var errFuse = errors.New("no seed makes a filter of these keys")

// newFuse makes the filter of some keys, all different.
func newFuse(keys []uint64) (*fuseFilter, error) {
	n := float64(max(len(keys), 2))
	f := &fuseFilter{length: min(uint32(1)<<int(math.Floor(math.Log(n)/math.Log(3.33)+2.25)), 1<<18)}
	capacity := uint32(math.Round(n * math.Max(1.125, 0.875+0.25*math.Log(1e6)/math.Log(n))))
	segments := max((capacity+f.length-1)/f.length, 3) - 2
	f.starts = segments * f.length
	f.fingerprint = make([]uint8, (segments+2)*f.length)
	random := rand.New(rand.NewPCG(1, uint64(len(keys))))
	type slot struct {
		keys  uint64 // xor of those that lie here
		count uint32
	}
	type taken struct {
		key uint64
		at  uint32
	}
	for range 100 {
		f.seed = random.Uint64()
		slots := make([]slot, len(f.fingerprint))
		for _, k := range keys {
			_, at := f.at(k)
			for _, i := range at {
				slots[i].keys ^= k
				slots[i].count++
			}
		}
		var alone []uint32
		for i := range slots {
			if slots[i].count == 1 {
				alone = append(alone, uint32(i))
			}
		}
		order := make([]taken, 0, len(keys))
		for len(alone) > 0 {
			i := alone[len(alone)-1]
			alone = alone[:len(alone)-1]
			if slots[i].count != 1 {
				continue
			}
			k := slots[i].keys
			order = append(order, taken{k, i})
			_, at := f.at(k)
			for _, j := range at {
				slots[j].keys ^= k
				if slots[j].count--; slots[j].count == 1 {
					alone = append(alone, j)
				}
			}
		}
		if len(order) < len(keys) {
			continue
		}
		for n := len(order) - 1; n >= 0; n-- {
			print, at := f.at(order[n].key)
			f.fingerprint[order[n].at] = 0
			for _, j := range at {
				if j != order[n].at {
					print ^= f.fingerprint[j]
				}
			}
			f.fingerprint[order[n].at] = print
		}
		return f, nil
	}
	return nil, errFuse
}

// TestFuse: the filter has all its keys, about one in 256 of others, and the
// size that its authors state.
func TestFuse(t *testing.T) {
	for _, n := range []int{0, 1, 2, 10, 1000, 100_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			random := rand.New(rand.NewPCG(7, 7))
			keys := make([]uint64, n)
			for i := range keys {
				keys[i] = random.Uint64()
			}
			f, err := newFuse(keys)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				if !f.has(k) {
					t.Fatalf("%d is missing", k)
				}
			}
			wrong := 0
			for range 100_000 {
				if f.has(random.Uint64()) {
					wrong++
				}
			}
			if n > 0 && (wrong < 200 || wrong > 600) {
				t.Errorf("%d of 100000 others are found", wrong)
			}
			if n == 100_000 && len(f.fingerprint) > n*125/100 {
				t.Errorf("%d bytes", len(f.fingerprint))
			}
		})
	}
}
