package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"

	"cardinalsin/storage"
)

// List implements storage.Store. It reads a directory when it comes to it,
// and only those that can hold a key of the answer; of each it keeps the
// names in memory.
func (s *Store) List(ctx context.Context, prefix, startAfter string) iter.Seq2[storage.ObjectInfo, error] {
	return func(yield func(storage.ObjectInfo, error) bool) {
		l := &listing{store: s, ctx: ctx, prefix: prefix, startAfter: startAfter, yield: yield}
		if err := l.run(); err != nil && !errors.Is(err, errLeft) {
			yield(storage.ObjectInfo{}, fmt.Errorf("list %q: %w", prefix, err))
		}
	}
}

// errLeft: the consumer has broken off its loop.
var errLeft = errors.New("listing left")

type listing struct {
	store              *Store
	root               *os.Root
	ctx                context.Context // of this one listing
	prefix, startAfter string
	yield              func(storage.ObjectInfo, error) bool
}

func (l *listing) run() error {
	// All keys of the answer lie in the directory that the prefix names.
	dir := l.prefix[:strings.LastIndexByte(l.prefix, '/')+1]
	if dir != "" && checkKey(strings.TrimSuffix(dir, "/")) != nil {
		return nil //nolint:nilerr // no key begins so: the answer is empty
	}
	if err := l.ctx.Err(); err != nil {
		return err
	}
	root, err := l.store.openRoot()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever written
	}
	if err != nil {
		return typed(err)
	}
	l.root = root
	return l.walk(dir)
}

// walk lists a directory, whose name is empty or ends with a slash.
func (l *listing) walk(dir string) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	names, err := l.names(dir)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", dir, err)
	}
	for _, name := range names {
		key := dir + name
		if strings.HasSuffix(name, "/") {
			// The directory's keys begin with its name. They all come before
			// startAfter if the name does and startAfter is not among them.
			if key < l.startAfter && !strings.HasPrefix(l.startAfter, key) {
				continue
			}
			if err := l.walk(key); err != nil {
				return err
			}
			continue
		}
		if key <= l.startAfter {
			continue
		}
		if err := l.ctx.Err(); err != nil {
			return err
		}
		info, err := stat(l.root, key)
		if errors.Is(err, storage.ErrNotFound) {
			continue // deleted since the directory was read
		}
		if err != nil {
			return fmt.Errorf("object %q: %w", key, err)
		}
		if !l.yield(info, nil) {
			return errLeft
		}
	}
	return nil
}

// names returns what a directory holds that belongs to the answer, in the
// order of keys: a directory "a" as "a/", which sorts after "a-b" and "a.b".
func (l *listing) names(dir string) ([]string, error) {
	entries, err := l.entries(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		name := entry.Name()
		key := dir + name
		switch {
		case checkKey(key) != nil:
			continue // the store's own, or no key
		case entry.IsDir():
			name += "/"
		case !entry.Type().IsRegular():
			continue
		}
		// The walk began in the directory that the prefix names, so a
		// directory below it is never shorter than the prefix.
		if strings.HasPrefix(dir+name, l.prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// entries reads one directory while nobody renames a file over another in it.
func (l *listing) entries(dir string) ([]fs.DirEntry, error) {
	for {
		unlock, err := l.store.lockShared(l.ctx, l.root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		locked := err == nil
		entries, err := l.read(dir)
		if locked {
			unlock()
			return entries, err
		}
		// With no lock file nothing has ever been replaced here, unless the
		// first to do so came just now.
		if _, statErr := l.root.Stat(lockFile); errors.Is(statErr, fs.ErrNotExist) {
			return entries, err
		}
	}
}

func (l *listing) read(dir string) ([]fs.DirEntry, error) {
	if dir == "" {
		dir = "."
	}
	d, err := l.root.Open(dir)
	if err == nil {
		var entries []fs.DirEntry
		entries, err = d.ReadDir(-1)
		err = errors.Join(err, d.Close())
		if err == nil {
			return entries, nil
		}
	}
	if err := absent(err); !errors.Is(err, storage.ErrNotFound) {
		return nil, err
	}
	return nil, nil // no such directory, so no keys
}
