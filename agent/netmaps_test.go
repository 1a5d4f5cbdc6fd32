package agent

import (
	"net/netip"

	"causeway/protocol"
)

func testPeer(n protocol.NodeNumber, routes ...string) protocol.Peer {
	a, _ := n.Overlay(protocol.DefaultOverlay4)
	p := protocol.Peer{Statement: protocol.NodeStatement{Number: n, WireGuardKey: protocol.WireGuardPublicKey{byte(n), 7}, Epoch: 1}.Sign(protocol.IdentityPrivateKey{byte(n)}),
		Name: "p", Site: "s", Overlay: []netip.Addr{a}}
	for _, r := range routes {
		p.Routes = append(p.Routes, netip.MustParsePrefix(r))
	}
	return p
}

func testNetmap(version uint64, peers ...protocol.Peer) protocol.Netmap {
	return protocol.Netmap{NetmapVersion: protocol.NetmapVersion{Epoch: 1, Version: version}, Peers: peers,
		Self: protocol.NetmapSelf{Number: 2, Routes: []protocol.AnnouncedRoute{{Prefix: netip.MustParsePrefix("10.2.0.0/24"), State: protocol.RouteApproved}}}}
}
