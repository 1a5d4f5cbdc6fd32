package protocol

import (
	"encoding/binary"
	"net/netip"
)

// Joining, over the hub's HTTPS port. TLS is transport only and its
// certificate is not looked at: the pin in the token authenticates the hub.
//
//	GET  PathHubList          -> HubListAnswer as JSON; the client checks the pin first
//	POST PathJoin             body: Noise message 1 with JoinRequest as payload
//	                          200: Noise message 2 with JoinAnswer as payload
//
// Noise_IK_25519_ChaChaPoly_BLAKE2s; the initiator's static key is the node's
// WireGuard key (so the join proves its possession), the responder's is the
// listed hub's WireGuard key. A message that the hub cannot open is answered
// with a bare HTTP 400.
const (
	PathHubList  = "/v1/hublist"
	PathJoin     = "/v1/join"
	JoinPrologue = "causeway join v1"
	// MaxJoinMessage is Noise's limit for a message; bodies are cut there.
	MaxJoinMessage = 65535
)

// JoinRequest asks to redeem a token.
type JoinRequest struct {
	Version      int               `json:"v"`
	TokenID      TokenID           `json:"token_id"`
	Secret       []byte            `json:"secret"` // TokenSecret, 32 bytes
	Name         string            `json:"name"`   // wanted node name: a DNS label
	IdentityKey  IdentityPublicKey `json:"identity_key"`
	Replace      bool              `json:"replace,omitempty"`
	AgentVersion string            `json:"agent_version,omitempty"`
	// Proves says that the agent answers a Challenge: from now on the hub takes no other
	// control session of the node.
	Proves bool `json:"proves,omitempty"`
}

// JoinAnswer is the hub's answer: Refused or everything else.
type JoinAnswer struct {
	Version int            `json:"v"`
	Refused *Refusal       `json:"refused,omitempty"`
	Number  NodeNumber     `json:"number,omitempty"`
	Name    string         `json:"name,omitempty"`
	Site    string         `json:"site,omitempty"`
	Overlay []netip.Addr   `json:"overlay,omitempty"`
	HubList *SignedHubList `json:"hub_list,omitempty"`
	// Routes are those of the token, approved: what the agent takes for its own by the
	// hub's word, for good. nil: the hub is older and does not say.
	Routes []netip.Prefix `json:"routes,omitzero"`
	// Mark is of the state with the node in it; nil: the hub is older.
	Mark *StateMark `json:"mark,omitempty"`
}

// Refusal says that a join was refused. Whoever shows no open token is told the same, whatever
// it is, RefusedToken; the hub's audit has the reason. Whoever shows one, and could join by
// another request, is told what is wrong with this one, RefusedRequest.
type Refusal struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Refusal codes.
const (
	RefusedToken   = "token"    // the token is not consumed by it
	RefusedRequest = "request"  // likewise, and the message says what to ask for instead
	RefusedBusy    = "busy"     // state not writable: try again
	RefusedHalted  = "halted"   // nor will it be until whoever runs the hub has done something; the token stays good
	RefusedVersion = "protocol" // the hub does not speak this version
)

// NodeStatement is what a node's identity key signs: this number uses this
// WireGuard key. Peers pin the identity key on first use and refuse a key
// change that it did not sign, or that lowers the epoch.
type NodeStatement struct {
	Number       NodeNumber         `json:"number"`
	WireGuardKey WireGuardPublicKey `json:"wireguard_key"`
	Epoch        uint32             `json:"epoch"`
}

// SignedNodeStatement is a statement with its signature.
type SignedNodeStatement struct {
	NodeStatement
	IdentityKey IdentityPublicKey `json:"identity_key"`
	Signature   []byte            `json:"signature"`
}

// message is what is signed: label, number, epoch (big endian), key.
func (s NodeStatement) message() []byte {
	b := []byte("causeway node statement v1\n")
	b = binary.BigEndian.AppendUint32(b, uint32(s.Number))
	b = binary.BigEndian.AppendUint32(b, s.Epoch)
	return append(b, s.WireGuardKey[:]...)
}

// Sign makes the signed form of s.
func (s NodeStatement) Sign(k IdentityPrivateKey) SignedNodeStatement {
	return SignedNodeStatement{s, k.Public(), k.Sign(s.message())}
}

// Valid reports whether the signature is IdentityKey's.
func (s SignedNodeStatement) Valid() bool {
	return s.IdentityKey.Verify(s.message(), s.Signature)
}
