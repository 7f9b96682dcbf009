package wal

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// datasync spares the inode's times, which fsync would write as well. A size
// that has grown is needed to read the bytes, so fdatasync writes it.
func datasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
