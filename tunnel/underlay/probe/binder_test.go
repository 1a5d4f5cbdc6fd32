package probe

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// prover speaks to a Binder as a node does, from any address.
type prover struct {
	w    *world
	keys protocol.ProbeKeys
	boot protocol.BootID
	ctr  uint64
}

func newProver(t *testing.T) (*world, *prover) {
	w := newWorld(t, 1)
	keys, err := protocol.NewProbeKeys(w.agent(10).key, w.hub.key.Public())
	require.NoError(t, err)
	return w, &prover{w: w, keys: keys, boot: protocol.BootID{9}}
}

// challenge asks from an address and returns the confirmation to send.
func (p *prover) challenge(src netip.AddrPort, counter uint64) []byte {
	q := protocol.Probe{Kind: protocol.ProbeHubQuestion, From: 10, To: simHubNumber, Boot: p.boot, Nonce: p.w.rand()}
	b := q.Append(nil, &p.keys.Send)
	var out Output
	require.Equal(p.w.t, OK, p.w.hub.Receive(p.w.now, src, netip.Addr{}, b, &out))
	require.Len(p.w.t, out.Sends, 1)
	require.Equal(p.w.t, src, out.Sends[0].To)
	require.LessOrEqual(p.w.t, len(out.Sends[0].Data), len(b))
	require.True(p.w.t, p.keys.Receive.Verify(out.Sends[0].Data))
	m, err := protocol.ParseProbe(out.Sends[0].Data)
	require.NoError(p.w.t, err)
	q.Kind, q.Stamp, q.Cookie, q.Counter = protocol.ProbeConfirm, m.Stamp, m.Cookie, counter
	return q.Append(nil, &p.keys.Send)
}

func (p *prover) confirm(src netip.AddrPort, b []byte) (Reason, *Output) {
	var out Output
	return p.w.hub.Receive(p.w.now, src, netip.Addr{}, b, &out), &out
}

func (p *prover) bind(src netip.AddrPort) {
	p.ctr++
	p.w.now = p.w.now.Add(100 * time.Millisecond)
	r, out := p.confirm(src, p.challenge(src, p.ctr))
	require.Equal(p.w.t, OK, r)
	m, err := protocol.ParseProbe(out.Sends[0].Data)
	require.NoError(p.w.t, err)
	require.Equal(p.w.t, src, m.Observed)
}

func at(n int) netip.AddrPort { return netip.MustParseAddrPort(fmt.Sprintf("203.0.113.%d:1000", n)) }

func TestConfirmationIsForItsAddressAndTime(t *testing.T) {
	w, p := newProver(t)
	c := p.challenge(at(1), 1)
	r, out := p.confirm(at(2), c)
	require.Equal(t, Replayed, r, "from another address")
	require.Empty(t, out.Sends)
	require.Empty(t, w.hub.Bound(10))

	w.now = w.now.Add(cookieFor + time.Millisecond)
	r, _ = p.confirm(at(1), c)
	require.Equal(t, Replayed, r, "too late")

	c = p.challenge(at(1), 1)
	r, _ = p.confirm(at(1), c)
	require.Equal(t, OK, r)
	r, _ = p.confirm(at(1), c)
	require.Equal(t, Replayed, r, "twice")
	require.Equal(t, []netip.AddrPort{at(1)}, w.hub.Bound(10))
}

func TestCookieSurvivesOneChangeOfSecret(t *testing.T) {
	w, p := newProver(t)
	w.now = w.now.Add(secretChange - time.Second)
	c := p.challenge(at(1), 1)
	w.now = w.now.Add(2 * time.Second)
	var out Output
	w.hub.Tick(w.now, &out)
	r, _ := p.confirm(at(1), c)
	require.Equal(t, OK, r)
}

func TestCookieOfARestartedHub(t *testing.T) {
	w, p := newProver(t)
	c := p.challenge(at(1), 1)
	w.startHub()
	p.challenge(at(2), 1) // its clock has moved on
	r, _ := p.confirm(at(1), c)
	require.Equal(t, Replayed, r)
}

func TestHighestCounterNamesTheAddress(t *testing.T) {
	w, p := newProver(t)
	first, second := p.challenge(at(1), 1), p.challenge(at(2), 2)
	r, _ := p.confirm(at(2), second)
	require.Equal(t, OK, r)
	r, _ = p.confirm(at(1), first) // came late
	require.Equal(t, OK, r)
	require.Equal(t, []netip.AddrPort{at(2), at(1)}, w.hub.Bound(10))
	p.ctr = 2
	p.bind(at(1))
	require.Equal(t, []netip.AddrPort{at(1), at(2)}, w.hub.Bound(10))
}

func TestBindingsAreBoundedAndExpire(t *testing.T) {
	w, p := newProver(t)
	for i := range MaxBindings + 3 {
		p.bind(at(i + 1))
	}
	l := w.hub.Bound(10)
	require.Len(t, l, MaxBindings)
	require.Equal(t, at(MaxBindings+3), l[0])
	require.NotContains(t, l, at(1))
	require.Len(t, w.hub.addrs, MaxBindings)

	w.now = w.now.Add(BindingFor - 300*time.Millisecond)
	var out Output
	w.hub.Tick(w.now, &out)
	require.True(t, out.Changed)
	require.Equal(t, []protocol.NodeNumber{10}, out.Routes)
	w.now = w.now.Add(2 * time.Second)
	w.hub.Tick(w.now, &out)
	require.Empty(t, w.hub.Bound(10))
	require.Empty(t, w.hub.addrs)
}

func TestOldRunCannotComeBack(t *testing.T) {
	w, p := newProver(t)
	p.bind(at(1))
	late := p.challenge(at(2), 99)
	old := p.boot
	w.now = w.now.Add(time.Second)
	p.boot, p.ctr = protocol.BootID{10}, 0
	c := p.challenge(at(3), 1)
	r, out := p.confirm(at(3), c)
	require.Equal(t, OK, r)
	require.Equal(t, []protocol.NodeNumber{10}, out.Restarted)
	require.Equal(t, []netip.AddrPort{at(3)}, w.hub.Bound(10), "the old run's addresses are gone")

	r, out = p.confirm(at(2), late)
	require.Equal(t, Replayed, r, "its cookie is older than the new run's proof")
	require.Empty(t, out.Restarted)
	b, _ := w.hub.Boot(10)
	require.NotEqual(t, old, b)
}

func TestAddressMovesToTheNodeThatProvesIt(t *testing.T) {
	w := newWorld(t, 2)
	w.pass(time.Second)
	a, b := w.agent(10), w.agent(11)
	a.addr, b.addr = b.addr, netip.MustParseAddrPort("198.51.100.99:1") // a NAT gave a's port away
	w.pass(3 * time.Second)
	require.Equal(t, a.addr, w.hub.Bound(10)[0])
	require.Equal(t, []netip.AddrPort{b.addr}, w.hub.Bound(11))
}

func TestRemovedNodeLosesItsBinding(t *testing.T) {
	w, p := newProver(t)
	c := p.challenge(at(2), 7)
	p.bind(at(1))
	var out Output
	require.NoError(t, w.hub.SetNodes(w.now, nil, &out))
	require.True(t, out.Changed)
	require.Empty(t, w.hub.Bound(10))
	require.Empty(t, w.hub.addrs)
	require.NoError(t, w.hub.SetNodes(w.now, []Node{{10, w.agent(10).key.Public()}}, &out))
	r, _ := p.confirm(at(2), c)
	require.Equal(t, Replayed, r, "a cookie from before its removal")
}
