package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"causeway/agent/config"
	"causeway/agent/dns"
	"causeway/agent/health"
	"causeway/netns"
	"causeway/netns/lab"
	"causeway/netns/netnstest"
	"causeway/protocol"
)

// namesHost has the host's settings found where the host is.
type namesHost struct{ labHost }

func (h namesHost) Uses(ctx context.Context, c netns.Config) (netns.Uses, error) {
	return within(h.on, func() (netns.Uses, error) { return h.Host.Uses(ctx, c) })
}

func serviceItem(t *testing.T, name string, s protocol.ServiceItem) protocol.Item {
	b, err := json.Marshal(s)
	require.NoError(t, err)
	return protocol.Item{Kind: protocol.ItemService, Name: name, Generation: 1, Body: b}
}

// lookup asks from a host, as a program of it does, and gives the first answer, or the code.
func lookup(t *testing.T, from *lab.Host, at netip.Addr, name string) string {
	t.Helper()
	var c net.Conn
	require.NoError(t, from.Do(func() (err error) {
		c, err = net.Dial("udp", netip.AddrPortFrom(at, 53).String())
		return err
	}))
	defer c.Close()
	a, _, err := (&mdns.Client{Timeout: 300 * time.Millisecond}).ExchangeWithConn(new(mdns.Msg).SetQuestion(name, mdns.TypeA), &mdns.Conn{Conn: c})
	switch {
	case err != nil:
		return "no answer"
	case len(a.Answer) == 0:
		return mdns.RcodeToString[a.Rcode]
	}
	return strings.TrimPrefix(a.Answer[0].String(), a.Answer[0].Header().String())
}

// What the netmap has of services is answered to the host and its containers, from when there is one until there is none, also
// with no hub and a netmap that is too old; with a real kernel.
func TestNames(t *testing.T) {
	netnstest.Root(t)
	s := newSite(t)
	s.resolved = filepath.Join(t.TempDir(), "resolve")
	s.real = namesHost{s.real.(labHost)}
	s.listen = func(ctx context.Context, at netip.AddrPort) (*dns.Sockets, error) {
		return within(s.on, func() (*dns.Sockets, error) { return dns.Listen(ctx, at) })
	}
	pod := s.on.PodNet("pods0", "10.9.6.1/24").Pod("pod", "10.9.6.11/24")
	s.start()
	s.tunnel.setBound(true)
	h := s.session()
	at := config.DefaultDNS
	file := filepath.Join(s.store.Dir(), "split-dns")
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }

	require.Empty(t, h.give(testNetmap(5, testPeer(3))).Errors)
	require.NotContains(t, s.on.Sh("ip addr show dev cw0; nft list tables"), "169.254", "no service, no door")
	require.NotContains(t, s.on.Sh("nft list tables"), "causeway-dns")

	web := protocol.ServiceItem{Service: protocol.Service{Segment: "prod", Ports: []protocol.ServicePort{{Port: 80}}, VIP4: netip.MustParseAddr("198.18.128.1")}}
	db := protocol.ServiceItem{Service: protocol.Service{Ports: []protocol.ServicePort{{Port: 5432}}, Headless: true},
		Endpoints: []protocol.ServiceEndpoint{{Addr: netip.MustParseAddr("10.3.0.7"), Site: "a"}, {Addr: netip.MustParseAddr("10.3.0.8"), Site: "b"}}}
	n := testNetmap(6, testPeer(3))
	n.Items = []protocol.Item{serviceItem(t, "web", web), serviceItem(t, "db", db), {Kind: protocol.ItemService, Name: "bad", Body: json.RawMessage(`[]`)}}
	require.Empty(t, h.give(n).Errors)
	answered := func(from *lab.Host, name, want string) {
		t.Helper()
		s.eventually(func() bool { return lookup(t, from, at, name) == want }, name+" "+lookup(t, from, at, name))
	}
	answered(s.on, "web.prod.svc.causeway.", "198.18.128.1")
	answered(pod, "web.prod.svc.causeway.", "198.18.128.1")
	answered(pod, "bad.default.svc.causeway.", "NXDOMAIN")
	answered(pod, "example.org.", "REFUSED")
	answered(s.on, "n2.idc-sh.node.causeway.", "198.18.0.2")
	answered(s.on, "p.s.node.causeway.", "198.18.0.3")
	require.True(t, s.agent.board.OK(health.DNS))
	s.agent.names.setContainers(map[string]protocol.Container{
		"podman/1": {Name: "My_web", State: protocol.ContainerRunning, Addresses: []netip.Addr{netip.MustParseAddr("10.2.0.11")}},
		"podman/2": {Name: "gone", State: protocol.ContainerExited, Addresses: []netip.Addr{netip.MustParseAddr("10.2.0.12")}}})
	answered(pod, "my-web.n2.idc-sh.pod.causeway.", "10.2.0.11")
	answered(pod, "gone.n2.idc-sh.pod.causeway.", "NXDOMAIN")

	// Who knows which backends serve says so, and has the names follow.
	only := netip.MustParseAddr("10.3.0.8")
	answered(pod, "db.default.svc.causeway.", "10.3.0.7")
	s.agent.names.setUsable(func(service string, a netip.Addr) bool { return service == "db" && a == only })
	answered(pod, "db.default.svc.causeway.", "10.3.0.8")
	for range 5 {
		require.Equal(t, "10.3.0.8", lookup(t, pod, at, "db.default.svc.causeway."))
	}

	// The host's resolver: root is asked while it is there and does not know the zone.
	note := func(has string) {
		t.Helper()
		s.eventually(func() bool {
			for _, c := range s.agent.board.List() {
				if c.Name == health.DNS && c.OK && (has == "" && c.Note == "" || has != "" && strings.Contains(c.Note, has)) {
					return true
				}
			}
			return false
		}, "note "+has)
	}
	note("systemd-resolved does not run")
	require.False(t, there(file))
	require.NoError(t, os.MkdirAll(s.resolved, 0o700))
	note("causeway-agent-dns.service")
	require.True(t, there(file))
	index := s.agent.host.Facts().Plan.Index
	require.NoError(t, os.WriteFile(filepath.Join(s.resolved, "told"), fmt.Appendf(nil, "%d 169.254.53.53\n", index), 0o600))
	note("")

	// The configuration moves it, and takes it away.
	set := s.agent.live.Now()
	set.DNS.Address = netip.MustParseAddr("169.254.7.7")
	s.agent.Reload(t.Context(), set)
	at = set.DNS.Address
	answered(pod, "web.prod.svc.causeway.", "198.18.128.1")
	require.NotContains(t, s.on.Sh("ip addr show dev cw0; nft list table inet causeway-dns"), "169.254.53.53")
	set.DNS.Off = true
	s.agent.Reload(t.Context(), set)
	require.NotContains(t, s.on.Sh("ip addr show dev cw0; nft list tables"), "169.254")
	require.NotContains(t, s.on.Sh("nft list tables"), "causeway-dns")
	s.eventually(func() bool { return !there(file) }, "the resolver is told")
	note("")
	set.DNS = config.DNS{Address: config.DefaultDNS}
	at = config.DefaultDNS
	s.agent.Reload(t.Context(), set)

	// Without any hub and with a new start, from what is on disk.
	h.m.Close()
	answered(pod, "web.prod.svc.causeway.", "198.18.128.1")
	s.eventually(func() bool { return there(file) }, "the resolver is told again")
	s.stop()
	require.False(t, there(file), "with its end nobody shall ask")
	require.Equal(t, "no answer", lookup(t, s.on, at, "web.prod.svc.causeway."))
	s.start()
	answered(pod, "web.prod.svc.causeway.", "198.18.128.1")
	s.stop()
	// One that was killed left it, and the next one ends before it answers.
	require.NoError(t, os.WriteFile(file, []byte("169.254.53.53\n"), 0o600))
	s.start()
	s.stop()
	require.False(t, there(file))
	require.NoError(t, s.on.Do(func() error {
		return s.real.(namesHost).Remove(context.Background(), netns.Config{Interface: "cw0", Table: netns.DefaultTable})
	}))
	require.NotContains(t, s.on.Sh("nft list tables; ip addr"), "169.254")
}
