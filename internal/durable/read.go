package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrForeign says that what lies where a file is looked for is none that WriteFile wrote.
var ErrForeign = errors.New("no program of ours wrote that")

// ReadFile reads a file that WriteFile wrote, of at most limit bytes. It waits for
// nobody: a pipe, socket or device is refused. Where root reads in a directory of
// another user's, who may have put there what he likes, a symbolic link is refused too,
// and so is a hard link to a file that is not his. A symbolic link that leads nowhere is no missing
// file, but refused: fs.ErrNotExist says that the name is free.
func ReadFile(path string, limit int64) ([]byte, error) {
	flags := os.O_RDONLY | syscall.O_NONBLOCK
	owner, theirs := ownedByOther(filepath.Dir(path))
	if theirs {
		flags |= syscall.O_NOFOLLOW
	}
	f, err := os.OpenFile(path, flags, 0)
	switch {
	case errors.Is(err, syscall.ELOOP) && theirs:
		return nil, fmt.Errorf("%s is a symbolic link: %w", path, ErrForeign)
	case errors.Is(err, syscall.ENXIO):
		return nil, fmt.Errorf("%s is a socket or device: %w", path, ErrForeign)
	case errors.Is(err, fs.ErrNotExist) && isThere(path):
		return nil, fmt.Errorf("%s is a link that leads nowhere: %w", path, ErrForeign)
	case err != nil:
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file but %s: %w", path, kind(fi.Mode()), ErrForeign)
	case theirs && linked(fi, owner):
		return nil, fmt.Errorf("%s: %w: %w", path, errLinked, ErrForeign)
	case fi.Size() > limit:
		return nil, tooLong(path, limit)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = tooLong(path, limit)
	}
	return b, err
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// CheckDir says what lies at path if that is no directory that can be listed; nil: such a one is
// there, or nothing.
func CheckDir(path string) error {
	l, err := os.Lstat(path)
	if err != nil {
		return nil // who makes it or opens it says what is wrong
	}
	switch fi, err := os.Stat(path); {
	case err != nil && l.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a link that leads nowhere: %w", path, ErrForeign)
	case err == nil && !fi.IsDir():
		return fmt.Errorf("%s is no directory but %s: %w", path, kind(fi.Mode()), ErrForeign)
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return d.Close()
}

func tooLong(path string, limit int64) error {
	return fmt.Errorf("%s is longer than %d bytes: %w", path, limit, ErrForeign)
}

var errLinked = errors.New("it is a link to another user's file")

// linked reports whether a file is a hard link to one that is not the owner's.
func linked(fi fs.FileInfo, owner uint32) bool {
	st := fi.Sys().(*syscall.Stat_t)
	return st.Uid != owner && st.Nlink > 1
}

// ownedByOther returns the owner of dir, and whether we are root and he is not.
func ownedByOther(dir string) (owner uint32, theirs bool) {
	if os.Geteuid() != 0 {
		return 0, false
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return 0, false
	}
	owner = fi.Sys().(*syscall.Stat_t).Uid
	return owner, owner != 0
}
