package service

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/items"
	"causeway/protocol"
)

func peer(n protocol.NodeNumber, overlay string, routes ...string) protocol.Peer {
	p := protocol.Peer{Statement: protocol.SignedNodeStatement{NodeStatement: protocol.NodeStatement{Number: n}}, Name: fmt.Sprint("n", n), Overlay: []netip.Addr{netip.MustParseAddr(overlay)}}
	for _, r := range routes {
		p.Routes = append(p.Routes, netip.MustParsePrefix(r))
	}
	return p
}

func TestWay(t *testing.T) {
	w := newWay(View{Own: []netip.Addr{netip.MustParseAddr("198.18.0.2")}, Local: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.9.0/24")},
		Peers: []protocol.Peer{peer(3, "198.18.0.3", "10.2.0.0/16", "fd10::/32"), peer(4, "198.18.0.4", "10.2.3.0/24", "10.1.7.7/32")}})
	for addr, want := range map[string]string{
		"198.18.0.2": "0 true true", "198.18.0.4": "4 false true", "10.1.0.1": "0 true true", "10.1.7.7": "4 false true", "10.2.9.1": "0 true true",
		"10.2.3.1": "4 false true", "10.2.4.1": "3 false true", "fd10::1": "3 false true", "fd11::1": "0 false false", "10.3.0.1": "0 false false",
	} {
		n, local, found := w.find(netip.MustParseAddr(addr))
		require.Equal(t, want, fmt.Sprint(n, local, found), addr)
	}
}

// here is a service with an endpoint here, one at n3 of site b and one at n4 of site c.
func here(t *testing.T, s protocol.Service) []*placed {
	s.Ports = []protocol.ServicePort{{Port: 80}}
	s.VIP4 = netip.MustParseAddr("198.19.0.9")
	i := protocol.ServiceItem{Service: s}
	for _, e := range []string{"10.1.0.1 a", "10.2.0.1 b", "10.3.0.1 c"} {
		var x protocol.ServiceEndpoint
		var addr string
		_, err := fmt.Sscan(e, &addr, &x.Site)
		require.NoError(t, err)
		x.Addr = netip.MustParseAddr(addr)
		i.Endpoints = append(i.Endpoints, x)
	}
	require.NoError(t, i.Check())
	return place(time.Unix(1000, 0), View{Services: []items.Service{{Name: "web", ServiceItem: i}}, Site: "a", Local: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Peers: []protocol.Peer{peer(3, "198.18.0.3", "10.2.0.0/16"), peer(4, "198.18.0.4", "10.3.0.0/16")}}, nil)
}

// Who is used follows from how nodes are reached and what they say; who nobody says the contrary of is used where nobody else is; one
// that comes begins slowly.
func TestJudge(t *testing.T) {
	l := here(t, protocol.Service{SlowStart: protocol.Duration(10 * time.Second)})
	p := l[0]
	states := map[protocol.NodeNumber]ReachState{3: Up, 4: Up}
	ready := map[string]protocol.Readiness{"10.1.0.1": protocol.Ready, "10.2.0.1": protocol.Ready, "10.3.0.1": protocol.Ready}
	s := sight{now: time.Unix(1000, 0), site: "a",
		reach: func(n protocol.NodeNumber) (ReachState, bool) { return states[n], states[n] == Unknown },
		path:  func(n protocol.NodeNumber) bool { return n == 4 },
		ready: func(_ string, e *endpoint) protocol.Readiness { return ready[e.Addr.String()] }}
	use := func() string {
		p.judge(s)
		p.slotsOf(&p.families[0], s)
		out := ""
		for i, e := range p.endpoints {
			n := 0
			for _, c := range p.families[0].slots {
				if c == i {
					n++
				}
			}
			out += fmt.Sprintf("%v:%d ", e.state.Use, n)
		}
		return out
	}
	require.Equal(t, "true:64 true:0 true:0 ", use())
	s.now = s.now.Add(firstTime)
	ready["10.1.0.1"] = protocol.NotReady
	require.Equal(t, "false:0 true:32 true:32 ", use())
	require.Equal(t, "its node says: not ready", p.endpoints[0].state.Why)
	states[3] = Suspect
	require.Equal(t, "false:0 false:0 true:64 ", use())
	require.Equal(t, "its node is suspect", p.endpoints[1].state.Why)
	ready["10.1.0.1"] = protocol.Ready
	require.Equal(t, "true:1 false:0 true:63 ", use())
	s.now = s.now.Add(5 * time.Second)
	require.Equal(t, "true:31 false:0 true:33 ", use(), "at 48 % of its share")
	s.now = s.now.Add(5 * time.Second)
	require.Equal(t, "true:64 false:0 true:0 ", use())

	// Nobody is known to be usable: who nobody says the contrary of.
	ready = map[string]protocol.Readiness{"10.1.0.1": protocol.NotReady}
	states = map[protocol.NodeNumber]ReachState{}
	require.Equal(t, "false:0 false:0 true:64 ", use(), "n4 has a path, and never answered")
	states[4] = Dead
	require.Equal(t, "false:0 false:0 false:0 ", use())
	ready["10.1.0.1"] = protocol.ReadyUnknown
	require.Equal(t, "true:64 false:0 false:0 ", use())

	// A node that doubts itself leaves what it has where it would have nobody.
	s.frozen = true
	ready["10.1.0.1"] = protocol.NotReady
	p.judge(s)
	require.False(t, p.slotsOf(&p.families[0], s))
	require.Len(t, p.families[0].slots, 64)
}

func TestDoubtsItself(t *testing.T) {
	l := here(t, protocol.Service{})
	states := map[protocol.NodeNumber]ReachState{3: Up, 4: Up}
	reach := func(n protocol.NodeNumber) (ReachState, bool) { return states[n], false }
	require.False(t, doubtsItself("a", l, reach))
	states[3] = Dead
	require.False(t, doubtsItself("a", l, reach), "two of three are there")
	states[4] = Suspect
	require.True(t, doubtsItself("a", l, reach), "this site alone is")
	states[4] = Unknown
	require.False(t, doubtsItself("a", l, reach))
	require.False(t, doubtsItself("a", nil, reach))
}

// All words of a node arrive, however many there are and whatever was lost on the way.
func TestPages(t *testing.T) {
	var words []protocol.ServiceWord
	for i := range 3*protocol.MaxServiceWords + 7 {
		words = append(words, protocol.ServiceWord{Service: uint64(i % 7), Addr: netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i%250 + 1)}), Ready: protocol.Readiness(i % 3)})
	}
	p := newPages(words)
	require.Len(t, p.of, 4)
	h := &heardWords{}
	ask := func(page uint16) (bool, []uint16) {
		a, err := protocol.ParseServiceAnswer(p.answer(protocol.ServiceAsk{Seq: 1, Digest: h.digest, Page: page}).Append(nil))
		require.NoError(t, err)
		return h.take(a)
	}
	changed, more := ask(0)
	require.False(t, changed)
	require.Equal(t, []uint16{1, 2, 3}, more)
	changed, _ = ask(2)
	require.False(t, changed)
	changed, more = ask(0) // page 1 and 3 were lost
	require.False(t, changed)
	require.Equal(t, []uint16{1, 3}, more)
	_, _ = ask(3)
	changed, _ = ask(1)
	require.True(t, changed)
	require.Len(t, h.words, len(words))
	require.Equal(t, protocol.NotReady, h.words[wordKey{2, netip.MustParseAddr("10.0.0.3")}])
	changed, more = ask(0)
	require.False(t, changed)
	require.Empty(t, more)
	require.Empty(t, p.answer(protocol.ServiceAsk{Digest: p.digest}).Words)
	require.Empty(t, p.answer(protocol.ServiceAsk{Page: 9}).Words)
	p = newPages(slices.Clone(words[:1]))
	changed, _ = ask(0)
	require.True(t, changed)
	require.Len(t, h.words, 1)
	p = newPages(nil)
	changed, _ = ask(0)
	require.True(t, changed)
	require.Empty(t, h.words)
}
