// Package uapi is WireGuard's configuration protocol for userspace devices
// (https://www.wireguard.com/xplatform/): what wg(8) speaks over the socket
// /var/run/wireguard/NAME.sock. Read reads a request, Device.Apply does what
// one asks of a device's configuration, Device.Write writes the answer, and
// Server serves all of it. What a device does with its configuration is its
// owner's business (Backend).
package uapi

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"causeway/protocol"
)

// Device is a WireGuard device as the protocol shows it.
type Device struct {
	PrivateKey protocol.WireGuardPrivateKey // zeros: none
	ListenPort uint16
	Mark       uint32
	Peers      []Peer
}

// Peer is one peer of a device.
type Peer struct {
	Key          protocol.WireGuardPublicKey
	PresharedKey [32]byte       // zeros: none
	Endpoint     netip.AddrPort // invalid: none known
	AllowedIPs   []netip.Prefix // masked; no prefix is in two peers
	Keepalive    time.Duration  // whole seconds; 0: none

	RxBytes, TxBytes uint64
	LastHandshake    time.Time // zero: none yet
}

// Request is one operation: get, or set with a change.
type Request struct {
	Get bool
	Set Change
}

// Change is a 'set' operation. What is nil or zero stays as it is.
type Change struct {
	PrivateKey   *protocol.WireGuardPrivateKey
	ListenPort   *uint16
	Mark         *uint32
	ReplacePeers bool
	Peers        []PeerChange // done in order; a peer may be named again
}

// PeerChange is what a 'set' operation does to one peer.
type PeerChange struct {
	Key               protocol.WireGuardPublicKey
	Remove            bool
	UpdateOnly        bool // nothing is done if the peer is not there
	PresharedKey      *[32]byte
	Endpoint          netip.AddrPort
	Keepalive         *time.Duration
	ReplaceAllowedIPs bool
	AllowedIPs        []AllowedIP
}

// AllowedIP is a prefix to be added to a peer, or taken from it.
type AllowedIP struct {
	Prefix netip.Prefix // masked
	Remove bool
}

// Error is an error with the number that the protocol answers.
type Error struct {
	Errno unix.Errno
	Err   error
}

// Error is the inner error's.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the inner error and the number.
func (e *Error) Unwrap() []error { return []error{e.Err, e.Errno} }

func invalid(format string, args ...any) error {
	return &Error{unix.EINVAL, fmt.Errorf(format, args...)}
}

// errno is the number for an error: its own, or EIO.
func errno(err error) unix.Errno {
	var n unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &n):
		return n
	}
	return unix.EIO
}

// Clone returns a copy that shares nothing with d.
func (d *Device) Clone() Device {
	c := *d
	c.Peers = slices.Clone(d.Peers)
	for i := range c.Peers {
		c.Peers[i].AllowedIPs = slices.Clone(c.Peers[i].AllowedIPs)
	}
	return c
}

// Apply does to the configuration what the kernel's WireGuard does: a prefix
// moves to the last peer that claims it, and a peer with the device's own key
// is none.
func (d *Device) Apply(c Change) {
	if c.ListenPort != nil {
		d.ListenPort = *c.ListenPort
	}
	if c.Mark != nil {
		d.Mark = *c.Mark
	}
	if c.ReplacePeers {
		d.Peers = nil
	}
	if c.PrivateKey != nil {
		d.PrivateKey = *c.PrivateKey
	}
	t := newTable(d)
	own := protocol.WireGuardPublicKey{}
	if !d.PrivateKey.IsZero() {
		own = d.PrivateKey.Public()
		t.remove(own)
	}
	for i := range c.Peers {
		if p := &c.Peers[i]; own.IsZero() || p.Key != own {
			t.apply(p)
		}
	}
	d.Peers = t.list()
}

// table is a device's peers while they change.
type table struct {
	order  []*entry
	peers  map[protocol.WireGuardPublicKey]*entry
	owners map[netip.Prefix]*entry
}

// entry is a peer whose prefixes are found by their value: moving one away
// must not search a list of a hundred thousand.
type entry struct {
	Peer
	at   map[netip.Prefix]int // in AllowedIPs; holes are invalid prefixes
	gone bool
}

func newTable(d *Device) *table {
	t := &table{peers: make(map[protocol.WireGuardPublicKey]*entry, len(d.Peers)), owners: map[netip.Prefix]*entry{}}
	for i := range d.Peers {
		e := t.add(d.Peers[i].Key)
		prefixes := d.Peers[i].AllowedIPs
		e.Peer = d.Peers[i]
		e.AllowedIPs = nil
		for _, p := range prefixes {
			t.give(e, p)
		}
	}
	return t
}

func (t *table) add(k protocol.WireGuardPublicKey) *entry {
	e := &entry{Peer: Peer{Key: k}, at: map[netip.Prefix]int{}}
	t.peers[k] = e
	t.order = append(t.order, e)
	return e
}

func (t *table) remove(k protocol.WireGuardPublicKey) {
	if e := t.peers[k]; e != nil {
		t.empty(e)
		e.gone = true
		delete(t.peers, k)
	}
}

// take takes a prefix from e, if it has it.
func (t *table) take(e *entry, p netip.Prefix) {
	if i, ok := e.at[p]; ok {
		e.AllowedIPs[i] = netip.Prefix{}
		delete(e.at, p)
		delete(t.owners, p)
	}
}

func (t *table) give(e *entry, p netip.Prefix) {
	switch o := t.owners[p]; o {
	case e:
		return
	case nil:
	default:
		t.take(o, p)
	}
	t.owners[p] = e
	e.at[p] = len(e.AllowedIPs)
	e.AllowedIPs = append(e.AllowedIPs, p)
}

func (t *table) empty(e *entry) {
	for p := range e.at {
		delete(t.owners, p)
	}
	clear(e.at)
	e.AllowedIPs = nil
}

func (t *table) apply(c *PeerChange) {
	e := t.peers[c.Key]
	switch {
	case c.Remove:
		t.remove(c.Key)
		return
	case e == nil && c.UpdateOnly:
		return
	case e == nil:
		e = t.add(c.Key)
	}
	if c.PresharedKey != nil {
		e.PresharedKey = *c.PresharedKey
	}
	if c.Endpoint.IsValid() {
		e.Endpoint = c.Endpoint
	}
	if c.Keepalive != nil {
		e.Keepalive = *c.Keepalive
	}
	if c.ReplaceAllowedIPs {
		t.empty(e)
	}
	for _, a := range c.AllowedIPs {
		if a.Remove {
			t.take(e, a.Prefix)
		} else {
			t.give(e, a.Prefix)
		}
	}
}

func (t *table) list() []Peer {
	var out []Peer
	for _, e := range t.order {
		if e.gone {
			continue
		}
		e.AllowedIPs = slices.DeleteFunc(e.AllowedIPs, func(p netip.Prefix) bool { return !p.IsValid() })
		if len(e.AllowedIPs) == 0 {
			e.AllowedIPs = nil
		}
		out = append(out, e.Peer)
	}
	return out
}
