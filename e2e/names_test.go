package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

const (
	namesAt = "169.254.53.53" // where names are asked for
	ourName = "web.default.svc.causeway"
)

// declareServices declares a service with an address, and a headless one with more backends than UDP takes, and gives the first
// one's address.
func declareServices(t *testing.T, s *System) (vip string) {
	t.Helper()
	var many []string
	for i := range 200 {
		many = append(many, fmt.Sprintf("10.1.1.%d", 20+i))
	}
	applyText(t, s, fmt.Sprintf(`kind: service
name: web
ports: [{name: http, port: 80}]
backends: [{site: s1, addresses: [10.1.1.11]}]
---
kind: service
name: many
headless: true
ports: [{name: http, port: 80}]
backends: [{site: s1, addresses: [%s]}]
`, strings.Join(many, ", ")))
	return vipOf(t, s, "web")
}

// namesSmall is newSmall with nodes that answer names, which are told of no more: the hub is gone, and they start anew.
func namesSmall(t *testing.T, hosts int) (s *System, nodes []*smallNode, vip string) {
	t.Helper()
	s, nodes = newSmall(t, hosts)
	var names []string
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
		names = append(names, nodes[i].Name)
	}
	require.NoError(t, s.WaitReady(step(t), names...))
	vip = declareServices(t, s)
	answered := func() {
		t.Helper()
		for _, n := range nodes {
			require.NoError(t, Wait(t, func() error { return resolves(n.Host, namesAt, ourName, vip) }))
		}
	}
	answered()
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	for _, n := range nodes {
		require.NoError(t, n.Proc.Stop(step(t)))
		require.Error(t, resolves(n.Host, namesAt, ourName, vip), "with the agent its answers end")
		require.NoError(t, n.Start())
	}
	answered()
	return s, nodes, vip
}

// ask asks a server from a host for the IPv4 addresses of a name.
func ask(from *lab.Host, network, server, name string) (*dns.Msg, error) {
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: time.Second}).Dial(network, net.JoinHostPort(server, "53"))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	a, _, err := (&dns.Client{Net: network, Timeout: time.Second}).ExchangeWithConn(new(dns.Msg).SetQuestion(name+".", dns.TypeA).SetEdns0(1232, false), &dns.Conn{Conn: c, UDPSize: 1232})
	return a, err
}

// resolves reports why a server does not give this address of a name to a host.
func resolves(from *lab.Host, server, name, want string) error {
	a, err := ask(from, "udp", server, name)
	if err != nil {
		return err
	}
	for _, r := range a.Answer {
		if x, ok := r.(*dns.A); ok && x.A.String() == want {
			return nil
		}
	}
	return fmt.Errorf("%s of %s at %s:\n%s", name, from.Name, server, a)
}

// Names are answered by each node's agent to its host and its pods, with the hub away, from what was on disk; to nobody on a
// LAN and to no peer. Leaving takes all of it back.
func TestServiceNames(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s, nodes, vip := namesSmall(t, 2)
	n, other := nodes[0], nodes[1]
	for _, from := range []*lab.Host{n.Host, n.Pod.Host, other.Host, other.Pod.Host} {
		require.NoError(t, resolves(from, namesAt, ourName, vip))
		require.NoError(t, resolves(from, namesAt, "n1.s1.node.causeway", n.overlay4(t)))
		a, err := ask(from, "udp", namesAt, "many.default.svc.causeway")
		require.NoError(t, err)
		require.True(t, a.Truncated)
		a, err = ask(from, "tcp", namesAt, "many.default.svc.causeway")
		require.NoError(t, err)
		require.Len(t, a.Answer, 200)
		a, err = ask(from, "udp", namesAt, "example.org")
		require.NoError(t, err)
		require.Equal(t, dns.RcodeRefused, a.Rcode)
	}
	lan := s.Lab.Host("lan").Link("eth0", n.Inet, "203.0.113.99/24").Route(namesAt+"/32", n.LAN)
	for _, port := range []string{"53", "4753"} {
		for _, network := range []string{"udp", "tcp"} {
			err := lan.Do(func() error {
				c, err := (&net.Dialer{Timeout: 300 * time.Millisecond}).Dial(network, net.JoinHostPort(namesAt, port))
				if err != nil {
					return err
				}
				defer c.Close()
				b, err := new(dns.Msg).SetQuestion(ourName+".", dns.TypeA).Pack()
				require.NoError(t, err)
				_, err = c.Write(b)
				require.NoError(t, err)
				require.NoError(t, c.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
				_, err = c.Read(make([]byte, 1))
				return err
			})
			var out net.Error
			require.ErrorAs(t, err, &out, "%s %s", network, port)
			require.True(t, out.Timeout(), "%s %s: %s", network, port, err)
		}
	}
	// What peers reach each other by is as it was: pods, by their own addresses.
	require.NoError(t, Ping(step(t), n.Pod.Host, other.Pod.V4))
	require.NotContains(t, n.Host.Sh("ip -4 route get "+other.overlay4(t)), "169.254")
	status, err := n.Agent(step(t), "health")
	require.NoError(t, err)
	require.Contains(t, status, "causeway dns snippet", "nobody has told this host's resolver")

	require.NoError(t, n.Leave(step(t)))
	joined := snapshot(n.Host)
	require.NotContains(t, joined, "169.254")
	require.NotContains(t, joined, "causeway")
}

// overlay4 is the node's IPv4 address in the overlay.
func (n *smallNode) overlay4(t *testing.T) string {
	t.Helper()
	st, err := os.ReadFile(filepath.Join(n.StateDir, "identity.json"))
	require.NoError(t, err)
	var id struct {
		Overlay []netip.Addr `json:"overlay"`
	}
	require.NoError(t, json.Unmarshal(st, &id))
	for _, a := range id.Overlay {
		if a.Is4() {
			return a.String()
		}
	}
	require.Fail(t, "no overlay address", "%s", st)
	return ""
}

// Each snippet is tried with its program on a node: it finds our names, and others go where they went. What is not to be had
// here (CoreDNS) or has a case of its own (systemd-resolved, Docker) is left out.
func TestDNSSnippets(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s, nodes, vip := namesSmall(t, 1)
	n := nodes[0]
	// The site's own resolver, which has all other names and logs what it is asked.
	site := s.Lab.Host("site").Link("eth0", n.Inet, "203.0.113.53/24")
	upstream, err := site.Start(lab.Program{Name: "upstream", Args: []string{"dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--log-queries", "--log-facility=-", "--pid-file=",
		"--user=root", "--listen-address=203.0.113.53", "--bind-interfaces", "--address=/example.org/9.8.7.6", "--address=/#/"}})
	require.NoError(t, err)
	require.NoError(t, Wait(t, func() error { return resolves(n.Host, "203.0.113.53", "www.example.org", "9.8.7.6") }))
	snippet := func(kind string) string {
		t.Helper()
		out, err := n.Host.Run(step(t), s.Bin.CLI, "dns", "snippet", kind, "--resolver", "203.0.113.53")
		require.NoError(t, err)
		return out
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	for _, x := range []struct {
		kind string
		args func(snippet string) []string
	}{
		{"dnsmasq", func(file string) []string {
			return []string{"dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--pid-file=", "--user=root", "--conf-file=" + file, "--listen-address=127.0.0.1", "--bind-interfaces", "--stop-dns-rebind", "--server=203.0.113.53"}
		}},
		{"unbound", func(file string) []string {
			return []string{"unbound", "-d", "-c", write("unbound.conf", fmt.Sprintf(`server:
    interface: 127.0.0.1
    username: ""
    chroot: ""
    directory: %q
    pidfile: ""
    use-syslog: no
    do-not-query-localhost: no
    private-address: 198.18.0.0/15 # who keeps names from leading inside
    module-config: "validator iterator"
include: %q
forward-zone:
    name: "."
    forward-addr: 203.0.113.53
`, dir, file))}
		}},
		{"bind", func(file string) []string {
			return []string{"named", "-g", "-c", write("named.conf", fmt.Sprintf(`options {
    directory %q; pid-file none; session-keyfile none; listen-on { 127.0.0.1; }; listen-on-v6 { none; };
    dnssec-validation auto; validate-except { "causeway"; "example.org"; }; forward only; forwarders { 203.0.113.53; };
};
controls { };
include %q;
`, dir, file))}
		}},
	} {
		t.Run(x.kind, func(t *testing.T) {
			p, err := n.Host.Start(lab.Program{Name: x.kind, Args: x.args(write(x.kind+".snippet", snippet(x.kind)))})
			require.NoError(t, err)
			defer p.Kill()
			for name, want := range map[string]string{ourName: vip, "www.example.org": "9.8.7.6"} {
				require.NoError(t, Wait(t, func() error {
					if !p.Running() {
						return lab.Permanent(errors.New(p.Output()))
					}
					return resolves(n.Host, "127.0.0.1", name, want)
				}), p.Output())
			}
			require.NoError(t, p.Stop(within(t, 20*time.Second)))
		})
	}
	t.Run("podman", func(t *testing.T) {
		pm := n.Host.Podman("10.88.7.0/24")
		require.NoError(t, pm.Image(step(t), "bb"))
		n.Host.Sh("sysctl -qw net.ipv4.ip_forward=1")
		require.NoError(t, appendFile(filepath.Join(n.Host.Dir(), "podman/containers.conf"), snippet("podman")))
		for name, want := range map[string]string{ourName: vip, "www.example.org": "9.8.7.6"} {
			require.NoError(t, lab.Wait(step(t), name, func(ctx context.Context) error { // its bridge is there with the first container
				out, err := pm.Run(ctx, "run", "--rm", "bb", "/bin/busybox", "timeout", "3", "/bin/busybox", "wget", "http://"+name+":1/") // nobody answers there
				if text := fmt.Sprint(out, err); !strings.Contains(text, "("+want+":1)") {
					return errors.New(text)
				}
				return nil
			}))
		}
	})
	require.False(t, strings.Contains(upstream.Output(), "causeway"), "no name of ours went to the site's resolver")
}

// appendFile adds to a file, whose sections of one name become one.
func appendFile(path, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if head := "[containers]\n"; strings.Contains(string(b), head) {
		_, rest, _ := strings.Cut(text, head)
		b = []byte(strings.Replace(string(b), head, head+rest, 1))
	} else {
		b = append(b, text...)
	}
	return os.WriteFile(path, b, 0o644)
}
