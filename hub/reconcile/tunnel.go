package reconcile

import (
	"context"
	"fmt"

	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// tunnelNodes are the nodes that the tunnel is to have: the live ones, and those that are gone but
// have not heard so yet.
func tunnelNodes(st *state.State, fl fleet.Snapshot, who *talk) []tunnel.HubNode {
	nodes := st.LiveNodes()
	for n, x := range fl.Nodes.All() {
		if node, ok := st.Nodes.Find(n); ok && !node.Live() && x.Leaving {
			nodes = append(nodes, node)
		}
	}
	out := make([]tunnel.HubNode, 0, len(nodes))
	for _, n := range nodes {
		overlay, err := st.OverlayOf(n.Number)
		if err != nil {
			continue
		}
		out = append(out, tunnel.HubNode{Number: n.Number, Key: n.WireGuardKey, Overlay: overlay, Class: who.class(n)})
	}
	return out
}

// setNodes gives the tunnel its nodes, if they are others than before.
func (l *Loop) setNodes(_ context.Context, t *turn) error {
	nodes := tunnelNodes(t.state, t.fleet(), &l.talk)
	print := fmt.Appendf(nil, "%d ", l.talk.serial)
	has := map[protocol.NodeNumber]bool{}
	for _, n := range nodes {
		has[n.Number] = true
		print = fmt.Appendf(print, "%d/%d/%t ", n.Number, t.state.Nodes.Get(n.Number).KeyEpoch(), n.Class == l.talk.alone)
	}
	fingerprint := string(print)
	if fingerprint == l.fingerprint {
		return nil
	}
	if err := l.cfg.Tunnel.SetNodes(nodes); err != nil {
		return fmt.Errorf("set the tunnel's nodes: %w", err)
	}
	l.fingerprint, t.acted = fingerprint, true
	l.cfg.Fleet.Cut(func(n protocol.NodeNumber) bool { return has[n] })
	return nil
}
