package tunnel

import (
	"net/netip"
	"slices"

	"causeway/protocol"
	"causeway/tunnel/engine"
)

// HubRestarted receives the number of a hub that has proven a new boot id: its
// sessions and connections are gone, and control has to be dialled again. Of
// many that nobody took the latest are kept.
func (n *Node) HubRestarted() <-chan protocol.NodeNumber { return n.restarted }

// CandidatesChanged receives (coalesced) when Candidates has changed.
func (n *Node) CandidatesChanged() <-chan struct{} { return n.candidates }

// HubsChanged receives (coalesced) when HubBound has changed for any hub, or UDPBlocked.
func (n *Node) HubsChanged() <-chan struct{} { return n.hubsBound }

// Candidates are the host's own underlay addresses, for the hub to pass on.
func (n *Node) Candidates() []netip.AddrPort { return n.under.Candidates() }

// Paths says how each hub, and each peer that is or was talked to, is reached
// now, by number. The counters are WireGuard's: bytes on the wire of messages
// that were authentic.
func (n *Node) Paths() []protocol.PathStatus {
	paths := n.under.Paths()
	n.mu.Lock()
	names := n.names
	n.mu.Unlock()
	stats := map[protocol.NodeNumber]engine.PeerStats{}
	if e := n.engine(); e != nil {
		for _, s := range e.Stats() {
			stats[s.Number] = s
		}
	}
	for i, p := range paths {
		s := stats[p.Peer]
		paths[i].MTU = min(p.MTU, n.cfg.MTU)
		paths[i].Name, paths[i].RxBytes, paths[i].TxBytes = names[p.Peer], s.RxBytes, s.TxBytes
	}
	slices.SortFunc(paths, func(a, b protocol.PathStatus) int { return int(a.Peer) - int(b.Peer) })
	return paths
}

// View is how peer n is reached, over what else it could be, and why so; false: n is
// no peer.
func (n *Node) View(number protocol.NodeNumber) (protocol.PathView, bool) {
	v, ok := n.under.View(number)
	v.MTU = min(v.MTU, n.cfg.MTU)
	n.mu.Lock()
	v.Name = n.names[number]
	n.mu.Unlock()
	return v, ok
}

// Ways lists the ways to a peer or hub that are tried.
func (n *Node) Ways(number protocol.NodeNumber) []protocol.Way { return n.under.Ways(number) }

// Suspects lists paths that answer probes and carry no data, or little, so that others carry it.
func (n *Node) Suspects() []protocol.SuspectPath {
	l := n.under.Suspects()
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range l {
		l[i].Name = n.names[l[i].Peer]
	}
	return l
}

// SetInterface says whether the tunnel's interface is there and up, as whoever watches the
// host sees it. Peers learn it by their probes.
func (n *Node) SetInterface(there bool) { n.under.SetInterface(there) }

// HubBound reports whether the hub with this number has bound our address and
// answered lately.
func (n *Node) HubBound(hub protocol.NodeNumber) bool { return n.under.HubBound(hub) }

// UDPBlocked reports whether hubs are reached over streams alone.
func (n *Node) UDPBlocked() bool { return n.under.UDPBlocked() }

// Port is the UDP port of the underlay; 0 before Ready.
func (n *Node) Port() uint16 { return n.under.Port() }

// Dropped counts datagrams of the underlay that were not delivered or not sent, by reason.
func (n *Node) Dropped() map[string]uint64 { return n.under.Dropped() }

// Drops counts what the engine dropped, each reason that it tells apart; nil before Run.
func (n *Node) Drops() protocol.Drops {
	if e := n.engine(); e != nil {
		return e.Drops()
	}
	return nil
}

// SetLocal says to what peers may send: the node's own overlay addresses and approved
// prefixes. Whole state; before or while Run runs. Until then nothing of theirs is taken.
func (n *Node) SetLocal(l []netip.Prefix) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.local = slices.Clone(l)
	if e := n.engine(); e != nil {
		e.SetLocal(l)
	}
}

// Device is the tunnel's device as the host has it.
type Device struct {
	Name       string // what it is called now
	Index      int
	MTU, Queue int // that it was made with
}

// Device is the zero value before Ready, and while somebody has deleted the device.
func (n *Node) Device() Device {
	h := n.device.Load()
	if h == nil {
		return Device{}
	}
	name, index := h.Device()
	if name == "" {
		return Device{}
	}
	return Device{Name: name, Index: index, MTU: h.MTU(), Queue: h.QueueLen()}
}
