package state

import (
	"errors"

	"causeway/hub/disk"
)

// Disk tells whether changes can be stored (hub/disk).
type Disk interface {
	Check() error            // nil, or why no change is taken now
	Probe() error            // writes; nil, or what is wrong with the disk
	Explain(err error) error // words the error of a write
}

// remember writes the marker.
func (s *Store) remember() error {
	if s.cfg.Marker == nil {
		return nil
	}
	s.mu.Lock()
	seq, hash := s.state.Seq, s.state.hash
	s.mu.Unlock()
	return s.cfg.Marker.record(s.created, seq, hash)
}

// writable returns why t cannot be taken now. What is folded is remembered
// first, should that have failed before. On a full disk what shuts somebody out has what the guard's
// reserve has left.
func (s *Store) writable(t Transaction) error {
	if s.cfg.Disk == nil {
		return nil
	}
	if err := s.cfg.Disk.Check(); err != nil {
		if !shutsOut(t) {
			return err
		}
		var full *disk.FullError
		if err = s.cfg.Disk.Check(); err != nil && (!errors.As(err, &full) || full.Free < disk.LastFree) { // the first one may have given the reserve up
			return err
		}
	}
	return s.judge(s.remember())
}

// judge words the error of a write to the disk; one that is no want of space, nor of anything
// else that comes back, ends the store.
func (s *Store) judge(err error) error {
	if err == nil || s.cfg.Disk == nil {
		return err
	}
	err = s.cfg.Disk.Explain(err)
	var full *disk.FullError
	var short *disk.ShortageError
	if !errors.As(err, &full) && !errors.As(err, &short) {
		s.mu.Lock()
		s.fail(err)
		s.mu.Unlock()
	}
	return err
}

// afterFailure finds out why an append failed. nil: it may be tried again.
func (s *Store) afterFailure() error {
	if s.cfg.Disk == nil {
		return nil
	}
	if err := s.cfg.Disk.Check(); err != nil {
		return err
	}
	return s.judge(s.cfg.Disk.Probe())
}
