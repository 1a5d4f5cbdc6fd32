package state

import (
	"context"
	"fmt"
	"strings"

	"causeway/protocol"
)

// FullLogError says that the log may not grow by a change.
type FullLogError struct{ Bytes, Limit uint64 }

func (e *FullLogError) Error() string {
	return fmt.Sprintf("the state log has %d MiB of the %d MiB that it may have: only revocations, quarantines and refusals are taken until it was cut, which the hub does by itself; its log says what keeps it from that", e.Bytes>>20, e.Limit>>20)
}

const (
	// recordOverhead is above what a transaction takes in the store beside its own bytes.
	recordOverhead = 192
	maxReserve     = 64 << 20
)

// findLimit asks how large the log may get; 0: nobody says.
func (s *Store) findLimit(ctx context.Context) (uint64, error) {
	if n := s.stream.CachedInfo().Config.MaxBytes; n > 0 {
		return uint64(n), nil
	}
	acc, err := s.cfg.JetStream.AccountInfo(ctx)
	if err != nil {
		return 0, fmt.Errorf("ask for the limits of the state log: %w", err)
	}
	return uint64(max(acc.Limits.MaxStore, 0)), nil
}

// roomFor returns a *FullLogError if the log may not grow by t. A part of what it may have is
// kept for what shuts somebody out.
func (s *Store) roomFor(t Transaction, size int) error {
	s.mu.Lock()
	bytes := s.bytes
	s.mu.Unlock()
	spare := min(s.limit/16, maxReserve)
	if shutsOut(t) {
		spare = 0
	}
	if s.limit > 0 && bytes+uint64(size)+recordOverhead+spare > s.limit {
		s.mu.Lock()
		s.tended.full = true
		s.mu.Unlock()
		s.wake()
		return &FullLogError{bytes, s.limit}
	}
	return nil
}

// shutsOut reports whether t does nothing but take rights away, and by no node's wish.
func shutsOut(t Transaction) bool {
	if strings.HasPrefix(t.Who, "node") {
		return false
	}
	for _, c := range t.Changes {
		switch c := c.(type) {
		case NodeGone, NumbersPassed, NodeQuarantined, TokenCancelled, AdminRevoked, NATSUserRevoked:
		case RouteDecided:
			if c.State != protocol.RouteRejected {
				return false
			}
		default:
			return false
		}
	}
	return true
}
