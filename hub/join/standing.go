package join

import (
	"net/netip"
	"time"

	"causeway/hub/state"
	"causeway/protocol"
)

// standing answers a node that says who it is beside the question with nonce n. It is nil
// for whoever does not hold the identity key of a node that this cluster has or had.
func (s *Server) standing(st *state.State, a protocol.NodeAsk, n protocol.ListNonce, from string) *protocol.Standing {
	node, ok := st.Nodes.Find(a.Number)
	if !ok || !a.SignedBy(n, node.IdentityKey) {
		return nil
	}
	since := node.KeySince
	if since.IsZero() {
		since = node.Joined
	}
	out := protocol.Standing{Number: node.Number, Name: node.Name, WireGuardKey: node.WireGuardKey, KeyEpoch: node.KeyEpoch(), KeySince: since}
	switch node.Gone {
	case state.GoneLeft:
		out.Gone = protocol.StandingLeft
	case state.GoneRevoked:
		out.Gone = protocol.StandingRevoked
	}
	if _, err := st.FindNode(node.Name); err == nil && out.Gone != "" {
		out.Taken = true
	}
	out = out.Sign(n, s.cfg.Keys.Cluster)
	if s.cfg.Stray != nil && (out.Gone != "" || out.Outdates(a)) && time.Since(a.Time).Abs() < askedWithin {
		at, err := netip.ParseAddrPort(from)
		if err != nil {
			at = netip.AddrPort{}
		}
		s.cfg.Stray(node, a, at.Addr().Unmap())
	}
	return &out
}

// askedWithin is how far a host's clock may be off for its question to be noted, so that nobody
// who heard one can have it noted for ever.
const askedWithin = time.Hour
