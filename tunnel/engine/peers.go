package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"causeway/protocol"
)

// maxKeepalive is what WireGuard's configuration can hold.
const maxKeepalive = 65535 * time.Second

// CheckPeers says what is wrong with a set of peers, as SetPeers of every
// engine does before it changes anything: WireGuard itself would move a
// prefix silently to the last peer that claims it. Own are the device's public
// keys, which can be no peer's. Prefixes count without their host bits.
func CheckPeers(own []protocol.WireGuardPublicKey, peers []Peer) error {
	numbers := make(map[protocol.NodeNumber]bool, len(peers))
	keys := make(map[protocol.WireGuardPublicKey]protocol.NodeNumber, len(peers))
	prefixes := make(map[netip.Prefix]protocol.NodeNumber, len(peers))
	for _, p := range peers {
		if !p.Number.Valid() {
			return fmt.Errorf("peer %d: not a node number", p.Number)
		}
		if numbers[p.Number] {
			return fmt.Errorf("peer %d: number is there twice", p.Number)
		}
		numbers[p.Number] = true
		if p.Key.IsZero() {
			return fmt.Errorf("peer %d: no key", p.Number)
		}
		if slices.Contains(own, p.Key) {
			return fmt.Errorf("peer %d: key is our own", p.Number)
		}
		if other, ok := keys[p.Key]; ok {
			return fmt.Errorf("peer %d: key is peer %d's too", p.Number, other)
		}
		keys[p.Key] = p.Number
		if p.Keepalive < 0 || p.Keepalive > maxKeepalive || p.Keepalive%time.Second != 0 {
			return fmt.Errorf("peer %d: keepalive %s is not whole seconds between 0 and %s", p.Number, p.Keepalive, maxKeepalive)
		}
		for _, prefix := range p.AllowedIPs {
			if !prefix.IsValid() || prefix.Addr().Is4In6() {
				return fmt.Errorf("peer %d: invalid prefix %s", p.Number, prefix)
			}
			m := prefix.Masked()
			if other, ok := prefixes[m]; ok && other != p.Number {
				return fmt.Errorf("peer %d: prefix %s is peer %d's too", p.Number, m, other)
			}
			prefixes[m] = p.Number
		}
	}
	return nil
}
