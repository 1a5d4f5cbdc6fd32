package explain

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/policy"
	"causeway/protocol"
)

var (
	addrA, addrB = netip.MustParseAddr("10.1.1.11"), netip.MustParseAddr("10.2.1.11")
	now          = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// well is a flow from a pod at a1 to port 443 of a pod at b1, with nothing wrong.
func well() *Facts {
	end := func(name string, number protocol.NodeNumber, self, other netip.Addr, peer netip.Prefix, own string) End {
		overlay := netip.AddrFrom4([4]byte{198, 18, 0, byte(number)})
		node := &api.Node{Name: name, Site: "s-" + name, Number: number, State: api.NodeReady, Overlay: []netip.Addr{overlay}, Netmap: protocol.NetmapVersion{Epoch: 1, Version: 7}}
		return End{Asked: self.String(), Kind: KindAddress, Addr: self, Node: node, Connected: true, Silent: time.Second,
			Routes: []api.Route{{Node: name, Prefix: netip.MustParsePrefix(own), State: protocol.RouteApproved, Owner: true}},
			Bound:  []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:40000")}, At: now,
			Evidence: &protocol.Evidence{Time: now, Netmap: node.Netmap, Peer: true, Allowed: peer,
				Conditions: []protocol.Condition{{Name: "tunnel", OK: true}, {Name: "hub", OK: true, DependsOn: []string{"tunnel"}}, {Name: "firewall", OK: true}},
				Path:       &protocol.PathStatus{Path: protocol.PathDirect, RTT: time.Millisecond, MTU: 1380},
				Ways: []protocol.Way{{Kind: protocol.PathDirect, Addr: netip.MustParseAddrPort("203.0.113.9:41000"), Chosen: true, Answered: time.Second, Heard: time.Second},
					{Kind: protocol.PathRelay, Answered: time.Second, Heard: time.Second}},
				Probes: []protocol.TunnelPing{{Size: 72, Sent: 4, Received: 4}, {Size: 1380, Sent: 3, Received: 3}},
				Flow: protocol.FlowEvidence{Interface: "cw0", There: true, Up: true, HasRule: true,
					Out: protocol.RouteDecision{From: "pods0", To: "cw0", Forwarding: true}, In: protocol.RouteDecision{From: "cw0", To: "pods0", Forwarding: true}},
				Pod: &protocol.PodEvidence{Interface: "pods0", Neighbour: "reachable", MACs: []string{"02:00:00:00:00:01"},
					Spaces: []protocol.PodSpace{{PID: 9, Command: "web", HasRoute: true, Listeners: []string{"[::]:443"}}}},
				Underlay: protocol.UnderlayEvidence{LinkMTU: 1500},
				Disk:     &protocol.DiskSpace{Path: "/var/lib", Free: 1 << 30, Total: 2 << 30},
			}}
	}
	f := &Facts{Now: now, Proto: protocol.FlowTCP, Port: 443,
		From: end("a1", 2, addrA, addrB, netip.MustParsePrefix("10.2.1.0/24"), "10.1.1.0/24"),
		To:   end("b1", 3, addrB, addrA, netip.MustParsePrefix("10.1.1.0/24"), "10.2.1.0/24")}
	f.From.Evidence.Connect = &protocol.Connect{Result: protocol.ConnectOK}
	f.To.Evidence.Pod.Connect = &protocol.Connect{Result: protocol.ConnectOK}
	return f
}

func gone(e *End) {
	e.Evidence, e.Error, e.Silent = nil, "it does not answer", 9*time.Second
}

// incident is what was changed at b1 and put back; of the hub's session nothing is said.
func incident(subject string) func(*Facts) {
	return func(f *Facts) {
		f.To.Incidents = []api.Incident{
			{ID: "3-2", Node: "b1", Incident: protocol.Incident{Subject: "control", State: protocol.IncidentOver}},
			{ID: "3-1", Node: "b1", Incident: protocol.Incident{Subject: subject, State: protocol.IncidentOver, Reason: "changed by nft", Action: "put back as planned"}},
		}
	}
}

// A direct way that ended in both directions is none of one direction, whichever end was
// asked first, and what a change of path lost is no loss of the new one.
func TestDecideAfterAChangeOfPath(t *testing.T) {
	f := well()
	f.From.Evidence.Ways[0] = protocol.Way{Kind: protocol.PathDirect, Answered: 6 * time.Second, Heard: 6 * time.Second, Unanswered: 9}
	f.To.Evidence.Ways[0], f.To.At = protocol.Way{Kind: protocol.PathDirect, Answered: 3 * time.Second, Heard: 3 * time.Second, Unanswered: 5}, now.Add(-3*time.Second)
	f.From.Evidence.Ways[1].Chosen, f.From.Evidence.Ways[1].Gaps, f.From.Evidence.Path.Loss = true, 1, 0.1
	require.Empty(t, Decide(*f).Faults)
}

// What an engine dropped meanwhile says where a flow's packets end, if they get lost; of a flow
// that passes it says nothing, as it may be others' packets.
func TestDecideDrops(t *testing.T) {
	f := well()
	f.To.Evidence.Drops = protocol.Drops{protocol.DropSpoofed: 3, protocol.DropUnknown: 1}
	f.From.Evidence.Drops = protocol.Drops{protocol.DropSendErrors: 2}
	require.Empty(t, Decide(*f).Faults)

	f.From.Evidence.Connect.Result = protocol.ConnectTimeout
	x := Decide(*f)
	require.Len(t, x.Faults, 1)
	require.Equal(t, "lost-on-the-way", x.Faults[0].Cause)
	require.Equal(t, "b1", x.Faults[0].Node)
	require.Equal(t, "b1 drops packets that come from a1 under an address that a1 may not send from, as it seems those of the flow: something there changes their source", x.Faults[0].Summary)
	require.Contains(t, x.Faults[0].Mend, "on a1: nft list ruleset")
	require.Subset(t, x.Faults[0].Evidence, []string{
		"b1 dropped meanwhile: 3 from an address that the peer may not send from (spoofed)",
		"b1 dropped meanwhile: 1 of no session that is known, or of one that ended (unknown)",
		"a1 dropped meanwhile: 2 not taken by the path (send_errors)",
	})

	// What an access list counted before is no better answer, and where it is the only one the
	// flow is broken all the same.
	f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "out", Hook: "postrouting", Chain: protocol.AccessTable + protocol.InterfaceChain, Rule: "counter packets 4 drop"}}
	x = Decide(*f)
	require.Equal(t, "lost-on-the-way", x.Faults[0].Cause)
	require.Len(t, x.Faults, 2)
	f.To.Evidence.Drops = nil
	x = Decide(*f)
	require.Equal(t, api.VerdictBroken, x.Verdict)
	require.Len(t, x.Faults, 1)
	require.Equal(t, "source-interface", x.Faults[0].Cause)
	require.True(t, x.Faults[0].Blocks)

	f = well()
	for _, e := range []*End{&f.From, &f.To} {
		e.Evidence.Ways, e.Evidence.Path.Path, e.Evidence.Probes = nil, protocol.PathNone, []protocol.TunnelPing{{Sent: 4}}
	}
	f.To.Evidence.Drops = protocol.Drops{protocol.DropLimited: 9}
	x = Decide(*f)
	require.Equal(t, "no-path", x.Faults[0].Cause)
	require.Contains(t, x.Faults[0].Evidence, "b1 dropped meanwhile: 9 handshakes beyond the rate (limited)")
}

// An agent names no reasons of its own making.
func TestParseEvidenceDrops(t *testing.T) {
	e, err := ParseEvidence([]byte(`{"v":1,"drops":{"spoofed":3,"\u001b[2J":9,"later":1}}`))
	require.NoError(t, err)
	require.Equal(t, protocol.Drops{protocol.DropSpoofed: 3}, e.Drops)
	_, err = ParseEvidence([]byte(`{"v":1,"drops":{"spoofed":-3}}`))
	require.Error(t, err)
}

// A strict rp_filter drops what comes in before a rule leads what goes back astray.
func TestDecideStrictAndStolen(t *testing.T) {
	f := well()
	w := &f.To.Evidence.Flow
	w.In = protocol.RouteDecision{From: "cw0", Error: "EINVAL", Forwarding: true, RPFilter: 1}
	w.Out.To, w.Rules = "eth0", []string{"pref 100 to 10.1.0.0/16 lookup main"}
	var got []string
	for _, x := range Decide(*f).Faults {
		got = append(got, x.Cause)
	}
	require.Equal(t, []string{"rp-filter", "rule-steals"}, got)
}

// Each fault alone is named, at its node, and nothing else is.
func TestDecide(t *testing.T) {
	for _, c := range []struct {
		cause, node, hop string
		blocks           bool
		breaks           func(*Facts)
	}{
		{"unknown-name", "", HopName, true, func(f *Facts) { f.To = End{Asked: "web", Kind: KindUnknown} }},
		{"no-route", "", HopRoute, true, func(f *Facts) { f.To.Node, f.To.Routes, f.To.Evidence = nil, nil, nil }},
		{"node-revoked", "b1", HopPolicy, true, func(f *Facts) { f.To.Node.State = api.NodeRevoked; gone(&f.To) }},
		{"node-left", "b1", HopPolicy, true, func(f *Facts) { f.To.Node.State = api.NodeLeft; gone(&f.To) }},
		{"policy-closed", "", HopPolicy, true, func(f *Facts) {
			f.Closed = &policy.Verdict{Nearest: "main/web", Lacks: "it opens tcp/80 and not tcp/443"}
		}},
		{"node-quarantined", "a1", HopPolicy, true, func(f *Facts) { f.From.Node.State = api.NodeQuarantined }},
		{"agent-never-seen", "b1", HopAgent, true, func(f *Facts) { f.To.Node.State = api.NodeJoined; gone(&f.To) }},
		{"agent-stopped", "b1", HopAgent, true, func(f *Facts) { gone(&f.To); f.To.Connected, f.To.Goodbye = false, true }},
		{"agent-frozen", "b1", HopAgent, true, func(f *Facts) {
			gone(&f.To)
			f.From.Evidence.Ways = nil
			f.From.Evidence.Underlay.PeerHost = &protocol.TunnelPing{Sent: 2, Received: 2}
		}},
		{"agent-killed", "b1", HopAgent, true, func(f *Facts) {
			gone(&f.To)
			f.To.Routes[0].Why = "the node is unreachable" // which follows
			f.To.Connected, f.From.Evidence.Ways, f.From.Evidence.Underlay.PeerPort = false, nil, "closed"
		}},
		{"agent-silent", "b1", HopAgent, true, func(f *Facts) {
			gone(&f.To)
			f.From.Evidence.Ways = nil
			f.From.Evidence.Underlay.PeerHost = &protocol.TunnelPing{Sent: 2}
		}},
		{"control-lost", "b1", HopAgent, true, func(f *Facts) { gone(&f.To); f.To.Connected = false }},
		{"route-not-approved", "b1", HopApproval, true, func(f *Facts) {
			f.To.Routes[0].State, f.To.Routes[0].Owner = protocol.RoutePending, false
			f.From.Evidence.Allowed = netip.Prefix{}
		}},
		{"route-overlaps", "b1", HopApproval, true, func(f *Facts) {
			f.To.Routes[0].State, f.To.Conflict = protocol.RoutePending, "it overlaps route 10.2.0.0/16 of node c1"
		}},
		{"route-rejected", "b1", HopApproval, true, func(f *Facts) { f.To.Routes[0].State, f.To.Routes[0].By = protocol.RouteRejected, "admin:x" }},
		{"route-forbidden", "b1", HopApproval, true, func(f *Facts) { f.To.Routes[0].State, f.To.Routes[0].By = protocol.RouteRejected, "rule" }},
		{"route-not-carried", "b1", HopRoute, true, func(f *Facts) { f.To.Routes[0].Owner, f.To.Routes[0].Why = false, "the node does not announce it now" }},
		{"key-refused", "a1", HopAllowed, true, func(f *Facts) {
			e := f.From.Evidence
			e.Peer, e.Allowed, e.Refused, e.Path, e.Ways, e.Probes = false, netip.Prefix{}, []protocol.RefusedPart{{Peer: 3, Reason: "its identity key is not the one that was seen first"}}, nil, nil, nil
			f.To.Evidence.Ways, f.To.Evidence.Path = nil, nil
		}},
		{"route-overlaps", "a1", HopAllowed, true, func(f *Facts) {
			f.From.Evidence.Allowed, f.From.Evidence.Refused = netip.Prefix{}, []protocol.RefusedPart{{Peer: 3, Prefix: "10.2.1.0/24", Reason: "it overlaps this host's own route 10.2.0.0/16"}}
		}},
		{"route-refused", "a1", HopAllowed, true, func(f *Facts) {
			f.From.Evidence.Allowed, f.From.Evidence.Refused = netip.Prefix{}, []protocol.RefusedPart{{Peer: 3, Prefix: "10.2.1.0/24", Reason: "it is outside this host's accept ranges"}}
		}},
		{"stays-local", "a1", HopHost, true, func(f *Facts) {
			own := protocol.Own{Prefix: netip.MustParsePrefix("10.2.1.0/25"), Link: "docker0"}
			f.From.Evidence.Stays, f.From.Evidence.Name, f.From.Evidence.Takes = &own, own.Prefix, []protocol.Own{own}
			f.From.Evidence.Flow.Out.To, f.From.Evidence.Connect = "docker0", nil
		}},
		{"stays-local", "b1", HopRoute, true, func(f *Facts) { // a container of b1's own, in a range of another site's
			f.To.Taken = &api.Route{Node: "c1", Site: "s-c1", Prefix: netip.MustParsePrefix("10.2.0.0/16"), State: protocol.RouteApproved}
		}},
		{"allowed-ips", "a1", HopAllowed, true, func(f *Facts) { f.From.Evidence.Allowed = netip.Prefix{} }},
		{"netmap-expired", "a1", HopAllowed, true, func(f *Facts) { f.From.Evidence.Expired, f.From.Evidence.Peer = true, false }},
		{"netmap-refused", "a1", HopAllowed, true, func(f *Facts) {
			f.From.Evidence.Peer, f.From.Evidence.Refused = false, []protocol.RefusedPart{{Reason: "this agent lacks x"}}
		}},
		{"peer-missing", "a1", HopAllowed, true, func(f *Facts) { f.From.Evidence.Peer, f.From.Evidence.Allowed = false, netip.Prefix{} }},
		{"tun-deleted", "b1", HopHost, true, func(f *Facts) {
			w := &f.To.Evidence.Flow
			w.There, w.Up, w.Out.To, w.Missing = false, false, "eth0", []string{"ip link set cw0 up", "nft add table inet causeway"}
		}},
		{"tun-down", "b1", HopHost, true, func(f *Facts) { f.To.Evidence.Flow.Up = false }},
		{"rule-steals", "a1", HopHost, true, func(f *Facts) {
			f.From.Evidence.Flow.Out.To, f.From.Evidence.Flow.Rules = "eth0", []string{"pref 100 to 10.2.0.0/16 lookup 254"} // of an older agent
		}},
		{"rule-steals", "a1", HopHost, true, func(f *Facts) {
			w := &f.From.Evidence.Flow
			w.Out.To, w.Rules = "eth0", []string{"pref 5 to 10.9.0.0/16 lookup 7", "pref 7 lookup 254"}
			w.Out.Stolen = []protocol.PolicyRule{{Pref: 7, Text: "pref 7 lookup 254"}}
		}},
		{"rule-missing", "a1", HopHost, true, func(f *Facts) { f.From.Evidence.Flow.Out.To, f.From.Evidence.Flow.HasRule = "eth0", false }},
		{"route-missing", "a1", HopHost, true, func(f *Facts) {
			f.From.Evidence.Flow.Out.To, f.From.Evidence.Flow.Missing = "eth0", []string{"ip -4 route add 10.9.0.0/16 dev cw0 proto 202 table 51806", "ip -4 route add 10.2.1.0/24 dev cw0 proto 202 table 51806"}
		}},
		{"route-elsewhere", "a1", HopHost, true, func(f *Facts) { f.From.Evidence.Flow.Out.To = "eth0" }},
		{"no-local-route", "b1", HopHost, true, func(f *Facts) { f.To.Evidence.Flow.In.To = "eth0" }},
		{"forwarding-off", "b1", HopHost, true, func(f *Facts) {
			f.To.Evidence.Flow.In, f.To.Evidence.Flow.Missing = protocol.RouteDecision{From: "cw0", Error: "EHOSTUNREACH"}, []string{"sysctl -w net.ipv4.ip_forward=1"}
		}},
		{"rp-filter", "b1", HopHost, true, func(f *Facts) {
			f.To.Evidence.Flow.In = protocol.RouteDecision{From: "cw0", Error: "EXDEV", Forwarding: true}
		}},
		{"rp-filter", "b1", HopHost, true, func(f *Facts) {
			f.To.Evidence.Flow.In = protocol.RouteDecision{From: "cw0", Error: "EINVAL", Forwarding: true, RPFilter: 1}
		}},
		{"rp-filter", "b1", HopHost, false, func(f *Facts) {
			f.To.Evidence.Flow.Missing = []string{"sysctl -w net.ipv4.conf.cw0.rp_filter=2"}
		}},
		{"nft-flushed", "b1", HopFirewall, false, func(f *Facts) { f.To.Evidence.Flow.Missing = []string{"nft add table inet causeway"} }},
		{"sysctl-changed", "b1", HopHost, false, func(f *Facts) { f.To.Evidence.Flow.Missing = []string{"sysctl -w net.ipv4.conf.all.src_valid_mark=1"} }},
		{"host-firewall", "b1", HopFirewall, true, func(f *Facts) {
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "forward", Chain: "ip fw f", Rule: "drop", Handle: 3, Certain: true}}
			f.From.Evidence.Connect.Result = protocol.ConnectTimeout
		}},
		{"host-firewall", "b1", HopFirewall, true, func(f *Facts) { // not certain, and the connection fails
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "forward", Chain: "ip fw f", Rule: "drop", Handle: 3}}
			f.From.Evidence.Connect.Result = protocol.ConnectTimeout
		}},
		{"shields", "b1", HopFirewall, true, func(f *Facts) {
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "prerouting", Chain: "inet causeway shields", Rule: "counter drop", Handle: 9, Certain: true}}
			f.From.Evidence.Connect.Result = protocol.ConnectTimeout
		}},
		{"access-list", "b1", HopFirewall, true, func(f *Facts) {
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "prerouting", Chain: "inet causeway access-destination", Rule: "counter drop", Handle: 9, Certain: true}}
		}},
		{"source-interface", "a1", HopFirewall, false, func(f *Facts) {
			f.From.Evidence.Flow.Drops = []protocol.Drop{{Way: "out", Hook: "prerouting", Chain: "inet causeway access-interface", Rule: "counter packets 3 drop", Handle: 9}}
		}},
		{"lost-on-the-way", "", HopFirewall, true, func(f *Facts) { f.From.Evidence.Connect.Result = protocol.ConnectTimeout }},
		{"udp-blocked", "a1", HopPath, false, func(f *Facts) { f.From.Evidence.Underlay.UDPBlocked = true }},
		{"no-path", "", HopPath, true, func(f *Facts) {
			for _, e := range []*End{&f.From, &f.To} {
				e.Evidence.Ways, e.Evidence.Path, e.Evidence.Probes = []protocol.Way{{Kind: protocol.PathRelay, Answered: -1, Heard: -1}}, nil, nil
			}
		}},
		{"one-way-drop", "a1", HopPath, false, func(f *Facts) {
			f.From.Evidence.Ways[0] = protocol.Way{Kind: protocol.PathDirect, Answered: -1, Heard: -1, Unanswered: 5}
			f.To.Evidence.Ways[0].Answered = -1
		}},
		{"one-way-drop", "a1", HopPath, false, func(f *Facts) { // it began three seconds ago; b1 answered a second before a1
			f.From.Evidence.Ways[0] = protocol.Way{Kind: protocol.PathDirect, Answered: 4 * time.Second, Heard: 4 * time.Second, Unanswered: 5}
			f.To.Evidence.Ways[0], f.To.At = protocol.Way{Kind: protocol.PathDirect, Answered: 3 * time.Second, Heard: 100 * time.Millisecond}, now.Add(-time.Second)
		}},
		{"path-no-data", "a1", HopPath, false, func(f *Facts) {
			f.From.Evidence.Ways[0].Suspect = "of the last 9 packets of over 1000 bytes that were sent none arrived"
		}},
		{"path-no-data", "b1", HopPath, false, func(f *Facts) {
			f.To.Evidence.Underlay.Hub = []protocol.Way{{Kind: protocol.PathDirect, Suspect: "of the last 9 handshake messages that were sent none arrived"}}
		}},
		{"path-loss", "a1", HopPath, false, func(f *Facts) { f.From.Evidence.Path.Loss, f.From.Evidence.Ways[0].Gaps = 0.2, 3 }},
		{"nat-mapping-lost", "a1", HopNAT, false, func(f *Facts) { f.From.Bound = append(f.From.Bound, netip.MustParseAddrPort("203.0.113.5:40999")) }},
		{"mtu-hole", "a1", HopMTU, true, func(f *Facts) { f.From.Evidence.Probes[1].Received = 0 }},
		{"mtu-hole", "a1", HopMTU, false, func(f *Facts) { f.From.Evidence.Path.MTU = 1212 }},
		{"mtu-small", "a1", HopMTU, false, func(f *Facts) { f.From.Evidence.Path.MTU, f.From.Evidence.Underlay.PathMTU = 1212, 1300 }},
		{"pod-no-address", "b1", HopPod, true, func(f *Facts) {
			f.To.Evidence.Pod = &protocol.PodEvidence{Interface: "pods0", Neighbour: "failed", Connect: &protocol.Connect{Result: "EHOSTUNREACH"}}
		}},
		{"pod-no-route", "a1", HopPod, true, func(f *Facts) { f.From.Evidence.Pod.Spaces[0].HasRoute = false }},
		{"no-way-back", "b1", HopPod, true, func(f *Facts) { // a LAN host behind another router
			f.From.Evidence.Connect.Result = protocol.ConnectTimeout
			p := f.To.Evidence.Pod
			p.Spaces, p.Near, p.Far = nil, &protocol.TunnelPing{Sent: 2, Received: 2}, &protocol.TunnelPing{Sent: 2}
		}},
		{"no-way-back", "b1", HopPod, true, func(f *Facts) { // a container whose gateway is another machine
			f.From.Evidence.Connect.Result = protocol.ConnectTimeout
			p := f.To.Evidence.Pod
			p.Spaces[0].Gateway, p.Beside = netip.MustParseAddr("10.2.1.254"), netip.MustParseAddr("10.2.1.1")
			p.Near, p.Far = &protocol.TunnelPing{Sent: 2, Received: 2}, &protocol.TunnelPing{Sent: 2}
		}},
		{"lost-on-the-way", "", HopFirewall, true, func(f *Facts) { // something in between refuses in the pod's place
			f.From.Evidence.Connect.Result = protocol.ConnectRefused
		}},
		{"lost-on-the-way", "", HopFirewall, true, func(f *Facts) {
			f.Port, f.Proto, f.From.Evidence.Connect = 0, protocol.FlowICMP, nil
			f.To.Evidence.Pod.Near, f.From.Evidence.Reach = &protocol.TunnelPing{Sent: 2, Received: 2}, &protocol.TunnelPing{Sent: 2}
		}},
		{"host-firewall", "b1", HopFirewall, true, func(f *Facts) { // a node's own port that a rule rejects, as if nothing listened
			f.To.Evidence.Pod, f.From.Evidence.Connect.Result = nil, protocol.ConnectRefused
			f.To.Evidence.Flow.In.To, f.To.Evidence.Flow.Out.From = "lo", ""
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "input", Chain: "ip fw i", Rule: "limit rate 5/second reject", Handle: 3}}
		}},
		{"duplicate-address", "b1", HopPod, true, func(f *Facts) {
			f.To.Evidence.Pod.MACs = append(f.To.Evidence.Pod.MACs, "02:00:00:00:00:02")
		}},
		{"no-listener", "b1", HopListener, true, func(f *Facts) {
			f.To.Evidence.Pod.Connect.Result, f.To.Evidence.Pod.Spaces[0].Listeners = protocol.ConnectRefused, nil
			f.From.Evidence.Connect.Result = protocol.ConnectRefused
		}},
		{"wrong-port", "b1", HopListener, true, func(f *Facts) {
			f.To.Evidence.Pod.Connect.Result, f.To.Evidence.Pod.Spaces[0].Listeners = protocol.ConnectRefused, []string{"0.0.0.0:8443"}
		}},
		{"listener-loopback", "b1", HopListener, true, func(f *Facts) {
			f.To.Evidence.Pod.Connect.Result, f.To.Evidence.Pod.Spaces[0].Listeners = protocol.ConnectRefused, []string{"127.0.0.1:443"}
		}},
		{"pod-firewall", "b1", HopListener, true, func(f *Facts) { f.To.Evidence.Pod.Connect.Result = protocol.ConnectTimeout }},
		{"pod-silent", "b1", HopListener, true, func(f *Facts) {
			f.To.Evidence.Pod.Connect.Result, f.To.Evidence.Pod.Spaces = protocol.ConnectTimeout, nil
		}},
		{"no-listener", "b1", HopListener, true, func(f *Facts) {
			f.To.Evidence.Pod, f.From.Evidence.Connect.Result = nil, protocol.ConnectRefused
			f.To.Evidence.Flow.In.To, f.To.Evidence.Flow.Out.From = "lo", ""
		}},
		{"clock-wrong", "b1", HopHealth, false, func(f *Facts) { f.To.Evidence.Time = now.Add(-24 * time.Hour) }},
		{"disk-full", "b1", HopHealth, false, func(f *Facts) { f.To.Evidence.Disk.Free = 4096 }},
		{"hub-dns", "a1", HopHealth, false, func(f *Facts) {
			f.From.Evidence.Names = []protocol.HubName{{Name: "hub.example.net", Addrs: []netip.Addr{addrB}, Used: []netip.Addr{addrA}}}
		}},
		{"hub-dns", "a1", HopHealth, false, func(f *Facts) {
			f.From.Evidence.Names = []protocol.HubName{{Name: "hub.example.net", Error: "no such host", Used: []netip.Addr{addrA}}}
		}},
		{"nats-away", "", HopHealth, false, func(f *Facts) { f.Conditions = []protocol.Condition{{Name: "nats", Cause: "no servers"}} }},
		{"tun-deleted", "b1", HopHost, true, func(f *Facts) { // it answers, and nothing passes
			gone(&f.To)
			f.From.Evidence.Ways[0].NoInterface = true
		}},
		{"tun-deleted", "b1", HopHost, false, incident("link")},
		{"address-missing", "b1", HopHost, false, incident("addresses")},
		{"route-missing", "b1", HopHost, false, incident("routes")},
		{"rule-missing", "b1", HopHost, false, incident("rules")},
		{"nft-flushed", "b1", HopFirewall, false, incident("nftables")},
		{"forwarding-off", "b1", HopHost, false, incident("net.ipv4.ip_forward")},
		{"rp-filter", "b1", HopHost, false, incident("net.ipv4.conf.cw0.rp_filter")},
		{"sysctl-changed", "b1", HopHost, false, incident("net.ipv4.conf.all.src_valid_mark")},
		{"hub-disk", "", HopHealth, false, func(f *Facts) { f.Conditions = []protocol.Condition{{Name: "disk", Cause: "full"}} }},
		{"condition-tunnel", "a1", HopHealth, false, func(f *Facts) {
			for i := range 2 { // hub follows from it
				f.From.Evidence.Conditions[i].OK = false
			}
		}},
	} {
		f := well()
		c.breaks(f)
		x := Decide(*f)
		require.Len(t, x.Faults, 1, "%s: %+v", c.cause, x.Faults)
		got := x.Faults[0]
		require.Equal(t, []any{c.cause, c.node, c.hop, c.blocks}, []any{got.Cause, got.Node, got.Hop, got.Blocks}, "%+v", got)
		require.NotEmpty(t, got.Summary)
		want := api.VerdictDegraded
		if c.blocks {
			want = api.VerdictBroken
		}
		require.Equal(t, want, x.Verdict, c.cause)
		require.Len(t, x.Hops, len(Hops)-1) // no service was asked for
	}
	require.Equal(t, api.VerdictHealthy, Decide(*well()).Verdict)
}

// Of two faults at once what blocks comes first, and both are named.
func TestDecideTwo(t *testing.T) {
	f := well()
	f.From.Evidence.Underlay.UDPBlocked = true
	f.To.Evidence.Pod.Spaces[0].HasRoute = false
	x := Decide(*f)
	require.Len(t, x.Faults, 2)
	require.Equal(t, []string{"pod-no-route", "udp-blocked"}, []string{x.Faults[0].Cause, x.Faults[1].Cause})
	// Both ends at one node need no tunnel.
	f = well()
	f.To.Node = f.From.Node
	f.From.Evidence.Peer, f.To.Evidence.Peer, f.From.Evidence.Ways, f.From.Evidence.Path = false, false, nil, nil
	require.Equal(t, api.VerdictHealthy, Decide(*f).Verdict)
	// An agent that is too old is no fault.
	f = well()
	f.To.Evidence, f.To.Error = nil, "its agent is too old"
	x = Decide(*f)
	require.Equal(t, api.VerdictHealthy, x.Verdict)
	require.Contains(t, x.Hops[2].Note, "too old")
}

// FuzzEvidence: an agent that was taken over answers whatever it likes. What comes of it is
// bounded, and no text in it moves an admin's cursor.
func FuzzEvidence(f *testing.F) {
	b, err := json.Marshal(well().From.Evidence)
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(`{"time":"2026-03-01T12:00:00Z","flow":{"interface":"\u001b[2J","missing":["nft add\u0007"],"drops":[{"certain":true,"chain":"x\n"}]},"path":{"addr":"[fe80::1%\u001b]:1"},"pod":{"macs":["a","b"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEvidence(b)
		if err != nil {
			return
		}
		facts := well()
		facts.From.Evidence = &e
		x := Decide(*facts)
		for _, fault := range x.Faults {
			for _, s := range append([]string{fault.Cause, fault.Summary, fault.Mend}, fault.Evidence...) {
				if len(s) > 4000 || strings.ContainsFunc(s, unicode.IsControl) {
					t.Fatalf("%q", s)
				}
			}
		}
		for _, h := range x.Hops {
			if len(h.Note) > 400 || strings.ContainsFunc(h.Note, unicode.IsControl) {
				t.Fatalf("%q", h.Note)
			}
		}
	})
}

// causesOfCode are the causes that the code can name.
func causesOfCode(t *testing.T) (out []string) {
	var code []byte
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		code = append(code, b...)
	}
	// Cause: "x", and f.Cause, f.Summary = "x", …
	for _, c := range regexp.MustCompile(`Cause(?:: |, f\.Summary(?:, f\.Mend)? = )"([a-z-]+[a-z])"`).FindAllStringSubmatch(string(code), -1) {
		out = append(out, c[1])
	}
	require.Greater(t, len(out), 40)
	return out
}
