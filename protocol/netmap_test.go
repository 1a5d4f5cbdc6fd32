package protocol

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func testPeer(n NodeNumber, name string) Peer {
	return Peer{Statement: SignedNodeStatement{NodeStatement: NodeStatement{Number: n}}, Name: name}
}

func TestNetmapApply(t *testing.T) {
	v := func(n uint64) NetmapVersion { return NetmapVersion{Epoch: 1, Version: n} }
	base := v(5)
	held, err := Netmap{NetmapVersion: base, HubList: &SignedHubList{}, Peers: []Peer{testPeer(4, "d"), testPeer(2, "b")}}.Apply(nil)
	require.NoError(t, err)
	require.Equal(t, []Peer{testPeer(2, "b"), testPeer(4, "d")}, held.Peers)

	change := Netmap{NetmapVersion: v(6), Base: &base, Peers: []Peer{testPeer(3, "c"), testPeer(4, "e")}, Removed: []NodeNumber{2}}
	got, err := change.Apply(&held)
	require.NoError(t, err)
	require.Equal(t, Netmap{NetmapVersion: v(6), HubList: held.HubList, Peers: []Peer{testPeer(3, "c"), testPeer(4, "e")}}, got)

	_, err = change.Apply(nil)
	require.ErrorIs(t, err, ErrUnknownBase)
	_, err = change.Apply(&got)
	require.ErrorIs(t, err, ErrUnknownBase)
}

// Changes do not add up to more than a hub can send whole; what it can send is never refused.
func TestNetmapSize(t *testing.T) {
	key, err := NewIdentityPrivateKey()
	require.NoError(t, err)
	peer := func(n NodeNumber, prefixes int) Peer {
		p := Peer{Statement: NodeStatement{Number: n}.Sign(key)}
		for range prefixes {
			p.Routes = append(p.Routes, netip.MustParsePrefix("::/1"))
			p.Candidates = append(p.Candidates, netip.MustParseAddrPort("1.1.1.1:1"))
			p.Overlay = append(p.Overlay, netip.MustParseAddr("1.1.1.1"))
		}
		return p
	}
	for _, prefixes := range []int{0, 1, 50} {
		p := peer(2, prefixes)
		p.Sources = []netip.Prefix{netip.MustParsePrefix("1.1.1.0/1")}
		b, err := json.Marshal(p)
		require.NoError(t, err)
		require.Greater(t, len(b), minPeer+minPrefix*(3*prefixes+1), "%s", b)
	}
	held := Netmap{NetmapVersion: NetmapVersion{Epoch: 1, Version: 1}}
	sent := peer(2, 0)
	for v := uint64(2); ; v++ {
		base := held.NetmapVersion
		change := Netmap{NetmapVersion: NetmapVersion{Epoch: 1, Version: v}, Base: &base}
		for i := range 10_000 {
			sent.Statement.Number = NodeNumber(v)*10_000 + NodeNumber(i)
			change.Peers = append(change.Peers, sent)
		}
		next, err := change.Apply(&held)
		if err != nil {
			require.ErrorContains(t, err, "larger than a hub can send at once")
			break
		}
		require.LessOrEqual(t, len(next.Peers), MaxToAgent/minPeer)
		held = next
	}
}

// A change applied to its base gives what a full netmap would have given.
func TestNetmapChangeEqualsFull(t *testing.T) {
	peers := rapid.MapOf(rapid.Custom(func(t *rapid.T) NodeNumber { return NodeNumber(rapid.IntRange(2, 12).Draw(t, "n")) }),
		rapid.SampledFrom([]string{"a", "b", "c"}))
	toMap := func(v uint64, m map[NodeNumber]string) Netmap {
		n := Netmap{NetmapVersion: NetmapVersion{Epoch: 1, Version: v}}
		for k, name := range m {
			n.Peers = append(n.Peers, testPeer(k, name))
		}
		n, _ = n.Apply(nil)
		return n
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := peers.Draw(t, "held"), peers.Draw(t, "wanted")
		held, want := toMap(1, a), toMap(2, b)
		change := Netmap{NetmapVersion: want.NetmapVersion, Base: &held.NetmapVersion}
		for n, name := range b {
			if a[n] != name {
				change.Peers = append(change.Peers, testPeer(n, name))
			}
		}
		for n := range a {
			if _, ok := b[n]; !ok {
				change.Removed = append(change.Removed, n)
			}
		}
		got, err := change.Apply(&held)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("got %v, want %v (%v)", got, want, err)
		}
	})
}

func TestOverlay(t *testing.T) {
	for _, c := range []struct {
		n     NodeNumber
		p     string
		want  string
		fails bool
	}{
		{1, "198.18.0.0/15", "198.18.0.1", false},
		{300, "198.18.0.0/15", "198.18.1.44", false},
		{1<<17 - 1, "198.18.0.0/15", "198.19.255.255", false},
		{1 << 17, "198.18.0.0/15", "", true},
		{MaxNodeNumber, "fd63:7761:7900::/96", "fd63:7761:7900::ff:ffff", false},
		{0, "198.18.0.0/15", "", true},
		{MaxNodeNumber + 1, "fd63:7761:7900::/96", "", true},
		{300, "255.255.255.0/24", "", true},
	} {
		a, err := c.n.Overlay(netip.MustParsePrefix(c.p))
		if c.fails {
			require.Error(t, err, c)
			continue
		}
		require.NoError(t, err, c)
		require.Equal(t, c.want, a.String())
	}
}

func TestValidName(t *testing.T) {
	for s, want := range map[string]bool{"idc-sh": true, "a": true, "0": true, "": false, "-a": false, "a-": false, "A": false, "a.b": false, "ä": false,
		"a23456789012345678901234567890123456789012345678901234567890123": true, "a234567890123456789012345678901234567890123456789012345678901234": false} {
		require.Equal(t, want, ValidName(s), s)
	}
}
