package protocol

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// A control session belongs to a node because whoever speaks holds the node's
// identity key; the overlay address that it comes from proves nothing, as
// everything on the node's host may have it.
//
//	agent -> hub   hello      with Vouch: it has the key, and will answer a challenge
//	hub -> agent   challenge  a nonce of this session alone
//	agent -> hub   proof      signature of that, for this hub, of this hello
//	hub -> agent   welcome
//
// Before the proof the hub keeps, charges and does nothing for the session. A hub of
// the version before sends welcome at once. A hello without Vouch is that of an agent of
// the version before.

// ChallengeNonce is the length of a challenge's nonce.
const ChallengeNonce = 32

const (
	signVouchLabel = "causeway hello v1\n"
	signProofLabel = "causeway session proof v1\n"
	maxProofBody   = 1 << 10
)

// MaxProof bounds the frame of a proof.
const MaxProof = 4 << 10

// Kinds of the proof.
const (
	KindChallenge MessageKind = "challenge" // hub to agent
	KindProof     MessageKind = "proof"     // agent to hub
)

// ErrProofInvalid says that a challenge or proof is not in form.
var ErrProofInvalid = errors.New("invalid proof of a session")

// Vouch makes what a hello carries for this hub: it tells those who hold the node's
// identity key from those who do not before the hub spends anything on them. It proves
// nothing by itself, as it is the same in each session of one run of an agent.
//
// Signed are label, hub (4 bytes, big endian), node (4), boot id (8).
func Vouch(hub, node NodeNumber, boot BootID, k IdentityPrivateKey) []byte {
	return k.Sign(vouchMessage(hub, node, boot))
}

// Vouched reports whether vouch is that of the node with key k.
func Vouched(vouch []byte, hub, node NodeNumber, boot BootID, k IdentityPublicKey) bool {
	return k.Verify(vouchMessage(hub, node, boot), vouch)
}

func vouchMessage(hub, node NodeNumber, boot BootID) []byte {
	b := binary.BigEndian.AppendUint32([]byte(signVouchLabel), uint32(hub))
	b = binary.BigEndian.AppendUint32(b, uint32(node))
	return append(b, boot[:]...)
}

// Challenge is the body of KindChallenge.
type Challenge struct {
	Nonce []byte     `json:"nonce"` // ChallengeNonce bytes, never used again
	Hub   NodeNumber `json:"hub"`
	Boot  BootID     `json:"boot_id"` // the hub's
}

// Proof is the body of KindProof.
type Proof struct {
	Signature []byte `json:"signature"`
}

// ParseChallenge reads the body of a KindChallenge.
func ParseChallenge(body []byte) (c Challenge, err error) {
	if len(body) > maxProofBody {
		return c, fmt.Errorf("%w: a challenge of %d bytes", ErrProofInvalid, len(body))
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return Challenge{}, fmt.Errorf("%w: %w", ErrProofInvalid, err)
	}
	if len(c.Nonce) != ChallengeNonce || !c.Hub.Valid() {
		return Challenge{}, fmt.Errorf("%w: a challenge of hub %d with a nonce of %d bytes", ErrProofInvalid, c.Hub, len(c.Nonce))
	}
	return c, nil
}

// ParseProof reads the body of a KindProof.
func ParseProof(body []byte) (p Proof, err error) {
	if len(body) > maxProofBody {
		return p, fmt.Errorf("%w: %d bytes", ErrProofInvalid, len(body))
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return Proof{}, fmt.Errorf("%w: %w", ErrProofInvalid, err)
	}
	return p, nil
}

// Prove answers c as node, which said hello with this body.
func (c Challenge) Prove(node NodeNumber, hello []byte, k IdentityPrivateKey) Proof {
	return Proof{k.Sign(c.message(node, hello))}
}

// Proves reports whether p is the answer of node, whose key is k and who said hello with
// this body, to c.
func (p Proof) Proves(c Challenge, node NodeNumber, hello []byte, k IdentityPublicKey) bool {
	return len(c.Nonce) == ChallengeNonce && k.Verify(c.message(node, hello), p.Signature)
}

// message is what is signed: label, nonce, hub (4 bytes, big endian), the hub's boot id (8),
// node (4), SHA-256 of the hello's body as it crossed the wire: so the node's own boot id,
// key epoch, routes and netmap, too.
func (c Challenge) message(node NodeNumber, hello []byte) []byte {
	b := append([]byte(signProofLabel), c.Nonce...)
	b = binary.BigEndian.AppendUint32(b, uint32(c.Hub))
	b = append(b, c.Boot[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(node))
	sum := sha256.Sum256(hello)
	return append(b, sum[:]...)
}
