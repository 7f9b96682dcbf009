package local

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// openBeneath opens a file for reading by one system call, where os.Root makes
// one or two for each folder on the way; a reader looks for the next commit
// before each query. known is false where it cannot tell, and os.Root must: on
// a kernel before 5.6, and for a path that leaves dir.
func openBeneath(dir *os.File, name string) (f *os.File, known bool, err error) {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		// O_NONBLOCK: to open a FIFO would wait for its writer.
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case err == nil:
		return os.NewFile(uintptr(fd), name), true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, true, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return nil, false, nil
}
