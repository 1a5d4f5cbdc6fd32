package protocol

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// NodeAsk is what a node that gets no session says of itself with the question for the hub
// list: by which key it would be known. A host whose disk was set back, or that is a copy of
// another one, has a key that was rotated out, or the identity of a node that is gone, and the
// tunnel answers neither. The hub's answer is Standing. Nothing is decided by a NodeAsk.
type NodeAsk struct {
	Number       NodeNumber         `json:"number"`
	WireGuardKey WireGuardPublicKey `json:"wireguard_key"` // the newest that the node has
	Epoch        uint32             `json:"epoch"`         // of that
	Time         time.Time          `json:"time"`          // by the node's clock, whole seconds
	Signature    []byte             `json:"signature"`     // the identity key's, over message
}

const (
	nodeAskLabel  = "causeway node ask v1\n"
	standingLabel = "causeway node standing v1\n"
	// MaxNodeAsk bounds a NodeAsk in a request, in bytes of its text.
	MaxNodeAsk = 1024
	// NodeParameter is the NodeAsk's name in a request for PathHubList, beside a nonce: its
	// JSON as base64url without padding.
	NodeParameter = "node"
)

// ErrNodeAskInvalid says that a NodeAsk does not read.
var ErrNodeAskInvalid = errors.New("invalid question of a node")

// message is what is signed: label, nonce, number, epoch (4 bytes each), time (Unix seconds, 8
// bytes), all big endian, key.
func (a NodeAsk) message(n ListNonce) []byte {
	b := append([]byte(nodeAskLabel), n[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(a.Number))
	b = binary.BigEndian.AppendUint32(b, a.Epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(a.Time.Unix()))
	return append(b, a.WireGuardKey[:]...)
}

// Sign returns a with the word of the node's identity key, for the question with this nonce.
func (a NodeAsk) Sign(n ListNonce, k IdentityPrivateKey) NodeAsk {
	a.Time = a.Time.UTC().Truncate(time.Second)
	a.Signature = k.Sign(a.message(n))
	return a
}

// SignedBy reports whether a was asked with this nonce by who holds the identity key.
func (a NodeAsk) SignedBy(n ListNonce, k IdentityPublicKey) bool {
	return k.Verify(a.message(n), a.Signature)
}

// Query is the value of NodeParameter.
func (a NodeAsk) Query() string {
	b, err := json.Marshal(a)
	if err != nil {
		return "" // it has nothing that does not marshal
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseNodeAsk reads what Query made. SignedBy judges it.
func ParseNodeAsk(text string) (a NodeAsk, err error) {
	if len(text) > MaxNodeAsk {
		return a, fmt.Errorf("%w: it is longer than %d bytes", ErrNodeAskInvalid, MaxNodeAsk)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return a, fmt.Errorf("%w: not base64url", ErrNodeAskInvalid)
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return NodeAsk{}, fmt.Errorf("%w: %w", ErrNodeAskInvalid, err)
	}
	return a, nil
}

// Ways in which a node is part of a cluster no more.
const (
	StandingLeft    = "left"
	StandingRevoked = "revoked"
)

// Standing is the cluster key's word of what the hub knows of the node that asked.
type Standing struct {
	Number       NodeNumber         `json:"number"`
	Name         string             `json:"name"` // as the hub has it now
	WireGuardKey WireGuardPublicKey `json:"wireguard_key"`
	KeyEpoch     uint32             `json:"key_epoch"`
	KeySince     time.Time          `json:"key_since"`      // whole seconds
	Gone         string             `json:"gone,omitempty"` // Standing…; empty: it is a node
	// Taken says that another node has the name of the one that is gone.
	Taken     bool   `json:"taken,omitempty"`
	Signature []byte `json:"signature"`
}

// message is what is signed: label, nonce, number, epoch (4 bytes each), since (Unix seconds, 8
// bytes), all big endian, key, 1 if taken else 0, gone, 0,
// name.
func (s Standing) message(n ListNonce) []byte {
	b := append([]byte(standingLabel), n[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(s.Number))
	b = binary.BigEndian.AppendUint32(b, s.KeyEpoch)
	b = binary.BigEndian.AppendUint64(b, uint64(s.KeySince.Unix()))
	b = append(b, s.WireGuardKey[:]...)
	taken := byte(0)
	if s.Taken {
		taken = 1
	}
	b = append(append(b, taken), s.Gone...)
	return append(append(b, 0), s.Name...)
}

// Sign returns s with the word of k, for the question with this nonce.
func (s Standing) Sign(n ListNonce, k ClusterPrivateKey) Standing {
	s.KeySince = s.KeySince.UTC().Truncate(time.Second)
	s.Signature = k.Sign(s.message(n))
	return s
}

// SignedBy reports whether s is the answer of the cluster with this key to the question with
// this nonce.
func (s Standing) SignedBy(n ListNonce, k ClusterPublicKey) bool {
	return k.Verify(s.message(n), s.Signature)
}

// Outdates reports whether the hub knows the node by a newer key than a shows: a is of an
// earlier time. s is the answer to a.
func (s Standing) Outdates(a NodeAsk) bool {
	return s.Gone == "" && s.WireGuardKey != a.WireGuardKey && s.KeyEpoch >= a.Epoch
}
