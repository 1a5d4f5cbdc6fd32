package e2e

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// siteKind is how a site with one host is joined to the public network. The
// zero value has an ordinary router that translates to one port.
type siteKind struct {
	NAT     lab.NAT
	Public  bool     // no router: the host has a public address
	Carrier bool     // the router's own public address is translated once more
	Beside  int      // in the LAN of this earlier site (1 is the first) and behind its router
	V6      bool     // IPv6 as well, not translated; answers alone are let in
	Docker  bool     // a container bridge, with the same address at each site
	Blocked []string // nftables matches of what the router does not let out
}

// What a strict firewall does not let out.
var (
	onlyHub = []string{`oifname "wan" ip daddr != ` + HubAddr, `oifname "wan" meta l4proto udp udp dport != 51820`, `oifname "wan" meta l4proto tcp tcp dport != 443`}
	only443 = []string{`oifname "wan" meta l4proto != tcp`, `oifname "wan" tcp dport != 443`}
)

// HubAddr6 is the hub's IPv6 address where it has one.
const HubAddr6 = "fd00:113::1"

// siteNode is a node alone at its site, behind a router with NAT.
type siteNode struct {
	*smallNode
	Router *lab.Host // nil: it has a public address
	Site   string
}

// newSites is a system of a hub and sites s1, s2, … with one host each, whose
// pod is 10.i.1.11; the routers translate to one port.
func newSites(t *testing.T, sites int) (*System, []*siteNode, *lab.Host) {
	t.Helper()
	kinds := make([]siteKind, sites)
	for i := range kinds {
		kinds[i].NAT = lab.EndpointIndependent
	}
	return newSitesOf(t, HubAddr, kinds...)
}

// newSitesOf is newSites for sites of any kind. Agents are told hubAddr.
func newSitesOf(t *testing.T, hubAddr string, kinds ...siteKind) (*System, []*siteNode, *lab.Host) {
	t.Helper()
	needRoot(t)
	bin := binaries(t)
	l := lab.New(t)
	inet := l.Switch("inet")
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24", HubAddr6+"/64")
	lans := make([]*lab.Host, len(kinds))
	var out []*siteNode
	var v6 []string // what reaches whose LAN
	var all []*lab.Host
	for k, kind := range kinds {
		i := k + 1
		n := &siteNode{smallNode: &smallNode{Inet: inet, LAN: fmt.Sprintf("192.168.%d.11", i)}, Site: fmt.Sprintf("s%d", i)}
		n.Host = l.Host(fmt.Sprintf("n%d", i))
		wan, wan6 := fmt.Sprintf("203.0.113.%d", 10+i), fmt.Sprintf("fd00:113::%d", 10+i)
		switch {
		case kind.Public:
			n.LAN = wan
			n.Host.Link("eth0", inet, wan+"/24")
			if kind.V6 {
				n.Host.Addr("eth0", wan6+"/64")
			}
			all = append(all, n.Host)
		case kind.Beside > 0:
			b := kind.Beside
			n.LAN, n.Router, lans[k] = fmt.Sprintf("192.168.%d.%d", b, 20+i), out[b-1].Router, lans[b-1]
			n.Host.Link("eth0", lans[k], n.LAN+"/24").Default(fmt.Sprintf("192.168.%d.1", b))
		default:
			lans[k] = l.Switch(fmt.Sprintf("lan%d", i))
			n.Router = l.Router(fmt.Sprintf("r%d", i), kind.NAT)
			if kind.Carrier {
				between := l.Switch(fmt.Sprintf("carrier%d", i))
				l.Router(fmt.Sprintf("c%d", i), lab.EndpointIndependent).Link("wan", inet, wan+"/24").Link("lan", between, fmt.Sprintf("10.64.%d.1/24", i))
				n.Router.Link("wan", between, fmt.Sprintf("10.64.%d.2/24", i)).Default(fmt.Sprintf("10.64.%d.1", i))
			} else {
				n.Router.Link("wan", inet, wan+"/24")
			}
			n.Router.Link("lan", lans[k], fmt.Sprintf("192.168.%d.1/24", i))
			n.Host.Link("eth0", lans[k], n.LAN+"/24").Default(fmt.Sprintf("192.168.%d.1", i))
			if kind.NAT == lab.FullCone {
				n.Router.Inside(n.LAN)
			}
			if kind.V6 {
				n.Router.Addr("wan", wan6+"/64").Addr("lan", fmt.Sprintf("fd00:192:%d::1/64", i))
				n.Host.Addr("eth0", fmt.Sprintf("fd00:192:%d::11/64", i)).Default(fmt.Sprintf("fd00:192:%d::1", i))
				v6 = append(v6, fmt.Sprintf("fd00:192:%d::/64 %s", i, wan6))
				all = append(all, n.Router)
			}
			for _, b := range kind.Blocked {
				n.Router.Block(b)
			}
		}
		if kind.Docker {
			n.Host.Sh("ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up")
		}
		v4, pod6 := fmt.Sprintf("10.%d.1.11", i), fmt.Sprintf("fd10:%d:1::11", i)
		n.Pod = &Pod{Host: n.Host.PodNet("pods0", fmt.Sprintf("10.%d.1.1/24", i), fmt.Sprintf("fd10:%d:1::1/64", i)).
			Pod(fmt.Sprintf("p%d", i), v4+"/24", pod6+"/64"), V4: v4, V6: pod6}
		out = append(out, n)
	}
	for _, h := range append(all, hub) {
		for _, r := range v6 {
			var prefix, by string
			fmt.Sscan(r, &prefix, &by)
			if !h.HasAddr(by) {
				h.Route(prefix, by)
			}
		}
	}
	s, err := NewSystem(step(t), l, bin, hub, hubAddr)
	require.NoError(t, err)
	for _, n := range out {
		require.NoError(t, n.Host.Settle(step(t)))
		require.NoError(t, s.CreateSite(step(t), n.Site))
	}
	return s, out, inet
}

// prepareSites redeems a token for every node and starts none.
func prepareSites(t *testing.T, s *System, nodes []*siteNode, change func(i int, spec *NodeSpec)) {
	t.Helper()
	var fs []func() error
	for i, n := range nodes {
		spec := NodeSpec{Name: n.Host.Name, Site: n.Site, Host: n.Host, TokenRoutes: PodRoutes(i+1, 1)}
		if change != nil {
			change(i, &spec)
		}
		fs = append(fs, func() (err error) {
			n.Node, err = s.Enroll(step(t), spec)
			return err
		})
	}
	require.NoError(t, lab.All(fs...))
}

// joinSites joins every node.
func joinSites(t *testing.T, s *System, nodes []*siteNode, change func(i int, spec *NodeSpec)) {
	t.Helper()
	prepareSites(t, s, nodes, change)
	var names []string
	for _, n := range nodes {
		require.NoError(t, n.Start())
		names = append(names, n.Name)
	}
	require.NoError(t, s.WaitReady(step(t), names...))
}
