package netmapcheck

import (
	"encoding/json"
	"testing"

	"causeway/protocol"
)

// FuzzNetmap: a hub that was taken over sends an agent whatever it likes, as a
// full netmap or as a change to the one held. Nothing of it may crash the agent,
// and what the agent takes keeps its rules. What cannot be forged without a
// node's identity key, its statement, comes from the netmap held before.
func FuzzNetmap(f *testing.F) {
	held := protocol.Netmap{NetmapVersion: protocol.NetmapVersion{Epoch: 1, Version: 4},
		Peers: []protocol.Peer{peer(3, "10.1.0.0/24", "fd00:1::/64"), peer(4)}}
	seed := func(n protocol.Netmap) {
		b, err := json.Marshal(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(held)
	change := protocol.Netmap{NetmapVersion: protocol.NetmapVersion{Epoch: 1, Version: 5}, Base: &held.NetmapVersion,
		Peers: []protocol.Peer{peer(4, "10.1.0.0/24", "0.0.0.0/0", "10.99.1.0/24", "::ffff:10.1.0.0/112")}, Removed: []protocol.NodeNumber{3, 1 << 30},
		Self: protocol.NetmapSelf{Number: 2, Routes: []protocol.AnnouncedRoute{{Prefix: pfx("10.2.0.0/24")[0], State: protocol.RouteApproved}}}, Requires: []string{"x"}}
	seed(change)
	f.Add([]byte(`{"peers":[{"statement":{},"overlay":[""],"routes":["10.0.0.0/8","10.1.2.3/8",""]}],"self":{"routes":[{"prefix":"","state":"approved"}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n protocol.Netmap
		if json.Unmarshal(b, &n) != nil {
			return
		}
		full, err := n.Apply(&held)
		if err != nil {
			return
		}
		in := input(full.Peers...)
		in.Netmap, in.Last = full, held.Peers
		for i, p := range full.Peers { // a hub has statements to choose from, and cannot make any
			for _, h := range held.Peers {
				if p.Number() == h.Number() {
					full.Peers[i].Statement = h.Statement
				}
			}
		}
		if why := violation(in, Check(in)); why != "" {
			t.Fatal(why)
		}
	})
}
