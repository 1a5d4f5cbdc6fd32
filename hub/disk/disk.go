// Package disk watches over the file system of the hub's data directory. JetStream
// gives up its streams where a write fails for want of space, so the hub refuses
// changes while there still is some (Guard.Check), and keeps a reserve that it
// gives up when others fill the disk, for what was under way.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"causeway/internal/durable"
	"causeway/internal/shortage"
)

// What a Guard keeps free and apart, in bytes. The reserve alone is not enough
// for changes, or giving it up would look like space.
const (
	MinFree = 16 << 20
	Reserve = 8 << 20
	// LastFree is what has to be free for what shuts somebody out.
	LastFree = 1 << 20
)

// Names below the data directory.
const (
	reserveFile = "reserve"
	probeFile   = "probe"
)

// probeFiles is how many files a store opens at once.
const probeFiles = 32

// FullError says that the disk has too little space for a change.
type FullError struct {
	Dir   string // the data directory
	Mount string // where its file system is mounted
	Free  uint64 // bytes; 0 if a write found none
	Quota bool   // the disk has room, and not for the hub's user
}

func (e *FullError) Error() string {
	if e.Quota {
		return fmt.Sprintf("the user that runs the hub has used up its quota of the disk at %s, which holds the data directory %s; raise the quota, or make room, it goes on by itself", e.Mount, e.Dir)
	}
	return fmt.Sprintf("the disk at %s, which holds the data directory %s, is full: %d MiB are free, the hub needs %d MiB to take changes other than revocations, quarantines and refusals; make room, it goes on by itself",
		e.Mount, e.Dir, e.Free>>20, MinFree>>20)
}

// BrokenError says that the disk takes no writes for another reason than space.
type BrokenError struct {
	Dir string
	Err error
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("the data directory %s takes no writes: %v; repair its disk, then start the hub again, or restore a backup on another host", e.Dir, e.Err)
}

// Unwrap returns what the system said.
func (e *BrokenError) Unwrap() error { return e.Err }

// ShortageError says that a write failed for want of something that comes back, such as
// descriptors. The disk is as good as it was.
type ShortageError struct {
	Dir string
	Err error
}

func (e *ShortageError) Error() string {
	return fmt.Sprintf("nothing can be written to the data directory %s now: %s; the hub takes no change meanwhile and goes on by itself", e.Dir, shortage.Words(e.Err))
}

// Unwrap returns what the system said.
func (e *ShortageError) Unwrap() error { return e.Err }

// Guard watches one directory. Its methods may be called concurrently.
type Guard struct {
	dir string

	mu    sync.Mutex
	held  bool           // the reserve is there
	short *ShortageError // of the last write; nil: there was none, or a write went well since
}

// New watches dir, which exists. It writes nothing.
func New(dir string) *Guard { return &Guard{dir: dir} }

// Check returns a *FullError if there is too little space for changes, and
// keeps the reserve accordingly; a *ShortageError from a write that failed for one until Probe
// finds that it is over.
func (g *Guard) Check() error {
	free, err := free(g.dir)
	if err != nil {
		return g.Explain(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.short != nil {
		return g.short
	}
	if free < MinFree {
		// What others hold already no longer matters; what is being written does.
		if g.held || exists(filepath.Join(g.dir, reserveFile)) {
			os.Remove(filepath.Join(g.dir, reserveFile))
			g.held = false
		}
		return &FullError{Dir: g.dir, Mount: mountOf(g.dir), Free: free}
	}
	if !g.held && free >= MinFree+2*Reserve {
		g.held = reserve(filepath.Join(g.dir, reserveFile)) == nil
	}
	return nil
}

// Free returns how many bytes are free for the hub.
func (g *Guard) Free() (uint64, error) { return free(g.dir) }

// Probe writes a file, durably, and says what is wrong if it cannot: a
// *FullError, a *ShortageError or a *BrokenError.
func (g *Guard) Probe() error {
	err := g.write()
	if err == nil {
		g.mu.Lock()
		g.short = nil
		g.mu.Unlock()
	}
	return g.Explain(err)
}

// write writes and removes a file, with as many descriptors beside it as a store needs when it
// is opened.
func (g *Guard) write() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range probeFiles {
		f, err := os.Open(g.dir)
		if err != nil {
			return err
		}
		defer f.Close()
	}
	path := filepath.Join(g.dir, probeFile)
	if err := os.RemoveAll(path); err != nil { // whatever lies there
		return err
	}
	if err := durable.WriteFile(path, []byte("probe\n")); err != nil {
		return err
	}
	return durable.Remove(path)
}

// Explain tells a full disk from a shortage and both from a broken one by the error of a write.
func (g *Guard) Explain(err error) error {
	var known *BrokenError
	var short *ShortageError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known), errors.As(err, &short):
		return err
	case shortage.Is(err):
		g.mu.Lock()
		defer g.mu.Unlock()
		g.short = &ShortageError{g.dir, err}
		return g.short
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return &FullError{Dir: g.dir, Mount: mountOf(g.dir), Quota: errors.Is(err, unix.EDQUOT)}
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		err = no
	}
	return &BrokenError{g.dir, err}
}

func free(dir string) (uint64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if !errors.Is(err, unix.EINTR) {
			return st.Bavail * uint64(st.Bsize), err
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// reserve makes a file that has its blocks.
func reserve(path string) error {
	if err := os.RemoveAll(path); err != nil { // whatever lies there
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, Reserve)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// mountOf returns the directory at which dir's file system is mounted.
func mountOf(dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return dir
	}
	device := func(p string) (uint64, bool) {
		var st unix.Stat_t
		err := unix.Stat(p, &st)
		return st.Dev, err == nil
	}
	dev, ok := device(dir)
	for ok && dir != "/" {
		d, up := device(filepath.Dir(dir))
		if !up || d != dev {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}
