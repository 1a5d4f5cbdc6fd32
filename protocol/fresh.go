package protocol

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// A hub list is good for a year, and nothing in it says that a newer one exists. So
// whoever relies on one that somebody showed him asks with a nonce, and gets
// beside the list a Freshness: the cluster key's word, over that nonce, that the
// list is the newest. Who has an old list and an old hub key has no such word.
//
//	GET PathHubList?nonce=N   -> HubListAnswer; without a nonce, or from an older hub, without Fresh
//	GET PathHubList?…&mark=M  -> the same, with Mark if M is this cluster's
//	GET PathHubList?…&node=A  -> the same, with Standing if A is signed by a node that is or was there
//	KindHubListAsk            -> KindHubList, on a control stream

// ListNonce is 32 random bytes of whoever asks for the hub list.
type ListNonce [32]byte

// NewListNonce makes one.
func NewListNonce() (n ListNonce, err error) {
	_, err = rand.Read(n[:])
	return n, err
}

// String returns the nonce as base64url without padding.
func (n ListNonce) String() string { return base64.RawURLEncoding.EncodeToString(n[:]) }

// MarshalText is String.
func (n ListNonce) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (n *ListNonce) UnmarshalText(b []byte) error {
	if len(b) != base64.RawURLEncoding.EncodedLen(len(n)) {
		return errors.New("nonce has the wrong length")
	}
	d, err := base64.RawURLEncoding.Strict().DecodeString(string(b))
	if err != nil {
		return errors.New("nonce is not base64url")
	}
	copy(n[:], d)
	return nil
}

// NonceParameter is the nonce's name in a request for PathHubList.
const NonceParameter = "nonce"

// HubListAsk is the body of KindHubListAsk.
type HubListAsk struct {
	Nonce ListNonce `json:"nonce"`
}

// HubListAnswer is a hub list and, where it was asked for with a nonce, the word that
// it is the newest.
type HubListAnswer struct {
	SignedHubList
	Fresh *Freshness `json:"fresh,omitempty"`
	// Mark is of the hub's state, for whoever shows one of this cluster.
	Mark *StateMark `json:"mark,omitempty"`
	// Standing is of the node that asks, if it says who it is.
	Standing *Standing `json:"standing,omitempty"`
}

// Freshness says that a hub list is the cluster's newest.
type Freshness struct {
	Nonce     ListNonce `json:"nonce"`
	Serial    uint64    `json:"serial"` // of that list
	Time      time.Time `json:"time"`   // by the hub's clock, whole seconds; for people, the nonce is what counts
	Signature []byte    `json:"signature"`
}

// ErrNotFresh says that a hub list was not shown to be the newest.
var ErrNotFresh = errors.New("nothing shows that the hub list is the newest")

// message is what is signed: label, nonce, serial (big endian), time (Unix
// seconds, big endian), SHA-256 of the list's payload.
func (f Freshness) message(s SignedHubList) []byte {
	b := []byte("causeway hub list fresh v1\n")
	b = append(b, f.Nonce[:]...)
	b = binary.BigEndian.AppendUint64(b, f.Serial)
	b = binary.BigEndian.AppendUint64(b, uint64(f.Time.Unix()))
	sum := sha256.Sum256(s.Payload)
	return append(b, sum[:]...)
}

// Fresh makes the word that s, whose serial is serial, is the newest list. k is
// the key that signed s.
func (s SignedHubList) Fresh(k ClusterPrivateKey, serial uint64, n ListNonce, at time.Time) *Freshness {
	f := Freshness{Nonce: n, Serial: serial, Time: at.UTC().Truncate(time.Second)}
	f.Signature = k.Sign(f.message(s))
	return &f
}

// OpenFresh is Open for an answer to a question with nonce n. It fails with ErrNotFresh
// if the list is not shown to be the newest.
func (a HubListAnswer) OpenFresh(pin Pin, n ListNonce) (HubList, error) {
	l, err := a.Open(pin)
	switch f := a.Fresh; {
	case err != nil:
		return HubList{}, err
	case f == nil:
		return HubList{}, fmt.Errorf("%w: the answer says nothing of it", ErrNotFresh)
	case f.Nonce != n:
		return HubList{}, fmt.Errorf("%w: the answer is one to another question", ErrNotFresh)
	case f.Serial != l.Serial:
		return HubList{}, fmt.Errorf("%w: it is list %d, and list %d was shown", ErrNotFresh, f.Serial, l.Serial)
	case !a.ClusterKey.Verify(f.message(a.SignedHubList), f.Signature):
		return HubList{}, fmt.Errorf("%w: bad signature", ErrNotFresh)
	}
	return l, nil
}
