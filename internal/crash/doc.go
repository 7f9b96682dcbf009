// Package crash ends the real programs with SIGKILL at the moments that hurt
// most, takes their store away while they work, and checks that what they
// acknowledged is stored, once: samples, exemplars and metadata, under all
// write protocols at once.
//
// It stands outside the layers and knows the programs from outside alone. The
// load repeats nothing unless it says so, hence a row that occurs twice was
// stored twice. Its tests run with the build tag crash, as `make crash` does:
// they take minutes, and the programs that they kill are built with the tag
// crashpoints.
package crash
