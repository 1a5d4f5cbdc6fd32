package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// sitePair are two sites while their path changes.
type sitePair struct {
	*System
	t    *testing.T
	a, b *siteNode
}

// public is the address that a site's router translates to.
func (n *siteNode) public(i int) string { return fmt.Sprintf("203.0.113.%d", 10+i) }

// between drops a share of what the two sites send each other directly.
func (p *sitePair) between(percent int, bothWays bool) {
	p.drop(p.a.Router, "daddr", p.b.public(2), percent)
	if bothWays {
		p.drop(p.a.Router, "saddr", p.b.public(2), percent)
	}
}

func (p *sitePair) drop(r *lab.Host, field, addr string, percent int) {
	match := fmt.Sprintf("ip %s %s", field, addr)
	if percent < 100 {
		match += fmt.Sprintf(" numgen random mod 100 < %d", percent)
	}
	r.Block(match)
}

func (p *sitePair) mend() { p.a.Router.Unblock(); p.b.Router.Unblock() }

// underlayPort is the port that an agent's underlay has.
func underlayPort(t *testing.T, n *siteNode) uint16 {
	t.Helper()
	var st struct{ Candidates []string }
	require.NoError(t, n.ask(step(t), "/v1/status", &st))
	for _, c := range st.Candidates {
		var port uint16
		if _, err := fmt.Sscanf(c, n.LAN+":%d", &port); err == nil {
			return port
		}
	}
	t.Fatalf("%s has no candidate of %s: %v", n.Name, n.LAN, st.Candidates)
	return 0
}

type changeCase struct {
	name  string
	a, b  siteKind
	first protocol.PathKind
	cut   func(p *sitePair)
	// during is the path from a to b, and back the one from b to a, while it is
	// cut; without them the path must be the first one again, proven anew.
	during, back protocol.PathKind
	mend         func(p *sitePair)
	most         int // changes of path, at most
	light        bool
}

var (
	eim = siteKind{NAT: lab.EndpointIndependent}
	sym = siteKind{NAT: lab.Symmetric}
)

var changeCases = []changeCase{
	{
		name: "direct path cut", a: eim, b: eim, first: protocol.PathDirect, light: true,
		cut: func(p *sitePair) { p.between(100, true) }, during: protocol.PathRelay, back: protocol.PathRelay, mend: (*sitePair).mend, most: 2,
	},
	{
		name: "one-way loss", a: eim, b: eim, first: protocol.PathDirect,
		cut: func(p *sitePair) { p.between(100, false) }, during: protocol.PathRelay, back: protocol.PathRelay, mend: (*sitePair).mend, most: 2,
	},
	{
		name: "30 % loss on the direct path", a: eim, b: eim, first: protocol.PathDirect,
		cut: func(p *sitePair) { p.between(30, true) }, during: protocol.PathRelay, back: protocol.PathRelay, mend: (*sitePair).mend, most: 2,
	},
	{
		name: "relay cut under a direct path", a: eim, b: eim, first: protocol.PathDirect,
		cut:    func(p *sitePair) { p.a.Router.Block("udp dport 51820"); p.b.Router.Block("udp dport 51820") },
		during: protocol.PathDirect, back: protocol.PathDirect, mend: (*sitePair).mend, most: 0,
	},
	{
		name: "relay cut", a: sym, b: sym, first: protocol.PathRelay,
		cut: func(p *sitePair) { p.b.Router.Block("udp dport 51820") }, during: protocol.PathRelay, back: protocol.PathStream, mend: (*sitePair).mend, most: 2,
	},
	{
		name: "UDP blocked in mid-flow at both sides", a: eim, b: eim, first: protocol.PathDirect,
		cut:    func(p *sitePair) { noUDP(p.a, p.b) },
		during: protocol.PathStream, back: protocol.PathStream, mend: (*sitePair).mend, most: 6,
	},
	{
		name: "address changed", a: siteKind{Public: true}, b: siteKind{Public: true}, first: protocol.PathDirect, most: 3,
		cut: func(p *sitePair) {
			p.a.Host.Sh("ip addr add 203.0.113.77/24 dev eth0; ip addr del 203.0.113.11/24 dev eth0; ip addr show dev eth0 | grep -q 203.0.113.77 || ip addr add 203.0.113.77/24 dev eth0")
			p.a.LAN = "203.0.113.77"
		},
	},
	{
		name: "address changed behind NAT", a: eim, b: eim, first: protocol.PathDirect, most: 3,
		cut: func(p *sitePair) {
			p.a.Host.Sh("ip addr flush dev eth0; ip addr add 192.168.1.99/24 dev eth0; ip route add default via 192.168.1.1")
			p.a.LAN = "192.168.1.99"
		},
	},
	{
		name: "NAT mapping changed", a: eim, b: eim, first: protocol.PathDirect, light: true, most: 3,
		cut: func(p *sitePair) {
			p.a.Router.Nft(fmt.Sprintf("insert rule ip lab post oifname \"wan\" udp sport %d masquerade to :40001\n", underlayPort(p.t, p.a)))
			p.a.Router.ForgetConnections()
		},
	},
	{
		name: "NAT mappings lost", a: eim, b: eim, first: protocol.PathDirect, most: 2,
		cut: func(p *sitePair) { p.a.Router.ForgetConnections(); p.b.Router.ForgetConnections() },
	},
	{
		name: "NAT mapping of a relayed node changed", a: sym, b: sym, first: protocol.PathRelay, most: 2,
		cut: func(p *sitePair) { p.a.Router.ForgetConnections() },
	},
}

// A path changes under traffic: a connection stands still for 3 seconds at most, a
// transfer arrives whole, and the best path is taken again when it is back.
//
// Not parallel: time limits.
func TestPathChangesUnderTraffic(t *testing.T) {
	for _, c := range some(changeCases, func(c changeCase) bool { return c.light }) {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, c.a, c.b)
			f := p.start(c.first)
			log := watchPath(t, p.a.Node, p.b.Name)
			steady(t, time.Second)
			c.cut(p)
			began := time.Now()
			if c.during != "" {
				waitPath(t, 30*time.Second, p.a.Node, p.b.Node, c.during)
				waitPath(t, 30*time.Second, p.b.Node, p.a.Node, c.back)
				t.Logf("%s after %.1f s", c.during, time.Since(began).Seconds())
				steady(t, 2*time.Second)
				c.mend(p)
				began = time.Now()
			} else {
				steady(t, 3*time.Second) // it is known to be gone by then
			}
			waitPaths(t, 40*time.Second, p.a.Node, p.b.Node, c.first)
			measured(t, "best path again: "+c.name, time.Since(began).Seconds(), pathBack)
			steady(t, 2*time.Second)
			p.done(f, c.name, log, c.most)
		})
	}
}

// steady lets traffic go on for a time in which nothing is to happen.
func steady(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// newPair joins two sites and serves in the second one's pod.
func newPair(t *testing.T, a, b siteKind) *sitePair {
	t.Helper()
	s, n, _ := newSitesOf(t, HubAddr, a, b)
	joinSites(t, s, n, nil)
	_, err := s.Serve(step(t), n[1].Pod.Host)
	require.NoError(t, err)
	return &sitePair{System: s, t: t, a: n[0], b: n[1]}
}

// start begins traffic and waits for the path.
func (p *sitePair) start(kind protocol.PathKind) *traffic {
	p.t.Helper()
	f := startTraffic(p.t, p.System, p.a.Pod, p.b.Pod)
	waitPaths(p.t, bestPath*time.Second, p.a.Node, p.b.Node, kind)
	return f
}

// done ends traffic, and holds the longest gap and the number of changes.
func (p *sitePair) done(f *traffic, name string, log *pathLog, most int) {
	p.t.Helper()
	gap := f.end(p.t)
	seen := log.end()
	p.t.Logf("paths: %v", seen)
	measured(p.t, "longest gap: "+name, gap, longestStall)
	require.LessOrEqual(p.t, len(seen)-1, most, "changes of path: %v", seen)
}

// A direct path that comes and goes every 3 seconds, five times: after a few times
// it is left alone, so that there are no more than half of the ten changes.
//
// Not parallel: time limits.
func TestPathThatComesAndGoes(t *testing.T) {
	if !soak() {
		return // probe's TestNoFlapping stands for it
	}
	p := newPair(t, eim, eim)
	f := p.start(protocol.PathDirect)
	log := watchPath(t, p.a.Node, p.b.Name)
	for range 5 {
		p.between(100, true)
		steady(t, 3*time.Second)
		p.mend()
		steady(t, 3*time.Second)
	}
	p.done(f, "a path that comes and goes", log, 5)
}
