package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Open opens the log, makes it where the marker says that there never was one,
// and folds it. It refuses a log that is not the one remembered, or shorter.
func Open(ctx context.Context, cfg StoreConfig) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Store{cfg: cfg, deciding: make(chan struct{}, 1), state: New(), watchers: map[chan struct{}]bool{}, differences: map[uint64][]Difference{}, hashes: map[uint64][]byte{}, broken: make(chan struct{}), grew: make(chan struct{}, 1)}
	var seen markerData
	if cfg.Marker != nil {
		seen = cfg.Marker.read()
	}
	var err error
	s.stream, err = cfg.JetStream.Stream(ctx, StreamName)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if !seen.Created.IsZero() {
			return nil, fmt.Errorf("the state log is gone: it had %d transactions when this hub ran last; %s", seen.Last, restoreIt)
		}
		s.stream, err = createStream(ctx, cfg.JetStream, cfg.MaxBytes, 1)
	}
	if err != nil {
		return nil, fmt.Errorf("open the state log: %w", err)
	}
	info, err := s.stream.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the state log: %w", err)
	}
	s.created, s.bytes = info.Created, info.State.Bytes
	switch {
	case !seen.Created.IsZero() && !seen.Created.Equal(info.Created):
		return nil, fmt.Errorf("the state log is another one than this hub ran with last (made %s, not %s); %s", info.Created.UTC().Format(time.RFC3339), seen.Created.UTC().Format(time.RFC3339), restoreIt)
	case info.State.LastSeq < seen.Last:
		return nil, fmt.Errorf("the state log is shorter than when this hub ran last: %d transactions, not %d; %s", info.State.LastSeq, seen.Last, restoreIt)
	case info.State.NumDeleted > 0:
		return nil, fmt.Errorf("the state log has gaps: first transaction %d, %d missing; %s", info.State.FirstSeq, info.State.NumDeleted, restoreIt)
	}
	if err := s.tidy(ctx, info.Config); err != nil {
		return nil, fmt.Errorf("open the state log: %w", err)
	}
	if s.limit, err = s.findLimit(ctx); err != nil {
		return nil, err
	}
	if err := s.begin(ctx, info.State, seen); err != nil {
		return nil, err
	}
	if err := s.replay(ctx, info.State.LastSeq, seen); err != nil {
		return nil, err
	}
	if s.setBack, err = ReadSetBack(cfg.SetBackFile, s.state); err != nil {
		return nil, err
	}
	if s.setBack != nil {
		cfg.Log.Error().Err(s.setBack).Msg("the state log was set back")
	}
	return s, s.remember()
}

// begin takes the state from which the log is replayed.
func (s *Store) begin(ctx context.Context, log jetstream.StreamState, seen markerData) error {
	var st *State
	if b := s.cfg.Base; b != nil && b.State.Seq > 0 {
		if b.State.Seq > log.LastSeq || log.FirstSeq > b.State.Seq+1 {
			return fmt.Errorf("the server found transactions %d to %d in the state log, and its files have those up to %d; %s", log.FirstSeq, log.LastSeq, b.State.Seq, restoreIt)
		}
		s.state, s.differences = b.State, b.differences
	} else {
		var news map[uint64][]Difference
		var err error
		if st, news, err = loadSnapshot(ctx, s.cfg.Vault, max(log.FirstSeq, 1)-1, log.LastSeq, s.cfg.Log); err != nil {
			return err
		}
		switch {
		case st != nil:
			s.state = st
			if news != nil {
				s.differences = news
			}
		case log.FirstSeq > 1:
			return damaged(fmt.Errorf("the state log begins with transaction %d, and no snapshot of the state before it can be read", log.FirstSeq))
		}
	}
	if st != nil && seen.Last > 0 && seen.Last <= st.Seq {
		if err := s.recognize(ctx, st, seen); err != nil {
			return err
		}
	}
	if s.cfg.Vault != nil {
		snapshots, _, err := vaulted(ctx, s.cfg.Vault)
		if err != nil {
			return err
		}
		for _, seq := range snapshots {
			if seq <= s.state.Seq {
				s.tended.last = seq
			}
		}
	}
	return nil
}

// recognize checks that what this hub saw last is part of what led to the state of a snapshot, which it took or
// another hub did meanwhile.
func (s *Store) recognize(ctx context.Context, st *State, seen markerData) error {
	have := st.hash
	if seen.Last < st.Seq {
		p, err := s.past(ctx)
		if err != nil {
			return err
		}
		b, err := p.raw(ctx, seen.Last)
		if err != nil {
			return fmt.Errorf("is the state log the one that this hub ran with last? %w", err)
		}
		have = hashOf(b)
	}
	if !bytes.Equal(have, seen.Hash) {
		return fmt.Errorf("the state log is another one than this hub ran with last: transaction %d differs; %s", seen.Last, restoreIt)
	}
	return nil
}

// createStream makes the log, whose first transaction will have the sequence first.
func createStream(ctx context.Context, js jetstream.JetStream, maxBytes int64, first uint64) (jetstream.Stream, error) {
	c := jetstream.StreamConfig{
		Name: StreamName, Description: "transactions of the hub's state",
		Subjects: []string{subject}, Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy,
		Discard: jetstream.DiscardNew, MaxMsgSize: maxTransaction + 4096, MaxBytes: maxBytes,
		DenyDelete: true, DenyPurge: true, AllowDirect: false,
	}
	if first > 1 {
		c.FirstSeq = first
	}
	return js.CreateStream(ctx, c)
}

// replay folds the log behind s.state up to last. Nobody else knows s.state yet.
func (s *Store) replay(ctx context.Context, last uint64, seen markerData) error {
	st := s.state
	if last > st.Seq {
		cons, err := s.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: st.Seq + 1})
		if err != nil {
			return fmt.Errorf("read the state log: %w", err)
		}
		it, err := cons.Messages()
		if err != nil {
			return fmt.Errorf("read the state log: %w", err)
		}
		defer it.Stop()
		for st.Seq < last {
			seq, data, err := s.nextMessage(ctx, it, st.Seq+1)
			if err != nil {
				return err
			}
			if seq <= st.Seq {
				continue
			}
			t, err := decodeTransaction(seq, data)
			if err != nil {
				return damaged(err)
			}
			var was recorder
			newest := seq+keptDifferences > last
			if newest {
				was = st.record(t)
			}
			if err := st.apply(t); err != nil {
				return damaged(err)
			}
			if newest {
				s.differences[seq] = st.differences(was)
			}
			s.tended.grown += int64(len(data))
			if st.Seq == seen.Last && !bytes.Equal(st.hash, seen.Hash) {
				return fmt.Errorf("the state log is another one than this hub ran with last: transaction %d differs; %s", st.Seq, restoreIt)
			}
		}
	}
	s.state = st
	return nil
}

// restoreIt is what to do about a log that is not what it was.
const restoreIt = "restore the data directory from a backup"

func damaged(err error) error { return fmt.Errorf("%w; %s", err, restoreIt) }

// nextMessage returns what it delivers next or, if that takes long, message want
// itself: the server passes silently over one that it cannot read.
func (s *Store) nextMessage(ctx context.Context, it jetstream.MessagesContext, want uint64) (seq uint64, data []byte, err error) {
	nctx, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	msg, err := it.Next(jetstream.NextContext(nctx))
	if err == nil {
		meta, err := msg.Metadata()
		if err != nil {
			return 0, nil, fmt.Errorf("read the state log: %w", err)
		}
		return meta.Sequence.Stream, msg.Data(), nil
	}
	if ctx.Err() != nil || nctx.Err() == nil {
		return 0, nil, fmt.Errorf("read the state log, transaction %d: %w", want, err)
	}
	raw, err := s.stream.GetMsg(ctx, want)
	if err != nil {
		return 0, nil, fmt.Errorf("state log: transaction %d cannot be read: %w; %s", want, err, restoreIt)
	}
	return want, raw.Data, nil
}
