//go:build race

package writer

const raceDetector = true
