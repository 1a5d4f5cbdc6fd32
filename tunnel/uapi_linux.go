package tunnel

import (
	"context"

	"golang.org/x/sys/unix"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/uapi"
)

// shown is a node as wg(8) may look at it: no key but the peers' public ones,
// and nothing can be set. A peer's endpoint is where its datagrams go now, the
// hub's address for a relay.
type shown struct{ n *Node }

var _ uapi.Backend = shown{}

// Get implements uapi.Backend.
func (s shown) Get() (uapi.Device, error) {
	n := s.n
	n.mu.Lock()
	peers := enginePeers(n.hubs, n.peers)
	n.mu.Unlock()
	stats := map[protocol.NodeNumber]engine.PeerStats{}
	for _, st := range n.engine().Stats() {
		stats[st.Number] = st
	}
	paths := map[protocol.NodeNumber]protocol.PathStatus{}
	for _, p := range n.under.Paths() {
		paths[p.Peer] = p
	}
	d := uapi.Device{ListenPort: n.Port(), Mark: n.cfg.Mark, Peers: make([]uapi.Peer, len(peers))}
	for i, p := range peers {
		d.Peers[i] = uapi.Peer{Key: p.Key, AllowedIPs: p.AllowedIPs, Keepalive: p.Keepalive,
			RxBytes: stats[p.Number].RxBytes, TxBytes: stats[p.Number].TxBytes, LastHandshake: stats[p.Number].LastHandshake}
		if path := paths[p.Number]; path.Path == protocol.PathDirect || path.Path == protocol.PathRelay {
			d.Peers[i].Endpoint = path.Addr
		}
	}
	return d, nil
}

// Set implements uapi.Backend.
func (shown) Set(uapi.Change) error { return unix.EPERM }

// show serves the socket for wg(8) until ctx ends. It is no part of the
// tunnel: that it cannot be had is worth a warning.
func (n *Node) show(ctx context.Context) {
	s, err := uapi.Listen(uapi.Directory, n.cfg.Interface, shown{n})
	if err == nil {
		err = s.Run(ctx)
	}
	if err != nil {
		n.cfg.Log.Warn().Err(err).Str("iface", n.cfg.Interface).Msg("wg cannot show this tunnel")
	}
}
