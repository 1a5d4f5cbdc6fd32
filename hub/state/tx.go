package state

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// txVersion is the version of the transaction format.
const txVersion = 1

// maxTransaction bounds one transaction in the log.
const maxTransaction = 1 << 20

// Transaction is one message of the log:
//
//	{"v":1, "prev":…, "id":…, "time":…, "who":…, "why":…, "changes":[{"kind":…, "body":{…}}, …]}
//
// It holds as a whole or not at all. prev is the SHA-256 of the message before, so
// that the last message vouches for the whole log.
type Transaction struct {
	Sequence uint64 // in the stream; not part of the message
	ID       string // random; tells whether a doubtful append arrived
	Time     time.Time
	Who      string // unix:<user>, admin:<name>, node:<name>, nodes, token:<id>, hub
	Why      string
	Changes  []Change
	Prev     []byte // SHA-256 of the message before; empty in the first
	hash     []byte // SHA-256 of this message, once it was encoded
}

type txJSON struct {
	Version int        `json:"v"`
	Prev    []byte     `json:"prev,omitempty"`
	ID      string     `json:"id"`
	Time    time.Time  `json:"time"`
	Who     string     `json:"who"`
	Why     string     `json:"why"`
	Changes []envelope `json:"changes"`
}

func newTxID() (string, error) {
	var b [12]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}

func (t Transaction) encode() ([]byte, error) {
	j := txJSON{txVersion, t.Prev, t.ID, t.Time, t.Who, t.Why, make([]envelope, 0, len(t.Changes))}
	for _, c := range t.Changes {
		e, err := encodeChange(c)
		if err != nil {
			return nil, err
		}
		j.Changes = append(j.Changes, e)
	}
	b, err := json.Marshal(j)
	if err == nil && len(b) > maxTransaction {
		err = Errorf(Invalid, "transaction of %d bytes, at most %d", len(b), maxTransaction)
	}
	return b, err
}

func decodeTransaction(seq uint64, b []byte) (Transaction, error) {
	var j txJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return Transaction{}, fmt.Errorf("state log, transaction %d: %w", seq, err)
	}
	if j.Version != txVersion {
		return Transaction{}, fmt.Errorf("state log, transaction %d has version %d; this causeway-hub reads version %d: run the version that wrote it, or a newer one", seq, j.Version, txVersion)
	}
	t := Transaction{Sequence: seq, ID: j.ID, Time: j.Time, Who: j.Who, Why: j.Why, Prev: j.Prev, hash: hashOf(b)}
	for _, e := range j.Changes {
		c, err := e.decode()
		if err != nil {
			return Transaction{}, fmt.Errorf("state log, transaction %d: %w", seq, err)
		}
		t.Changes = append(t.Changes, c)
	}
	return t, nil
}

// apply folds t into s, which nobody else reads yet. After an error s is of no use.
func (s *State) apply(t Transaction) error {
	if t.Sequence != s.Seq+1 {
		return fmt.Errorf("state log: transaction %d does not follow %d", t.Sequence, s.Seq)
	}
	if !bytes.Equal(t.Prev, s.hash) {
		return fmt.Errorf("state log: transaction %d does not follow the one before it: the log was changed", t.Sequence)
	}
	s.folding = true
	defer func() { s.folding = false }()
	for _, c := range t.Changes {
		if err := c.apply(s, t.Time); err != nil {
			return fmt.Errorf("state log, transaction %d: %w", t.Sequence, err)
		}
	}
	if err := s.check(t); err != nil {
		return fmt.Errorf("state log, transaction %d: %w", t.Sequence, err)
	}
	s.forget(t)
	s.Seq, s.Time, s.hash = t.Sequence, t.Time, t.hash
	return nil
}

// check holds what is true only at the end of a transaction.
func (s *State) check(t Transaction) error {
	for _, c := range t.Changes {
		if r, ok := c.(TokenRedeemed); ok {
			if n, ok := s.Nodes.Find(r.Node); !ok || n.Token != r.ID {
				return Errorf(Invalid, "token %s is used, but no node joined with it", r.ID)
			}
		}
	}
	return nil
}

func hashOf(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

// Fold folds transactions into a new state.
func Fold(txs []Transaction) (*State, error) {
	s := New()
	for _, t := range txs {
		if err := s.apply(t); err != nil {
			return nil, err
		}
	}
	return s, nil
}
