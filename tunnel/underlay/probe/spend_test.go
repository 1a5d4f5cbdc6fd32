package probe

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// A hub names one host's address as that of two hundred peers, in many ports, and other hosts
// beside it, and lets each peer seem to be busy. What goes out is bounded for the host, and in
// all; a real peer is found all the same.
func TestInventedCandidates(t *testing.T) {
	w, a, b := directPair(t)
	target := netip.MustParseAddr("192.0.2.66")
	var peers []Peer
	for i := range 200 {
		var c []netip.AddrPort
		for j := range maxCandidates {
			ip := target
			if j%2 == 1 {
				ip = netip.AddrFrom4([4]byte{192, 0, byte(100 + j), byte(i)})
			}
			c = append(c, netip.AddrPortFrom(ip, uint16(1000+20*i+j)))
		}
		peers = append(peers, Peer{Number: protocol.NodeNumber(100 + i), Key: w.newKey().Public(), Direct: true, Candidates: c})
	}
	a.peers = append(a.peers, peers...)
	a.candidates(11, b.addr)
	for _, p := range peers {
		a.busy[p.Number] = true
	}
	a.next = w.now
	from := len(w.log)
	const seconds = 30
	w.pass(seconds * time.Second)
	at := map[netip.Addr]int{}
	all := 0
	for _, p := range w.log[from:] {
		if p.from == a.addr && p.to != w.hub.addr && p.to != b.addr {
			at[p.to.Addr()]++
			all++
		}
	}
	t.Logf("%d questions in %d s, %d of them at one host", all, seconds, at[target])
	require.LessOrEqual(t, at[target], int(hostAllowance.burst+seconds*hostAllowance.perSecond)+1)
	require.LessOrEqual(t, all, int(agentAllowance.burst+seconds*agentAllowance.perSecond)+1)
	require.Equal(t, direct, a.kind(11))
	require.Less(t, len(a.Agent.spend.hosts), maxSpent+1)

	// The one whose address is new is found in the midst of it.
	b.addr = netip.MustParseAddrPort("198.51.100.77:443")
	a.candidates(11, b.addr)
	t.Log("followed after", w.until(t, 10*time.Second, func() bool { return a.kind(11) == direct && a.Route(11).Hop.Addr == b.addr }))
}

// One peer's candidates, none of which answers.
func TestOnePeersCandidates(t *testing.T) {
	w := newWorld(t, 1)
	a := w.agent(10)
	var c []netip.AddrPort
	for i := range 32 {
		c = append(c, netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:4000", i+1)))
	}
	a.peers = append(a.peers, Peer{Number: 20, Key: w.newKey().Public(), Direct: true, Candidates: c})
	a.candidates(0)
	w.pass(2 * time.Second)
	a.busy[20], a.next = true, w.now
	from, n := len(w.log), 0
	w.pass(30 * time.Second)
	for _, p := range w.log[from:] {
		if p.from == a.addr && p.to != w.hub.addr {
			n++
		}
	}
	t.Logf("%d questions in 30 s", n)
	require.Greater(t, n, 40)
	require.LessOrEqual(t, n, int(peerAllowance.burst)+31)
}

func TestFit(t *testing.T) {
	for text, want := range map[string]bool{
		"192.0.2.1:443": true, "10.0.0.1:1": true, "[2001:db8::1]:51820": true, "[fd00::1]:51820": true,
		"0.0.0.0:53": false, "0.1.2.3:53": false, "[::]:53": false,
		"224.0.0.1:53": false, "255.255.255.255:53": false, "240.0.0.1:53": false, "169.254.169.254:80": false,
		"[fe80::1]:53": false, "[ff02::1]:53": false, "192.0.2.1:0": false,
	} {
		require.Equal(t, want, fit(netip.MustParseAddrPort(text)), text)
	}
}

// The table of hosts has an end, and those beyond it are bounded, too.
func TestSpendIsBounded(t *testing.T) {
	var s spend
	now := time.Now()
	sent := 0
	for i := range 20 * maxSpent {
		var p meter
		s.all = meter{}
		if s.take(now, &p, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), true) {
			sent++
		}
	}
	require.Len(t, s.hosts, maxSpent)
	require.LessOrEqual(t, sent, maxSpent+int(hostAllowance.burst))
	var p meter
	now = now.Add(time.Minute)
	require.True(t, s.take(now, &p, netip.MustParseAddr("192.0.2.1"), true))
	require.Len(t, s.hosts, 1)
}
