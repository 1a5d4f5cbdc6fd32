package frame

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// WriteNew makes path, mode 0600, whole and on disk, or leaves nothing.
func WriteNew(path string, write func(io.Writer) error) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s exists; choose another name", path)
	}
	tmp, err := writeBeside(path, write)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := os.Link(tmp, path); err != nil { // unlike rename, it replaces nothing
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// ReplaceFile puts b at path, mode 0600, whole or not at all.
func ReplaceFile(path string, b []byte) error {
	tmp, err := writeBeside(path, func(w io.Writer) error { _, err := w.Write(b); return err })
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	return os.Rename(tmp, path)
}

// writeBeside makes a file, mode 0600, in the directory of path, and has it on disk.
func writeBeside(path string, write func(io.Writer) error) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".causeway-") // 0600
	if err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return f.Name(), err
}
