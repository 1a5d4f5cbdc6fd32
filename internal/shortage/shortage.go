// Package shortage tells what the system has too little of for the moment from what is broken:
// a file that could not be opened for want of descriptors is as good as it was.
package shortage

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// Is reports whether err says that the system, or this process, has too little of something
// other than disk space. It may be tried again.
func Is(err error) bool {
	for _, no := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EAGAIN, syscall.EINTR} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// Words says what there is too little of, and what to do.
func Words(err error) string {
	switch {
	case errors.Is(err, syscall.EMFILE):
		var l syscall.Rlimit
		syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
		return fmt.Sprintf("the process has as many open files as it may have (%d); raise LimitNOFILE= of its unit", l.Cur)
	case errors.Is(err, syscall.ENFILE):
		return "the host has as many open files as it may have; raise the sysctl fs.file-max, or see what holds them by 'lsof'"
	case errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS):
		return "the system has no memory for it; see what holds it by 'free' and MemoryMax= of the unit"
	}
	return "the system did not get to it"
}

// Times of Retry.
const (
	retries = 40
	pause   = 50 * time.Millisecond
)

// Retry calls f again while it fails for a shortage, for two seconds at most: for what is read
// once, when a process starts, and would count as lost.
func Retry(f func() error) error {
	for i := 0; ; i++ {
		err := f()
		if i == retries || !Is(err) {
			return err
		}
		time.Sleep(pause)
	}
}
