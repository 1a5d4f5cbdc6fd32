// Package identity is what a node keeps on disk: who it is (keys, number,
// name, hub list), the join that is under way, the last netmap and the
// identity keys of its peers. It leaves the meaning of all of these to others.
//
// Start with Open, which takes the state directory for this process alone.
package identity

import (
	"errors"
	"net/netip"
	"time"

	"causeway/agent/clock"
	"causeway/protocol"
)

// DefaultDir is the state directory of a host's agent.
const DefaultDir = "/var/lib/causeway-agent"

// Files of a state directory.
const (
	identityFile  = "identity.json"
	pendingFile   = "pending.json"
	netmapFile    = "netmap.json"
	pinsFile      = "pins.json"
	portFile      = "port.json"
	inventoryFile = "inventory.jsonl"
	incidentFile  = "incidents.json"
	heldFile      = "held.json"
	addrsFile     = "hubaddrs.json"
)

// maxFile bounds what is read back: the largest is a netmap.
const maxFile = protocol.MaxToAgent + 1<<20

// Errors that callers tell apart.
var (
	ErrNotJoined = errors.New("this host has not joined")
	ErrLocked    = errors.New("another causeway-agent uses this state directory")
)

// Identity is a joined node.
type Identity struct {
	Number       protocol.NodeNumber
	Name         string
	Site         string
	Overlay      []netip.Addr
	WireGuardKey protocol.WireGuardPrivateKey
	IdentityKey  protocol.IdentityPrivateKey
	KeyEpoch     uint32
	KeyMade      time.Time // of WireGuardKey; zero: not known
	// Next is the key that WireGuardKey is being rotated to: no hub is known to
	// have taken it yet. Its epoch is KeyEpoch + 1.
	Next *NextKey
	// Old is the key before WireGuardKey, good beside it until OldUntil.
	Old      protocol.WireGuardPrivateKey
	OldUntil time.Time
	Pin      protocol.Pin
	HubList  protocol.SignedHubList
	// Granted are the routes that came with the token of the join; nil: not known yet.
	Granted []netip.Prefix
	// Mark is how far the hub's state had come with the join; nil: not known.
	Mark *protocol.StateMark
	// HubListConfirmed is when a hub list was last shown to be the newest; zero: never yet.
	HubListConfirmed time.Time
	// MadeDir says that join made the state directory, so that leave takes it
	// away again.
	MadeDir bool
	// Joined is how the join reached the hub; nil: not known, it was one of before.
	Joined *Joined
	// Shields says that they are up unless the configuration says otherwise: they are on
	// hosts that joined since there are any.
	Shields bool
}

// Joined is how a join reached the hub: what the service needs too.
type Joined struct {
	Time      time.Time      `json:"time"`
	Hub       string         `json:"hub"`             // the token's address, host:port
	Addr      netip.AddrPort `json:"addr"`            // at which the hub, or the proxy, was
	Local     netip.Addr     `json:"local"`           // this host's address then
	Interface string         `json:"interface"`       // that had it; empty: not found
	Proxy     string         `json:"proxy,omitempty"` // URL, with a password if it has one; empty: none
	From      string         `json:"from,omitempty"`  // where the proxy was named: the environment, or a file
	CA        string         `json:"ca,omitempty"`    // setting of the environment by which the proxy's certificate was judged
}

// NextKey is a WireGuard key that no hub is known to have taken yet.
type NextKey struct {
	Key     protocol.WireGuardPrivateKey
	Made    time.Time
	Overlap time.Duration // how long the key before it stays good
}

// Take makes the next key the node's, and the one so far the old one. There is
// a next one.
func (i *Identity) Take(now time.Time) {
	i.Old, i.OldUntil = i.WireGuardKey, now.Add(i.Next.Overlap)
	if i.Next.Overlap <= 0 {
		i.Old, i.OldUntil = protocol.WireGuardPrivateKey{}, time.Time{}
	}
	i.WireGuardKey, i.KeyMade, i.KeyEpoch, i.Next = i.Next.Key, i.Next.Made, i.KeyEpoch+1, nil
}

// NextStatement is what peers shall pin once the next key is taken, signed.
func (i Identity) NextStatement() protocol.SignedNodeStatement {
	return protocol.NodeStatement{Number: i.Number, WireGuardKey: i.Next.Key.Public(), Epoch: i.KeyEpoch + 1}.Sign(i.IdentityKey)
}

// Statement is what peers pin, signed.
func (i Identity) Statement() protocol.SignedNodeStatement {
	return protocol.NodeStatement{Number: i.Number, WireGuardKey: i.WireGuardKey.Public(), Epoch: i.KeyEpoch}.Sign(i.IdentityKey)
}

// fileIdentity is identity.json. Private keys are written by their Secret
// form, which their own MarshalText refuses.
type fileIdentity struct {
	Version      int                    `json:"v"`
	Number       protocol.NodeNumber    `json:"number"`
	Name         string                 `json:"name"`
	Site         string                 `json:"site"`
	Overlay      []netip.Addr           `json:"overlay"`
	WireGuardKey string                 `json:"wireguard_private_key"`
	IdentityKey  string                 `json:"identity_private_key"`
	KeyEpoch     uint32                 `json:"key_epoch"`
	KeyMade      time.Time              `json:"key_made,omitzero"`
	Next         *fileNext              `json:"next,omitempty"`
	Old          *fileOld               `json:"old,omitempty"`
	Pin          []byte                 `json:"pin"`
	HubList      protocol.SignedHubList `json:"hub_list"`
	Granted      []netip.Prefix         `json:"granted,omitzero"`
	Mark         *protocol.StateMark    `json:"mark,omitempty"`
	ListTime     time.Time              `json:"hub_list_confirmed,omitzero"`
	MadeDir      bool                   `json:"made_dir,omitempty"`
	Shields      bool                   `json:"shields,omitempty"`
	Joined       *Joined                `json:"joined,omitempty"`
}

// fileNext and fileOld are the other keys of a rotation.
type fileNext struct {
	WireGuardKey string        `json:"wireguard_private_key"`
	Made         time.Time     `json:"made"`
	Overlap      time.Duration `json:"overlap_ns"`
}

type fileOld struct {
	WireGuardKey string    `json:"wireguard_private_key"`
	Until        time.Time `json:"until"`
}

const fileVersion = 1

// Pending is a join whose answer has not been stored yet. It holds no token
// secret: a retry is given the token again, and only has to use the same keys.
type Pending struct {
	TokenID      protocol.TokenID
	WireGuardKey protocol.WireGuardPrivateKey
	IdentityKey  protocol.IdentityPrivateKey
	MadeDir      bool
}

type filePending struct {
	Version      int              `json:"v"`
	TokenID      protocol.TokenID `json:"token_id"`
	WireGuardKey string           `json:"wireguard_private_key"`
	IdentityKey  string           `json:"identity_private_key"`
	MadeDir      bool             `json:"made_dir,omitempty"`
}

// StoredNetmap is the last netmap that a hub sent, as it was sent.
type StoredNetmap struct {
	Netmap protocol.Netmap `json:"netmap"`
	// Confirmed is when a hub was last heard to stand by it; MaxAge counts
	// from here.
	Confirmed time.Time `json:"confirmed"`
	// Clock is what the time was when this was stored.
	Clock clock.State `json:"clock,omitzero"`
	// Revoked says that a hub told this node that it is none any more.
	Revoked bool `json:"revoked,omitempty"`
	// Gone name nodes that are never taken back, whatever netmap comes.
	Gone []protocol.SignedGoneList `json:"gone,omitempty"`
}

// Pin is what is remembered of a peer for good.
type Pin struct {
	IdentityKey  protocol.IdentityPublicKey  `json:"identity_key"`
	WireGuardKey protocol.WireGuardPublicKey `json:"wireguard_key"`
	Epoch        uint32                      `json:"epoch"`
}

// SpoolDir, below the state directory, holds an upgrade that waits for root
// (agent/upgrade).
const SpoolDir = "upgrade"

// SplitDNSFile, below the state directory, is there while the host's own resolver shall ask the agent for names.
const SplitDNSFile = "split-dns"

// SplitDNSTold is where root says what it told the host's resolver: the device's index and the address.
const SplitDNSTold = "/run/causeway/split-dns"
