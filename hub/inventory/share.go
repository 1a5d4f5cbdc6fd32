package inventory

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"causeway/protocol"
)

// What one node's history may take of the stream, in bytes. The stream bounds messages by
// number; a node whose messages are long has fewer of them, and pushes nobody else's out.
const (
	nodeShare   = 8 << 20
	weighAfter  = 4 << 20 // of new messages of a node
	trimTimeout = 20 * time.Second
)

// weigh counts n bytes of a message, and has its node's history looked at when that is due.
func (s *Store) weigh(o protocol.FactOrigin, n int) {
	if o.Node == 0 {
		return
	}
	s.mu.Lock()
	s.weight[o.Node] += n
	due := s.weight[o.Node] >= weighAfter
	if due {
		select {
		case s.heavy <- o:
			s.weight[o.Node] = 0
		default: // with the next message
		}
	}
	s.mu.Unlock()
}

// trim cuts the histories that are too long until ctx ends.
func (s *Store) trim(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-s.heavy:
			if err := s.cut(ctx, o); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn().Err(err).Uint32("number", uint32(o.Node)).Msg("history of a node not cut to its share")
			}
		}
	}
}

// cut removes the oldest messages of a node beyond its share.
func (s *Store) cut(ctx context.Context, o protocol.FactOrigin) error {
	ctx, cancel := context.WithTimeout(ctx, trimTimeout)
	defer cancel()
	subjects := []string{protocol.InventorySubject(o.Site, o.Node), protocol.DeltaSubject(o.Site, o.Node), protocol.IncidentSubject(o.Site, o.Node)}
	cons, err := s.stream.CreateConsumer(ctx, jetstream.ConsumerConfig{FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy: jetstream.AckNonePolicy, HeadersOnly: true, MemoryStorage: true, Replicas: 1, InactiveThreshold: 2 * trimTimeout})
	if err != nil {
		return fmt.Errorf("weigh the history: %w", err)
	}
	defer s.stream.DeleteConsumer(context.WithoutCancel(ctx), cons.CachedInfo().Name)
	type message struct {
		seq  uint64
		size int
	}
	var all []message
	for left := cons.CachedInfo().NumPending; left > 0; {
		b, err := cons.Fetch(int(min(left, 500)), jetstream.FetchContext(ctx))
		if err != nil {
			return fmt.Errorf("weigh the history: %w", err)
		}
		got := uint64(0)
		for m := range b.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			size, _ := strconv.Atoi(m.Headers().Get("Nats-Msg-Size")) // absent where there is no payload
			all = append(all, message{meta.Sequence.Stream, size + len(m.Subject())})
			got, left = got+1, meta.NumPending
		}
		if err := b.Error(); err != nil {
			return fmt.Errorf("weigh the history: %w", err)
		}
		if got == 0 {
			break
		}
	}
	sum := 0
	for _, m := range slices.Backward(all) {
		if sum += m.size; sum <= nodeShare {
			continue
		}
		for _, subject := range subjects {
			if err := s.stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(m.seq+1)); err != nil {
				return fmt.Errorf("cut the history: %w", err)
			}
		}
		break
	}
	return nil
}
