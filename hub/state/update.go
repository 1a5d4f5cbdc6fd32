package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

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
		err := decide(d)
		if err == nil {
			err = d.checkRealms()
		}
		if err != nil || len(d.changes) == 0 && !d.noted {
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
