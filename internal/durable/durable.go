// Package durable writes the small files that a restart relies on: keys,
// identities, records of what was changed on a host.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Temp is the name under which WriteFile writes path first. A crash may leave
// it behind; the next WriteFile replaces it, and whoever removes path for good
// removes it too.
func Temp(path string) string { return path + ".new" }

// WriteFile replaces path by b, mode 0600, whole or not at all, and on disk
// together with its name when it returns: what is done next may rely on it.
// Only one writer of a path at a time. What root writes belongs to the owner of
// the directory: a service's user goes on with it.
func WriteFile(path string, b []byte) error {
	if err := os.RemoveAll(Temp(path)); err != nil { // whatever it is
		return err
	}
	f, err := os.OpenFile(Temp(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = giveToOwner(f, filepath.Dir(path))
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(Temp(path), path)
	}
	if err != nil {
		os.Remove(Temp(path))
		return err
	}
	return SyncDir(filepath.Dir(path))
}

func giveToOwner(f *os.File, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if d := st.Sys().(*syscall.Stat_t); d.Uid != 0 {
		return f.Chown(int(d.Uid), int(d.Gid))
	}
	return nil
}

// Remove removes path; that it is not there is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// SyncDir makes new and removed names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
