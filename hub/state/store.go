package state

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/hub/follow"
	"causeway/hub/notice"
)

// Names of the log in JetStream.
const (
	StreamName = "CAUSEWAY_STATE"
	subject    = "causeway.state.v1.log"
)

const (
	// maxAttempts bounds how often a decision is made again after conflicts:
	// with jitter, far more than hubs are.
	maxAttempts = 20
	// pollInterval is how often the log is asked for its end, in case the
	// consumer that follows it stalls.
	pollInterval = 5 * time.Second
	replyTimeout = 5 * time.Second
	// patience is how long a change waits for a log elsewhere to elect a leader.
	patience     = 15 * time.Second
	pauseBetween = 250 * time.Millisecond
	// doubtAfter is how long an append may take before the disk is asked: the
	// server does not answer when a write fails.
	doubtAfter   = 500 * time.Millisecond
	stallTimeout = time.Second // without the next transaction while the log is read, until it is asked for
)

// StoreConfig configures a Store.
type StoreConfig struct {
	JetStream jetstream.JetStream // in the account of the state log
	Marker    *Marker             // nil: nothing is remembered (tests)
	Now       func() time.Time    // nil: time.Now
	Log       zerolog.Logger
	// Disk is where the log lies; nil: not looked at.
	Disk Disk
	// Away says why the log is out of reach, an *AwayError, or returns nil; nil: it lies
	// in this process. One that is elsewhere may need seconds to elect a leader.
	Away func() error
	// MaxBytes bounds the log; 0: the account's limit.
	MaxBytes int64
	// Vault keeps snapshots and what is cut off the log; nil: the log is kept whole.
	Vault Vault
	// SnapshotEvery is after how many transactions one is taken at the latest; 0: 2000.
	SnapshotEvery int
	// SetBackFile keeps that the log was set back; "": it is not kept (tests).
	SetBackFile string
	// Base is what a reading of the log's files found, from which Open goes on; nil: it
	// begins with a snapshot, or at the beginning.
	Base *Reading
}

// Store reads the log, decides and appends. Its methods may be called
// concurrently.
type Store struct {
	cfg     StoreConfig
	stream  jetstream.Stream
	created time.Time

	deciding chan struct{} // one decision at a time in this process: conflicts come from other hubs alone

	mu       sync.Mutex
	state    *State // never changed once published
	watchers map[chan struct{}]bool
	notices  notice.Board[Thing]

	tended   tending
	archives error         // what CheckArchives found
	bytes    uint64        // of the log, about
	limit    uint64        // of it; 0: none
	grew     chan struct{} // takes one: tend looks again

	differences map[uint64][]Difference // of the newest transactions
	hashes      map[uint64][]byte       // of the newest transactions since the start
	setBack     *SetBackError           // the log was set back; nil: not that anybody knows
	failed      error                   // the log cannot be folded further, or nothing be written
	broken      chan struct{}           // closed with failed
}

// Run follows the log until ctx ends. It fails if the log cannot be folded
// further.
func (s *Store) Run(ctx context.Context) error {
	defer func() {
		if err := s.remember(); err != nil {
			s.cfg.Log.Error().Err(err).Msg("state log marker not written")
		}
	}()
	fresh := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	following.Go(func() { s.follow(ctx, fresh) })
	following.Go(func() { s.tend(ctx) })
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.broken:
		case <-fresh:
		case <-tick.C:
			if err := s.catchUp(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn().Err(err).Msg("state log not readable")
			}
		}
		if err := s.Err(); err != nil {
			return err
		}
		if err := s.remember(); err != nil {
			s.cfg.Log.Error().Err(err).Msg("state log marker not written")
		}
	}
}

// follow folds transactions as they come, and tells fresh, until ctx ends.
func (s *Store) follow(ctx context.Context, fresh chan<- struct{}) {
	follow.Stream(ctx, s.stream, func() uint64 { return s.State().Seq }, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		s.advance(meta.Sequence.Stream, m.Data())
		select {
		case fresh <- struct{}{}:
		default:
		}
	}, func(err error) {
		s.cfg.Log.Warn().Err(err).Msg("state log not followed, asked for now and then until it is")
	})
}

// State returns the newest state known.
func (s *Store) State() *State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Err says why the log cannot be folded further, or nil.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Watch returns a channel that receives after the state changed; changes are
// gathered into one receipt. It receives once at the start. stop ends it.
func (s *Store) Watch() (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	ch <- struct{}{}
	s.mu.Lock()
	s.watchers[ch] = true
	s.mu.Unlock()
	return ch, func() {
		s.mu.Lock()
		delete(s.watchers, ch)
		s.mu.Unlock()
	}
}

// advance folds transaction seq if it is the next one.
func (s *Store) advance(seq uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seq != s.state.Seq+1 || s.failed != nil {
		return // known already, or catchUp will fetch what is missing
	}
	t, err := decodeTransaction(seq, data)
	if err == nil {
		next, was := s.state.clone(), s.state.record(t)
		if err = next.apply(t); err == nil {
			s.note(seq, next.differences(was))
			s.bytes += uint64(len(data)) + recordOverhead
			s.tended.grown += int64(len(data))
			s.publish(next)
			s.tell(t, append(was.objects, next.forgot...))
			if s.due() {
				s.wake()
			}
			return
		}
	}
	s.fail(damaged(err))
}

// wake lets tend look.
func (s *Store) wake() {
	select {
	case s.grew <- struct{}{}:
	default:
	}
}

// note keeps what transaction seq changed. s.mu is held.
func (s *Store) note(seq uint64, d []Difference) {
	s.differences[seq] = d
	delete(s.differences, seq-keptDifferences)
}

// Differences returns what transaction seq changed, of the newest 1000.
func (s *Store) Differences(seq uint64) []Difference {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.differences[seq]
}

// fail makes err the reason for which the store ends. s.mu is held.
func (s *Store) fail(err error) {
	if s.failed == nil {
		s.failed = err
		close(s.broken)
	}
}

// publish makes next the state. s.mu is held.
func (s *Store) publish(next *State) {
	s.state = next
	s.noteHash()
	for ch := range s.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// catchUp folds everything that is in the log now.
func (s *Store) catchUp(ctx context.Context) error {
	for {
		seq := s.State().Seq + 1
		msg, err := s.message(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			if s.cfg.Away == nil { // nobody else appends to the log, or cuts it
				return nil
			}
			leapt, err := s.leap(ctx)
			if err != nil || !leapt {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read transaction %d: %w", seq, err)
		}
		s.advance(seq, msg.Data)
		if err := s.Err(); err != nil {
			return err
		}
	}
}

// leap takes a snapshot where the log begins behind what is known here: another hub cut it while
// this one did not hear of what happened. Watchers learn of no state between.
func (s *Store) leap(ctx context.Context) (leapt bool, err error) {
	info, err := s.info(ctx)
	if err != nil {
		return false, fmt.Errorf("read the state log: %w", err)
	}
	seq := s.State().Seq
	if info.State.FirstSeq <= seq+1 {
		return false, nil
	}
	st, news, err := loadSnapshot(ctx, s.cfg.Vault, max(info.State.FirstSeq-1, seq+1), info.State.LastSeq, s.cfg.Log)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st == nil {
		s.fail(damaged(fmt.Errorf("the state log begins with transaction %d, and no snapshot of the state before it can be read", info.State.FirstSeq)))
		return false, s.failed
	}
	if st.Seq > s.state.Seq {
		s.differences = news
		s.tended.last, s.tended.grown = st.Seq, 0
		s.publish(st)
		s.notices.MarkAll()
	}
	return true, nil
}
