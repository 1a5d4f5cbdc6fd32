package protocol

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// StateMark is the cluster key's word of how far the hub's state had come. Netmaps and the answer
// to a join carry the newest, KindMark what changes no netmap; agents keep it and show it in Hello, and where no hub welcomes them with
// the question for the hub list. A hub whose disk was set back finds by it that its state
// once went further: nobody without the cluster key can make one, and an old one says
// nothing.
type StateMark struct {
	Epoch      uint64           `json:"epoch"`    // of netmaps
	Sequence   uint64           `json:"sequence"` // of the last transaction
	Hash       []byte           `json:"hash"`     // SHA-256 of that
	Time       time.Time        `json:"time"`     // of that, whole seconds
	NextNumber NodeNumber       `json:"next_number"`
	ClusterKey ClusterPublicKey `json:"cluster_key"`
	Signature  []byte           `json:"signature"` // Ed25519 over message
}

// FeatureMark in Hello.Features says that the agent takes KindMark.
const FeatureMark = "mark"

const (
	stateMarkLabel = "causeway state mark v1\n"
	stateMarkHash  = 32
	// MaxStateMark bounds a mark in a request, in bytes of its text.
	MaxStateMark = 1024
	// MarkParameter is the mark's name in a request for PathHubList: its JSON as
	// base64url without padding.
	MarkParameter = "mark"
)

// ErrStateMarkInvalid says that a mark is not the cluster's, or damaged.
var ErrStateMarkInvalid = errors.New("invalid mark of the state")

// message is what is signed: label, epoch, sequence, time (Unix seconds), next number, each
// big endian in 8 bytes, hash.
func (m StateMark) message() []byte {
	b := []byte(stateMarkLabel)
	for _, v := range []uint64{m.Epoch, m.Sequence, uint64(m.Time.Unix()), uint64(m.NextNumber)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return append(b, m.Hash...)
}

// Sign returns m with the word of k.
func (m StateMark) Sign(k ClusterPrivateKey) StateMark {
	m.Time = m.Time.UTC().Truncate(time.Second)
	m.ClusterKey = k.Public()
	m.Signature = k.Sign(m.message())
	return m
}

// Check reports what is wrong with a mark that anybody may have shown: ErrPinMismatch or
// ErrStateMarkInvalid.
func (m StateMark) Check(pin Pin) error {
	switch {
	case m.ClusterKey.Pin() != pin:
		return ErrPinMismatch
	case len(m.Hash) != stateMarkHash || m.Sequence == 0 || !m.NextNumber.Valid():
		return ErrStateMarkInvalid
	case !m.ClusterKey.Verify(m.message(), m.Signature):
		return fmt.Errorf("%w: bad signature", ErrStateMarkInvalid)
	}
	return nil
}

// Less reports whether m is of an older state than n.
func (m StateMark) Less(n StateMark) bool {
	return m.Epoch < n.Epoch || m.Epoch == n.Epoch && m.Sequence < n.Sequence
}

// Query is the value of MarkParameter.
func (m StateMark) Query() string {
	b, err := json.Marshal(m)
	if err != nil {
		return "" // it has nothing that does not marshal
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseStateMark reads what Query made. Check judges it.
func ParseStateMark(text string) (m StateMark, err error) {
	if len(text) > MaxStateMark {
		return m, fmt.Errorf("%w: it is longer than %d bytes", ErrStateMarkInvalid, MaxStateMark)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return m, fmt.Errorf("%w: not base64url", ErrStateMarkInvalid)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return StateMark{}, fmt.Errorf("%w: %w", ErrStateMarkInvalid, err)
	}
	return m, nil
}
