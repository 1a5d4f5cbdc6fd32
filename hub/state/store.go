package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
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

// AwayError says that the log is out of reach, so that nothing can be decided.
type AwayError struct {
	Since time.Time
	Cause string
}

func (e *AwayError) Error() string {
	return fmt.Sprintf("the external NATS that holds the state is away since %s (%s): no change is taken until it is back, agents go on as they are", e.Since.Format(time.RFC3339), e.Cause)
}

// away says why the log is known to be out of reach, or returns nil.
func (s *Store) away() error {
	if s.cfg.Away == nil {
		return nil
	}
	return s.cfg.Away()
}

// settle folds everything that is in the log now. A log elsewhere is given until
// patience is over to elect a leader, unless it is known to be away.
func (s *Store) settle(ctx context.Context, begin time.Time) error {
	for {
		err := s.catchUp(ctx)
		if err == nil || s.Err() != nil {
			return err
		}
		if s.cfg.Away == nil || time.Since(begin) > patience {
			return fmt.Errorf("%w: %w", ErrBusy, err)
		}
		if away := s.cfg.Away(); away != nil {
			return away
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pauseBetween):
		}
	}
}

// conflict reports whether err says that the log had grown meanwhile.
func conflict(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// ErrBusy says that a decision could not be stored now; it may be tried again.
var ErrBusy = errors.New("state not writable now, try again")

// Update decides and appends. decide adds changes to the draft, made on the
// state at the log's end; on a conflict it is called again on a newer one. If
// it adds nothing, nothing is appended. Its error is returned as it is. The
// state returned contains the changes.
func (s *Store) Update(ctx context.Context, who, why string, decide func(*Draft) error) (*State, error) {
	select {
	case s.deciding <- struct{}{}:
		defer func() { <-s.deciding }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	id, err := newTxID()
	if err != nil {
		return nil, err
	}
	doubtful := false // an append may have arrived without our knowing
	begin := time.Now()
	for attempt := range maxAttempts {
		if attempt > 0 {
			if err := s.wait(ctx, attempt); err != nil {
				return nil, err
			}
			if err := s.settle(ctx, begin); err != nil {
				return nil, err
			}
		}
		if err := s.Err(); err != nil {
			return nil, err
		}
		if err := s.away(); err != nil {
			return nil, err
		}
		base := s.State()
		if doubtful {
			in, err := s.contains(ctx, base, id)
			if err != nil {
				continue
			}
			if in {
				return base, nil
			}
		}
		now := s.cfg.Now().UTC()
		if now.Before(base.Time) {
			now = base.Time // the log's time never falls
		}
		d := &Draft{State: base.clone(), Now: now}
		if err := decide(d); err != nil || len(d.changes) == 0 {
			// Nothing will be appended, so no expected sequence says whether this
			// state is the newest. Another hub may have moved on.
			if cerr := s.settle(ctx, begin); cerr != nil {
				return nil, cerr
			}
			if s.State() != base {
				continue
			}
			return base, err
		}
		tx := Transaction{Sequence: base.Seq + 1, Prev: base.hash, ID: id, Time: now, Who: who, Why: why, Changes: d.changes}
		if err := s.writable(tx); err != nil {
			return nil, err
		}
		if err := d.State.check(tx); err != nil {
			return nil, err
		}
		data, err := tx.encode()
		if err != nil {
			return nil, err
		}
		if err := s.refusesSetBack(tx); err != nil {
			return nil, err
		}
		if err := s.roomFor(tx, len(data)); err != nil {
			return nil, err
		}
		st, err := s.append(ctx, tx, data)
		if err == nil {
			return st, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !conflict(err) {
			doubtful = true
			s.cfg.Log.Warn().Err(err).Msg("append to the state log")
			if err := s.afterFailure(); err != nil {
				return nil, err
			}
		}
		s.cfg.Log.Debug().Err(err).Int("attempt", attempt+1).Msg("transaction not appended, deciding again")
	}
	return nil, ErrBusy
}

// Settled reports whether decide would change nothing and finds no fault with the
// newest state known here, which it returns. It asks nobody and takes no turn.
func (s *Store) Settled(decide func(*Draft) error) (*State, bool) {
	st := s.State()
	return st, decide(&Draft{State: st, Now: s.cfg.Now().UTC(), dry: true}) == nil
}

// Changes counts what decide would change of the newest state known here, which it returns. decide must not
// look at its own changes.
func (s *Store) Changes(decide func(*Draft) error) (*State, int, error) {
	d := &Draft{State: s.State(), Now: s.cfg.Now().UTC(), dry: true, count: true}
	err := decide(d)
	return d.State, len(d.changes), err
}

// Redeem decides a join and stores it. A request that does not show the token's
// secret is refused without a turn among the decisions and without a copy of
// the state: anybody can send it.
func (s *Store) Redeem(ctx context.Context, who, why string, r RedeemRequest) (*State, error) {
	if _, err := s.State().shownToken(r); err != nil {
		if err := s.catchUp(ctx); err != nil { // another hub may have made the token just now
			return nil, fmt.Errorf("%w: %w", ErrBusy, err)
		}
		if _, err := s.State().shownToken(r); err != nil {
			return nil, err
		}
	}
	return s.Update(ctx, who, why, func(d *Draft) error { return Redeem(d, r) })
}

// append stores tx behind the state it was decided on and folds it as it was
// encoded, so that this hub sees what every other will see.
func (s *Store) append(ctx context.Context, tx Transaction, data []byte) (*State, error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	if s.cfg.Disk != nil {
		doubt := time.AfterFunc(doubtAfter, func() {
			if s.cfg.Disk.Probe() != nil {
				cancel()
			}
		})
		defer doubt.Stop()
	}
	msg := &nats.Msg{Subject: subject, Data: data}
	ack, err := s.cfg.JetStream.PublishMsg(ctx, msg,
		jetstream.WithExpectStream(StreamName), jetstream.WithExpectLastSequence(tx.Sequence-1), jetstream.WithRetryAttempts(0))
	if err != nil {
		return nil, err
	}
	if ack.Sequence != tx.Sequence {
		return nil, fmt.Errorf("transaction %d was stored as %d", tx.Sequence, ack.Sequence)
	}
	s.advance(ack.Sequence, data)
	if err := s.Err(); err != nil {
		return nil, err
	}
	// What was acknowledged and is gone at the next start must be missed.
	if err := s.judge(s.remember()); err != nil {
		return nil, err
	}
	return s.State(), nil
}

// contains reports whether the transaction with this id is among the newest of
// st: an append whose answer was lost.
func (s *Store) contains(ctx context.Context, st *State, id string) (bool, error) {
	for seq := st.Seq; seq > 0 && seq+maxAttempts > st.Seq; seq-- {
		msg, err := s.message(ctx, seq)
		if err != nil {
			return false, err
		}
		if t, err := decodeTransaction(seq, msg.Data); err == nil && t.ID == id {
			return true, nil
		}
	}
	return false, nil
}

func (s *Store) wait(ctx context.Context, attempt int) error {
	t := time.NewTimer(time.Duration(rand.Int64N(int64(min(attempt, 8)) * int64(4*time.Millisecond))))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Audit returns up to limit transactions, newest first: those before transaction before, or the
// newest for 0. What was cut off the log is read from its archive.
func (s *Store) Audit(ctx context.Context, before uint64, limit int) ([]Transaction, error) {
	p, err := s.past(ctx)
	if err != nil {
		return nil, err
	}
	seq := s.State().Seq
	if before > 0 {
		seq = min(seq, before-1)
	}
	var out []Transaction
	for ; seq > 0 && len(out) < limit; seq-- {
		b, err := p.raw(ctx, seq)
		if err != nil {
			return nil, err
		}
		t, err := decodeTransaction(seq, b)
		if err != nil {
			return nil, err
		}
		if len(out) > 0 && !bytes.Equal(out[len(out)-1].Prev, t.hash) {
			return nil, fmt.Errorf("transaction %d is not the one that the next follows: the audit was changed", seq)
		}
		out = append(out, t)
	}
	return out, nil
}
