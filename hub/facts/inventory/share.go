package inventory

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"causeway/hub/facts"
	"causeway/protocol"
)

// What one node's history may take of the stream, in bytes. The stream bounds messages by
// number; a node whose messages are long has fewer of them, and pushes nobody else's out.
const (
	nodeShare   = 8 << 20
	weighAfter  = 4 << 20  // of new messages of a node
	lookAfter   = 16 << 20 // of new messages of all nodes
	trimTimeout = 20 * time.Second
)

// weigh counts a message, and has its node's history looked at when that is due.
func (s *Store) weigh(m facts.Message) {
	o, n := m.Origin, len(m.Data)
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.Stream <= s.next { // it came before
		return
	}
	if s.unweighed += n; s.unweighed >= lookAfter {
		s.unweighed = 0
		s.look()
	}
	if o.Node == 0 {
		return
	}
	h := s.histories[o.Node]
	if h == nil {
		h = &history{whole: s.whole}
		s.histories[o.Node] = h
	}
	h.add(m.Subject, m.Stream, m.Received, n+len(m.Subject))
	if h.fresh += n; h.fresh >= weighAfter {
		select {
		case s.heavy <- heavy{o, time.Now().Add(2 * settle)}:
			h.fresh = 0
		default: // with the next message
		}
	}
}

// heavy is a node whose history is to be weighed when that is due.
type heavy struct {
	protocol.FactOrigin
	due time.Time
}

// subjectsOf are those of a node's messages in the stream.
func subjectsOf(o protocol.FactOrigin) []string {
	return []string{protocol.InventorySubject(o.Site, o.Node), protocol.DeltaSubject(o.Site, o.Node), protocol.IncidentSubject(o.Site, o.Node), protocol.SwitchesSubject(o.Site, o.Node)}
}

// look has trim look at the stream.
func (s *Store) look() {
	select {
	case s.grown <- struct{}{}:
	default:
	}
}

// streamBound is how many bytes the stream may have.
func (s *Store) streamBound() int64 { return s.cfg.MaxBytes * 2 / 3 }

// bucketBound is the same of the bucket.
func (s *Store) bucketBound() int64 { return s.cfg.MaxBytes / 3 }

// trim cuts the histories that are too long until ctx ends, and the stream.
func (s *Store) trim(ctx context.Context) {
	s.look() // what was there before
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.grown:
			if err := s.bound(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn().Err(err).Msg("history of all nodes not cut to its bound")
			}
		case o := <-s.heavy:
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(o.due)):
			}
			if err := s.cut(ctx, o.FactOrigin); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn().Err(err).Uint32("number", uint32(o.Node)).Msg("history of a node not cut to its share")
			}
		}
	}
}

// bound removes the oldest messages of all nodes until the stream is within its bound. A
// cluster does that by itself.
func (s *Store) bound(ctx context.Context) error {
	if !s.cfg.Inside {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, trimTimeout)
	defer cancel()
	for {
		i, err := s.stream.Info(ctx)
		if err != nil {
			return fmt.Errorf("weigh the stream: %w", err)
		}
		st := i.State
		if st.Bytes <= uint64(s.streamBound()) || st.Msgs == 0 {
			return nil
		}
		const part = 16
		up := st.FirstSeq + (st.LastSeq-st.FirstSeq)/part
		if err := s.stream.Purge(ctx, jetstream.WithPurgeSequence(up+1)); err != nil {
			return fmt.Errorf("cut the stream: %w", err)
		}
		s.mu.Lock()
		for _, h := range s.histories {
			h.cut(up)
		}
		s.mu.Unlock()
	}
}

// cut removes the oldest messages of a node beyond its share.
func (s *Store) cut(ctx context.Context, o protocol.FactOrigin) error {
	ctx, cancel := context.WithTimeout(ctx, trimTimeout)
	defer cancel()
	s.mu.Lock()
	h := s.histories[o.Node]
	whole := h == nil || h.whole
	s.mu.Unlock()
	if !whole { // some of it was there before the start
		if err := s.readHistory(ctx, o); err != nil {
			return fmt.Errorf("weigh the history: %w", err)
		}
	}
	s.mu.Lock()
	up, subjects := uint64(0), []string(nil)
	if h = s.histories[o.Node]; h != nil {
		up, subjects = h.beyond(nodeShare)
	}
	s.mu.Unlock()
	if up == 0 {
		return nil
	}
	for _, subject := range subjects {
		if err := s.stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(up+1)); err != nil {
			return fmt.Errorf("cut the history: %w", err)
		}
	}
	s.mu.Lock()
	h.cut(up)
	s.mu.Unlock()
	return nil
}

// readHistory weighs what the stream has of a node, and what comes goes on from there.
func (s *Store) readHistory(ctx context.Context, o protocol.FactOrigin) error {
	cons, err := s.stream.CreateConsumer(ctx, jetstream.ConsumerConfig{FilterSubjects: subjectsOf(o), DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy: jetstream.AckNonePolicy, HeadersOnly: true, MemoryStorage: true, Replicas: 1, InactiveThreshold: 2 * trimTimeout})
	if err != nil {
		return err
	}
	defer s.stream.DeleteConsumer(context.WithoutCancel(ctx), cons.CachedInfo().Name)
	read, last := history{whole: true}, uint64(0)
	for left := cons.CachedInfo().NumPending; left > 0; {
		b, err := cons.Fetch(int(min(left, 500)), jetstream.FetchContext(ctx))
		if err != nil {
			return err
		}
		got := uint64(0)
		for m := range b.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			size, _ := strconv.Atoi(m.Headers().Get("Nats-Msg-Size")) // absent where there is no payload
			last = meta.Sequence.Stream
			read.add(m.Subject(), last, meta.Timestamp, size+len(m.Subject()))
			got, left = got+1, meta.NumPending
		}
		if err := b.Error(); err != nil {
			return err
		}
		if got == 0 {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.histories[o.Node]; h != nil {
		h.cut(last)
		for subject, l := range h.subjects { // came meanwhile
			if read.subjects == nil {
				read.subjects = map[string][]piece{}
			}
			read.subjects[subject] = append(read.subjects[subject], l...)
		}
		read.fresh = h.fresh
	}
	s.histories[o.Node] = &read
	return nil
}
