//go:build race

package prom

// raceEnabled: the race detector slows upstream's suite tenfold.
const raceEnabled = true
