package protocol

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// Answers of an agent that may be long (captures, logs that are followed, profiles, netmaps) take
// a TCP connection of their own, so that neither they nor a reader who does not read keep
// what the control connection carries waiting.
//
//	hub -> agent   bulk       on the control stream: a challenge, good once and not for long
//	agent -> hub   BulkProof  first frame of a connection from the agent's overlay address to
//	                          BulkPort: the challenge's nonce, and a signature of it
//	hub -> agent   HTTP/1.1   one request to the agent's debug endpoints, and its answer
//
// The hub closes all that does not begin with the proof of a challenge that is open. Such a
// connection belongs to the control session in which the hub asked for it, and ends with it.
// An agent says FeatureBulk in its hello; to one of the version before the hub
// opens a debug stream.

// FeatureBulk in a Hello says that the agent opens connections to BulkPort when its hub asks.
const FeatureBulk = "bulk"

// KindBulk asks an agent for a connection to BulkPort; its body is a Challenge.
const KindBulk MessageKind = "bulk"

const signBulkLabel = "causeway bulk connection v1\n"

// BulkProof is the first frame of a connection to BulkPort (WriteFrame, MaxProof).
type BulkProof struct {
	Nonce     []byte `json:"nonce"`
	Signature []byte `json:"signature"`
}

// UnmarshalJSON refuses what is not in form.
func (p *BulkProof) UnmarshalJSON(b []byte) error {
	type plain BulkProof
	if err := json.Unmarshal(b, (*plain)(p)); err != nil {
		return fmt.Errorf("%w: %w", ErrProofInvalid, err)
	}
	if len(p.Nonce) != ChallengeNonce {
		return fmt.Errorf("%w: a nonce of %d bytes", ErrProofInvalid, len(p.Nonce))
	}
	return nil
}

// ProveBulk answers c as node.
func (c Challenge) ProveBulk(node NodeNumber, k IdentityPrivateKey) BulkProof {
	return BulkProof{c.Nonce, k.Sign(c.bulkMessage(node))}
}

// Proves reports whether p is the answer of node, whose key is k, to c.
func (p BulkProof) Proves(c Challenge, node NodeNumber, k IdentityPublicKey) bool {
	return len(c.Nonce) == ChallengeNonce && string(p.Nonce) == string(c.Nonce) && k.Verify(c.bulkMessage(node), p.Signature)
}

// bulkMessage is what is signed: label, nonce, hub (4 bytes, big endian), the hub's boot id (8), node (4).
func (c Challenge) bulkMessage(node NodeNumber) []byte {
	b := append([]byte(signBulkLabel), c.Nonce...)
	b = binary.BigEndian.AppendUint32(b, uint32(c.Hub))
	b = append(b, c.Boot[:]...)
	return binary.BigEndian.AppendUint32(b, uint32(node))
}
