//go:build race

package compactor

// Under the race detector everything takes several times as long.
const raceEnabled = true
