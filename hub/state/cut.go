package state

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"causeway/hub/failpoint"
)

// When a snapshot is due: so much was appended since the last one that a start would feel it, and not
// less than a snapshot takes itself. A log is cut at the snapshot before the last, so that
// there are two to begin with; between them there are leastBetween transactions, which is
// what other hubs may append in the moment of a cut.
const (
	snapshotBytes = 1 << 20
	leastBetween  = 64
	tendTimeout   = 10 * time.Minute
	tendPause     = 15 * time.Second // after a failure
)

// Bounds of StoreConfig.SnapshotEvery.
const (
	DefaultSnapshotEvery = 2000
	MinSnapshotEvery     = 10
	MaxSnapshotEvery     = 1_000_000
)

// tending is what the store knows of its snapshots. Store.mu guards it.
type tending struct {
	last  uint64 // of the newest snapshot
	size  int64  // of it
	grown int64  // bytes appended since
	full  bool   // something was refused for want of room since
}

// due reports whether a snapshot is due. s.mu is held.
func (s *Store) due() bool {
	if s.cfg.Vault == nil || s.failed != nil {
		return false
	}
	n := s.state.Seq - min(s.tended.last, s.state.Seq)
	return n >= s.every() || n >= leastBetween && s.tended.grown >= max(snapshotBytes, s.tended.size) || s.tended.full && n >= MinSnapshotEvery
}

// least is how many transactions lie at least between the snapshot at which the log is cut and the one after: nobody
// appends much to a log that is full. s.mu is held.
func (s *Store) least() uint64 {
	if s.tended.full {
		return MinSnapshotEvery
	}
	return min(leastBetween, s.every())
}

// every is after how many transactions a snapshot is due.
func (s *Store) every() uint64 {
	if s.cfg.SnapshotEvery > 0 {
		return uint64(s.cfg.SnapshotEvery)
	}
	return DefaultSnapshotEvery
}

// tend takes snapshots and cuts the log, until ctx ends.
func (s *Store) tend(ctx context.Context) {
	look := time.NewTicker(pollInterval)
	defer look.Stop()
	var again time.Time // after a failure
	for {
		s.mu.Lock()
		due := s.due()
		s.mu.Unlock()
		if due && time.Now().After(again) && s.away() == nil {
			if err := s.compact(ctx, false); err != nil && ctx.Err() == nil {
				s.cfg.Log.Error().Err(err).Msg("no snapshot of the state was taken, the state log grows on")
				again = time.Now().Add(tendPause)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-s.grew:
		case <-look.C:
			if s.away() != nil {
				continue
			}
			if err := s.unlimit(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn().Err(err).Msg("whether a cut of the state log came to its end is not known, asking again")
			}
		}
	}
}

// Compact takes a snapshot of the state as it is, archives what it makes needless and cuts the log
// where the snapshot before the last one is. It does so though none is due: no other hub may append meanwhile.
func (s *Store) Compact(ctx context.Context) error { return s.compact(ctx, true) }

// compact is Compact; not forced, it does what is due once it knows what other hubs did.
func (s *Store) compact(ctx context.Context, forced bool) error {
	ctx, cancel := context.WithTimeout(ctx, tendTimeout)
	defer cancel()
	if s.cfg.Disk != nil {
		if err := s.cfg.Disk.Check(); err != nil {
			return err
		}
	}
	if err := s.remember(); err != nil {
		return err
	}
	if err := s.unlimit(ctx); err != nil {
		return fmt.Errorf("end the last cut of the state log: %w", err)
	}
	s.mu.Lock()
	st, news := s.state, make(map[uint64][]Difference, len(s.differences))
	for seq, d := range s.differences {
		news[seq] = d
	}
	s.mu.Unlock()
	snapshots, archives, err := vaulted(ctx, s.cfg.Vault)
	if err != nil {
		return err
	}
	newest, before := uint64(0), uint64(0)
	for _, seq := range snapshots {
		if seq < st.Seq {
			before = seq
		}
		newest = max(newest, seq)
	}
	s.mu.Lock()
	if newest > s.tended.last { // another hub took it
		s.tended = tending{last: newest, size: s.tended.size, full: s.tended.full}
	}
	due, least := s.due() || forced && st.Seq > newest, s.least()
	s.mu.Unlock()
	if !due {
		return nil
	}
	if err := s.archive(ctx, archives, st.Seq); err != nil {
		return err
	}
	failpoint.Hit("state-archived")
	b, err := encodeSnapshot(st, news)
	if err != nil {
		return err
	}
	if newest < st.Seq {
		if err := s.cfg.Vault.Put(ctx, fmt.Sprintf(snapshotName, st.Seq), b); err != nil {
			return fmt.Errorf("store a snapshot of the state: %w", err)
		}
	}
	failpoint.Hit("state-snapshot")
	s.mu.Lock()
	s.tended = tending{last: max(newest, st.Seq), size: int64(len(b)), grown: 0}
	s.mu.Unlock()
	if before == 0 || !forced && max(newest, st.Seq)-before < least {
		return nil // too few lie between for what other hubs may append in the moment of a cut
	}
	for _, seq := range snapshots {
		if seq < before {
			if err := s.cfg.Vault.Delete(ctx, fmt.Sprintf(snapshotName, seq)); err != nil {
				return fmt.Errorf("remove an old snapshot of the state: %w", err)
			}
		}
	}
	if err := s.cut(ctx, before); err != nil {
		return fmt.Errorf("cut the state log at transaction %d: %w", before, err)
	}
	return nil
}

// archive writes the transactions up to last into archives, as far as they are in none.
func (s *Store) archive(ctx context.Context, have []span, last uint64) error {
	next := uint64(1)
	for _, a := range have { // by their first
		if a.first <= next {
			next = max(next, a.last+1)
		}
	}
	p, err := s.past(ctx)
	if err != nil {
		return err
	}
	if p.first > next { // that is lost, and what comes is not
		s.cfg.Log.Error().Uint64("first", next).Msg("transactions are missing between the archive and the state log, the audit will not show them")
		next = p.first
	}
	for next <= last {
		var lines [][]byte
		first, size := next, 0
		for ; next <= last && size < maxArchive; next++ {
			b, err := p.raw(ctx, next)
			if err != nil {
				return err
			}
			lines, size = append(lines, b), size+len(b)
		}
		b, err := pack(lines)
		if err == nil {
			err = s.cfg.Vault.Put(ctx, fmt.Sprintf(archiveName, first, next-1), b)
		}
		if err != nil {
			return fmt.Errorf("archive transactions %d to %d: %w", first, next-1, err)
		}
	}
	return nil
}

// cut drops the transactions up to last from the log. Logs deny deletion and purges, for good, so that
// nobody does by accident what is done here: for a moment the stream has a limit and drops
// what is over it. Nobody decides in this process meanwhile, and not for longer than a few replies may take.
// Should the process end in that moment, or a reply be lost, the limit goes within seconds (unlimit), at whichever
// hub; what is appended before pushes out what lies before the last snapshot alone.
func (s *Store) cut(ctx context.Context, last uint64) error {
	done, err := s.limitTo(ctx, last)
	if err != nil || !done {
		return err
	}
	info, err := s.info(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.bytes = info.State.Bytes
	s.mu.Unlock()
	s.cfg.Log.Info().Uint64("first", info.State.FirstSeq).Msg("the state log was cut, it begins with this transaction")
	return nil
}

// limitTo sets the limit that drops the transactions up to last and takes it away again. It reports whether
// there was anything to drop.
func (s *Store) limitTo(ctx context.Context, last uint64) (bool, error) {
	select {
	case s.deciding <- struct{}{}:
		defer func() { <-s.deciding }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	info, err := s.info(ctx)
	if err != nil {
		return false, err
	}
	if info.State.FirstSeq > last || info.State.LastSeq <= last {
		return false, nil
	}
	c := info.Config
	c.Discard, c.MaxMsgs = jetstream.DiscardOld, int64(info.State.LastSeq-last)
	if err = s.configure(ctx, c); err == nil {
		failpoint.Hit("state-cut")
	}
	// The limit may be there although the reply was lost, and must not stay because somebody ends this.
	if terr := s.tidy(context.WithoutCancel(ctx), c); err == nil {
		err = terr
	}
	return true, err
}

// unlimit takes away the limit of a cut that came to no end, here or at another hub.
func (s *Store) unlimit(ctx context.Context) error {
	info, err := s.info(ctx)
	if err != nil {
		return err
	}
	return s.tidy(ctx, info.Config)
}

// tidy takes away the limit that a cut sets.
func (s *Store) tidy(ctx context.Context, c jetstream.StreamConfig) error {
	if c.Discard == jetstream.DiscardNew && c.MaxMsgs <= 0 {
		return nil
	}
	c.Discard, c.MaxMsgs = jetstream.DiscardNew, -1
	return s.configure(ctx, c)
}

// info asks the log how it is. A reply that is lost is waited for no longer than one to an append.
func (s *Store) info(ctx context.Context) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	return s.stream.Info(ctx)
}

// configure makes c the configuration of the log. It waits as info does.
func (s *Store) configure(ctx context.Context, c jetstream.StreamConfig) error {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	_, err := s.cfg.JetStream.UpdateStream(ctx, c)
	return err
}
