package doctor

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"go4.org/netipx"

	"causeway/agent/config"
	"causeway/agent/held"
	"causeway/agent/identity"
	"causeway/agent/netmapcheck"
	"causeway/netns"
)

func TestKernel(t *testing.T) {
	for release, want := range map[string]Status{"6.1.0-18-amd64": OK, "5.4.0": OK, "5.3.18": Fail, "4.19.0": Fail, "weird": Warn} {
		require.Equal(t, want, kernel(release).Status, release)
	}
}

func TestForeignVPNs(t *testing.T) {
	for name, c := range map[string]struct {
		kind, whose string
	}{"tailscale0": {"tun", "Tailscale"}, "wt0": {"wireguard", "NetBird"}, "wg7": {"wireguard", "WireGuard"}, "office": {"wireguard", "WireGuard"}, "tun0": {"tuntap", "OpenVPN"},
		"vnet3": {"tuntap", "virtual machine"}, "nebula1": {"tun", "Nebula"}} {
		f, ok := foreignVPN(name, c.kind)
		require.True(t, ok, name)
		require.Contains(t, f.whose, c.whose, name)
	}
	for _, name := range []string{"eth0", "lo", "br-1234", "docker0", "veth12ab", "wlan0"} {
		_, ok := foreignVPN(name, "device")
		require.False(t, ok, name)
	}
	require.Equal(t, Warn, conflicts([]foreign{{"wg0", "wireguard", "WireGuard"}}).Status)
	require.Equal(t, OK, conflicts(nil).Status)
}

func TestRulesAndMTU(t *testing.T) {
	rule := func(table, mark, priority int) netlink.Rule {
		r := netlink.NewRule()
		r.Table, r.Mark, r.Priority = table, uint32(mark), priority
		return *r
	}
	own := []netlink.Rule{rule(255, 0, 0), rule(254, 0, 32766), rule(253, 0, 32767), rule(netns.DefaultTable, netns.DefaultMark, 100)}
	require.Equal(t, OK, policyRules(own).Status)
	k := policyRules(append(own, rule(52, 0x80000, 5210)))
	require.Equal(t, Warn, k.Status)
	require.Contains(t, k.What, "5210: fwmark 0x80000 lookup 52")
	k = policyRules(append(own, rule(254, 0, 100)))
	require.Equal(t, Warn, k.Status)
	require.Equal(t, "100: lookup main", k.What)
	toPod := rule(254, 0, 512)
	toPod.Dst = netipx.PrefixIPNet(netip.MustParsePrefix("10.1.0.7/32"))
	require.Equal(t, OK, policyRules(append(own, toPod)).Status, "as clouds' CNIs have one for each pod")
	for m, want := range map[int]Status{1500: OK, 1400: OK, 1300: Warn, 0: Fail} {
		require.Equal(t, want, mtu(m).Status, m)
	}
}

func TestOverlaps(t *testing.T) {
	p := netip.MustParsePrefix
	c := Config{Overlay: []netip.Prefix{p("198.18.0.0/15")}, Routes: []netip.Prefix{p("10.1.0.0/24")}, Peers: []netip.Prefix{p("10.2.0.0/24"), p("10.1.0.0/24")}}
	none := netmapcheck.NewOwned(nil, nil, nil)
	require.Equal(t, OK, overlaps(c, []claim{{p("10.1.0.0/24"), "cni0"}, {p("192.168.1.0/24"), "eth0"}}, none)[0].Status, "its own pods are no conflict")
	l := overlaps(c, []claim{{p("198.19.4.0/24"), "lab0"}, {p("10.2.0.128/25"), "eth1"}}, none)
	require.Equal(t, []Status{Fail, Warn}, []Status{l[0].Status, l[1].Status})
	require.Contains(t, l[0].What, "198.19.4.0/24 on lab0")
	require.Contains(t, l[1].What, "10.2.0.128/25 on eth1")

	// What is advised cuts the host from nothing of its own, and what accept: took all the same is said.
	c.Peers = []netip.Prefix{p("10.2.0.0/24"), p("10.3.0.0/24")}
	taken := []claim{{p("10.2.0.0/24"), "docker0"}, {p("10.0.0.0/9"), "eth0"}}
	own := netmapcheck.NewOwned([]netns.Foreign{{Prefix: p("10.0.0.0/9"), Link: "eth0", Via: netip.MustParseAddr("192.0.2.1")}, {Prefix: p("10.2.0.0/24"), Link: "docker0", Direct: true}}, nil, nil)
	l = overlaps(c, taken, own)
	require.Len(t, l, 1)
	require.Equal(t, "give one of the two sites another range; 10.2.0.0/24 in accept: would take 10.2.0.0/24 of docker0 from this host, "+
		"name 10.3.0.0/24 exactly in accept: of this host, which takes 10.3.0.0/24, a part of 10.0.0.0/9 by gateway 192.0.2.1 from it, or give one of the two sites another range", l[0].Do)
	c.Named = []netip.Prefix{p("10.2.0.0/24")}
	l = overlaps(c, taken, own)
	require.Equal(t, []string{"other sites' ranges", "taken by accept:"}, []string{l[0].Name, l[1].Name})
	require.Contains(t, l[1].What, "10.2.0.0/24 on docker0")
	require.Contains(t, l[1].Do, "take it out of accept:")
}

// What stays outside the tunnel is said with what accept: would take besides.
func TestClosed(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	book := held.Book{Ranges: []held.Range{{Prefix: p("10.2.0.0/16")}}, Exceptions: []held.Exception{{Addr: a("10.2.9.53"), What: "resolver"}, {Addr: a("10.2.9.1"), What: "default gateway"}}}
	own := netmapcheck.NewOwned(nil, book.Exceptions, []netip.Addr{a("10.2.9.1")})
	l := closed(Config{Held: book}, own)
	require.Len(t, l, 1)
	require.Equal(t, "nothing, if they are this site's; if they are the other one's: 10.2.0.0/16 exactly in accept:, which takes 10.2.9.53 (resolver) from this host", l[0].Do)
}

func TestNAT(t *testing.T) {
	a := netip.MustParseAddrPort
	own := []netip.Addr{netip.MustParseAddr("192.168.1.5")}
	for want, seen := range map[string][]netip.AddrPort{
		"none:":                 {a("192.168.1.5:4000")},
		"symmetric:":            {a("203.0.113.7:1000"), a("203.0.113.7:1001")},
		"endpoint-independent:": {a("203.0.113.7:1000"), a("203.0.113.7:1000")},
		"the port is kept":      {a("203.0.113.7:4000")},
		"the port is another":   {a("203.0.113.7:4001")},
		"does not say":          {{}},
	} {
		require.Contains(t, nat(4000, seen, own).What, want)
	}
}

// What answers at a hub's address and what does not; an answer moves no cursor.
func TestOverHTTPS(t *testing.T) {
	portal := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("\x1b[2J<html>")) }))
	defer portal.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed := l.Addr().String()
	l.Close()
	for at, want := range map[string]string{portal.Listener.Addr().String(): "is no hub", closed: "refused", "nowhere": "HOST:PORT"} {
		k := overHTTPS(t.Context(), Config{}, at)
		require.Equal(t, Fail, k[0].Status, at)
		require.Contains(t, k[0].What, want)
	}
	hub := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		w.Write([]byte(`{}`))
	}))
	defer hub.Close()
	k := overHTTPS(t.Context(), Config{}, hub.Listener.Addr().String())
	require.Equal(t, OK, k[0].Status, k[0].What)
	require.Equal(t, "clock", k[1].Name)
	require.Equal(t, Warn, k[1].Status)
	require.Regexp(t, "^-(1h0m|59m5)", k[1].What)
}

// On any host there is an answer to everything, sorted.
func TestRun(t *testing.T) {
	l := Run(t.Context(), Config{Interface: "cw0"})
	names := map[string]bool{}
	for i, k := range l {
		names[k.Name] = true
		require.NotEmpty(t, k.What)
		require.True(t, k.Status == OK || k.Do != "" || k.Why != "" || strings.Contains(k.What, "cannot"), "%+v", k)
		if i > 0 {
			require.GreaterOrEqual(t, rank(k.Status), rank(l[i-1].Status))
		}
	}
	for _, n := range []string{"kernel", "capabilities", "tun", "nftables", "clock sync", "other VPNs", "rules", "mtu", "hub"} {
		require.True(t, names[n], n)
	}
}

func TestShields(t *testing.T) {
	port := netns.Port{Proto: "tcp", First: 22, Last: 22}
	for _, c := range []struct {
		joined bool
		config config.Shields
		status Status
		what   string
	}{
		{true, config.Shields{}, OK, "up: of this host itself other nodes reach echo and Causeway's own ports"},
		{true, config.Shields{Allow: []netns.Port{port}}, OK, "up: of this host itself other nodes reach echo and Causeway's own ports, and tcp/22"},
		{true, config.Shields{State: "down"}, OK, "down, as the configuration says: other nodes reach all that listens on this host"},
		{false, config.Shields{State: "up"}, OK, "up: of this host itself other nodes reach echo and Causeway's own ports"},
		{false, config.Shields{}, Warn, "down: other nodes reach all that listens on this host"},
	} {
		l := shields(Config{Identity: &identity.Identity{Name: "n1", Shields: c.joined}, Shields: c.config})
		require.Len(t, l, 1)
		require.Equal(t, []any{c.status, c.what}, []any{l[0].Status, l[0].What})
		require.Equal(t, c.status == Warn, l[0].Do != "")
	}
	require.Empty(t, shields(Config{}), "nothing is said of a host that has not joined")
}
