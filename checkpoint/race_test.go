//go:build race

package checkpoint

import "flag"

// Under the race detector a pool forgets a part of what it holds, and the
// Parquet library makes its costly encoders anew: fewer rounds keep the suite
// short. The flag can still be given.
const raceEnabled = true

func init() {
	if err := flag.Set("rapid.checks", "20"); err != nil {
		panic(err)
	}
}
