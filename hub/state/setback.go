package state

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"causeway/internal/cause"
	"causeway/internal/durable"
	"causeway/protocol"
)

// A log that was set back, with its disk, to an earlier time folds like any other: nothing in it
// says that it once went further. Agents know, by marks that the cluster key signed. Whoever
// believed such a log would give numbers a second time.

// SetBackError says that the log was set back: the state was once further than it is now.
type SetBackError struct {
	Known    protocol.StateMark // the furthest one that was shown
	Sequence uint64             // where the log ended when it was
	Time     time.Time          // of that transaction
}

func (e *SetBackError) Error() string {
	return fmt.Sprintf("the state log of this hub was set back: it ended at transaction %d of %s, and agents hold the cluster key's word of transaction %d of %s; "+
		"nothing but revocations is stored until that is mended: stop the hub, then restore a newer backup, or 'causeway-hub repair'", e.Sequence, e.Time.UTC().Format(time.RFC3339), e.Known.Sequence, e.Known.Time.UTC().Format(time.RFC3339))
}

// keptHashes is of how many of the newest transactions the hash is kept.
const keptHashes = 4096

// Mark is the word of k of how far this state has come. The zero mark stands for that of an empty log.
func (s *State) Mark(k protocol.ClusterPrivateKey) protocol.StateMark {
	if s.Seq == 0 {
		return protocol.StateMark{}
	}
	return protocol.StateMark{Epoch: s.Epoch, Sequence: s.Seq, Hash: s.hash, Time: s.Time, NextNumber: s.NextNumber}.Sign(k)
}

// SetBack returns the *SetBackError if it is known that the log was set back, else nil.
func (s *Store) SetBack() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.setBack == nil {
		return nil
	}
	return s.setBack
}

// Witness takes a mark that somebody shows. If it is the cluster's and the log does not
// have that transaction, the log was set back, and the store says so from then on, across
// restarts. It returns what is wrong with the mark, or that it could not be looked at.
func (s *Store) Witness(ctx context.Context, m protocol.StateMark) error {
	st := s.State()
	if err := m.Check(st.Cluster.Pin()); err != nil {
		return err
	}
	if m.Epoch == st.Epoch && m.Sequence > st.Seq { // another hub may have written it
		if err := s.settle(ctx, time.Now()); err != nil {
			return err
		}
		st = s.State()
	}
	ours, err := s.holds(ctx, st, m)
	if err != nil || ours {
		return err
	}
	return s.noteSetBack(&SetBackError{m, st.Seq, st.Time})
}

// holds reports whether m is of st or of what led to it, as far as anybody can tell.
func (s *Store) holds(ctx context.Context, st *State, m protocol.StateMark) (bool, error) {
	switch {
	case m.Epoch != st.Epoch:
		return m.Epoch < st.Epoch, nil
	case m.Sequence > st.Seq:
		return false, nil
	}
	s.mu.Lock()
	hash := s.hashes[m.Sequence]
	s.mu.Unlock()
	if hash == nil {
		msg, err := s.message(ctx, m.Sequence)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return true, nil // it was cut off, long ago
		}
		if err != nil {
			return false, fmt.Errorf("look for transaction %d in the state log: %w", m.Sequence, err)
		}
		hash = hashOf(msg.Data)
	}
	return bytes.Equal(hash, m.Hash), nil
}

// noteHash keeps the hash of the newest state. s.mu is held.
func (s *Store) noteHash() {
	s.hashes[s.state.Seq] = s.state.hash
	delete(s.hashes, s.state.Seq-keptHashes)
}

// noteSetBack stores what is known of a log that was set back, if it is news.
func (s *Store) noteSetBack(e *SetBackError) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.setBack
	if was != nil {
		if !was.Known.Less(e.Known) {
			return nil
		}
		e.Sequence, e.Time = was.Sequence, was.Time
	}
	s.setBack = e
	if was == nil {
		s.cfg.Log.Error().Err(e).Msg("the state log was set back")
	}
	if s.cfg.SetBackFile == "" {
		return nil
	}
	if err := writeSetBack(s.cfg.SetBackFile, e); err != nil {
		return fmt.Errorf("keep in mind that the state log was set back: %w", err)
	}
	return nil
}

// refusesSetBack returns the *SetBackError if tx may not be stored because of it. What
// shuts somebody out may: a repair keeps it.
func (s *Store) refusesSetBack(t Transaction) error {
	if err := s.SetBack(); err != nil && !shutsOut(t) {
		return err
	}
	return nil
}

func writeSetBack(path string, e *SetBackError) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'))
}

// ReadSetBack reads what is known of a log that was set back, of which st is the state; nil: nothing, or
// it was mended since. A file that does not read is an error: it is not there without a reason.
func ReadSetBack(path string, st *State) (*SetBackError, error) {
	b, err := durable.ReadFile(path, maxMarker)
	if path == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var e SetBackError
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err == nil {
		err = e.Known.Check(st.Cluster.Pin())
	}
	if err != nil {
		return nil, fmt.Errorf("%s, which says that the state log was set back, does not read: %w; %s", path, err, cause.Cure(err, "if a repair or a restore followed, remove it"))
	}
	if e.Known.Epoch < st.Epoch {
		return nil, nil
	}
	return &e, nil
}
