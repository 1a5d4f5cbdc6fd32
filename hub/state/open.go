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
	s := &Store{cfg: cfg, deciding: make(chan struct{}, 1), state: New(), watchers: map[chan struct{}]bool{}, differences: map[uint64][]Difference{}, broken: make(chan struct{})}
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
		s.stream, err = createStream(ctx, cfg.JetStream, cfg.MaxBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("open the state log: %w", err)
	}
	info, err := s.stream.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the state log: %w", err)
	}
	s.created = info.Created
	switch {
	case !seen.Created.IsZero() && !seen.Created.Equal(info.Created):
		return nil, fmt.Errorf("the state log is another one than this hub ran with last (made %s, not %s); %s", info.Created.UTC().Format(time.RFC3339), seen.Created.UTC().Format(time.RFC3339), restoreIt)
	case info.State.LastSeq < seen.Last:
		return nil, fmt.Errorf("the state log is shorter than when this hub ran last: %d transactions, not %d; %s", info.State.LastSeq, seen.Last, restoreIt)
	case info.State.LastSeq > 0 && (info.State.FirstSeq != 1 || info.State.NumDeleted > 0):
		return nil, fmt.Errorf("the state log has gaps: first transaction %d, %d missing; %s", info.State.FirstSeq, info.State.NumDeleted, restoreIt)
	}
	if err := s.replay(ctx, info.State.LastSeq, seen); err != nil {
		return nil, err
	}
	return s, s.remember()
}

func createStream(ctx context.Context, js jetstream.JetStream, maxBytes int64) (jetstream.Stream, error) {
	return js.CreateStream(ctx, jetstream.StreamConfig{
		Name: StreamName, Description: "transactions of the hub's state",
		Subjects: []string{subject}, Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy,
		Discard: jetstream.DiscardNew, MaxMsgSize: maxTransaction + 4096, MaxBytes: maxBytes,
		DenyDelete: true, DenyPurge: true, AllowDirect: false,
	})
}

// replay folds the log up to last.
func (s *Store) replay(ctx context.Context, last uint64, seen markerData) error {
	st := New()
	if last > 0 {
		cons, err := s.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
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
