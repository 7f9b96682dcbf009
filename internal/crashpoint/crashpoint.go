// Package crashpoint names the moments at which a crash is worst, so that a
// test can end the process just there.
//
// It stands on nothing. In a normal build Here is empty and costs nothing. In
// one with the build tag crashpoints, the environment may arm one point:
//
//	CARDINAL_CRASHPOINT=name:n            the n-th pass (from 1) of the point ends the process
//	CARDINAL_CRASHPOINT=name:n:SIGUSR1    the n-th after that signal
//
// The process ends by SIGKILL: no deferred call runs, no buffer is written.
//
// It must never do anything else, and no program that is shipped has the tag.
package crashpoint

// Point is a moment of the write path.
type Point string

// The points, in the order in which samples pass them.
const (
	// WALWritten: the record is in the operating system's hands, not yet on
	// the disk, and nobody was answered.
	WALWritten Point = "wal-written"
	// WALSynced: the record is on the disk, and nobody was answered.
	WALSynced Point = "wal-synced"
	// Uploading: an object is on its way to the store and has no name there.
	Uploading Point = "uploading"
	// Uploaded: the chunk files are in the store, in no version of the table.
	Uploaded Point = "uploaded"
	// Committed: the version is in the store, and the writer has not heard so.
	Committed Point = "committed"
	// Truncating: the writer knows that the version is in the store, and the
	// log of samples still has what the version holds.
	Truncating Point = "truncating"
)
