package state

import "context"

// CompactIfDue is what a store that runs does by itself.
func (s *Store) CompactIfDue(ctx context.Context) error { return s.compact(ctx, false) }

// Same compares states, their inner tables included.
var Same = same

// Transact does what a change costs a Store beside the log: it decides on a copy of base, encodes the transaction,
// and folds what was encoded into another copy.
func Transact(base *State, decide func(*Draft) error) (*State, error) {
	d := &Draft{State: base.clone(), Now: base.Time}
	if err := decide(d); err != nil {
		return nil, err
	}
	if err := d.checkRealms(); err != nil {
		return nil, err
	}
	tx := Transaction{Sequence: base.Seq + 1, Prev: base.hash, ID: "x", Time: d.Now, Who: "bench", Changes: d.changes}
	if err := d.State.check(tx); err != nil {
		return nil, err
	}
	data, err := tx.encode()
	if err != nil {
		return nil, err
	}
	t, err := decodeTransaction(tx.Sequence, data)
	if err != nil {
		return nil, err
	}
	next, was := base.clone(), base.record(t)
	if err := next.apply(t); err != nil {
		return nil, err
	}
	next.differences(was)
	return next, nil
}

// FoldMore folds changes that stand in a log behind base.
func FoldMore(base *State, cs ...Change) (*State, error) {
	next := base.clone()
	return next, next.apply(Transaction{Sequence: base.Seq + 1, Prev: base.hash, Time: base.Time, Changes: cs})
}

// EncodeSnapshot writes a state as a snapshot has it.
func EncodeSnapshot(s *State) ([]byte, error) { return encodeSnapshot(s, nil) }

// DecodeSnapshot reads it again.
func DecodeSnapshot(b []byte) (*State, error) {
	s, _, err := decodeSnapshot(b)
	return s, err
}
