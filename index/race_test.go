//go:build race

package index

// Under the race detector everything takes several times as long.
const raceEnabled = true
