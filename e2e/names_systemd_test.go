package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// On a host with systemd-resolved the package has it ask the agent for our zone, and for nothing else, while the agent answers;
// with its stop, and where the configuration says so, all is as it was. No file of the host is another.
//
// Not parallel: a machine is heavy.
func TestSystemdResolved(t *testing.T) {
	p := builtPackages(t)
	m, s, nodes := agentMachine(t, "systemd-resolved", "libnss-resolve")
	n := nodes[0]
	site := s.Lab.Host("site").Link("eth0", n.Inet, "203.0.113.53/24")
	upstream, err := site.Start(lab.Program{Name: "upstream", Args: []string{"dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--log-queries", "--log-facility=-", "--pid-file=",
		"--user=root", "--listen-address=203.0.113.53", "--bind-interfaces", "--address=/example.org/9.8.7.6", "--address=/#/"}})
	require.NoError(t, err)
	m.do(`mkdir -p /run/systemd/resolved.conf.d; printf '[Resolve]\nDNS=203.0.113.53\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n' >/run/systemd/resolved.conf.d/test.conf
		systemctl restart systemd-resolved`)
	query := func(name string) string {
		out, _ := m.Run(step(t), "resolvectl", "query", "--legend=no", "-4", name)
		return out
	}
	finds := func(name, want string) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			if out := query(name); !strings.Contains(out, want) {
				state, _ := m.Run(step(t), "sh", "-c", "resolvectl --no-pager; journalctl --no-pager -o cat -n 20 -u causeway-agent-dns.service; ls -la /var/lib/causeway-agent; causeway-agent health")
				return fmt.Errorf("%s: %s\n%s", name, out, state)
			}
			return nil
		}))
	}
	finds("www.example.org", "9.8.7.6")
	etc := func() string {
		return m.do("find /etc -xdev -type f ! -path '/etc/causeway/*' -exec sha256sum {} + | sort -k2; ls -la /etc/resolv.conf; cat /etc/resolv.conf")
	}
	m.install(p, "causeway-agent")
	m.join(s, nodes[0].Pod, nodes[1].Pod)
	before := etc()
	const ours = ourName
	vip := declareServices(t, s)
	finds(ours, vip)
	finds("www.example.org", "9.8.7.6")
	require.Contains(t, m.do("getent ahostsv4 "+ours), vip, "as programs ask")
	require.Equal(t, "Link "+m.do("cat /sys/class/net/cw0/ifindex | tr -d '\\n'")+" (cw0): no\n", m.do("resolvectl default-route cw0"))
	asked := func() int { return strings.Count(upstream.Output(), "causeway") }
	early := asked() // until resolved was told
	m.do("resolvectl flush-caches")
	for _, name := range []string{ours, "none.default.svc.causeway", "n2.s2.node.causeway"} {
		query(name)
	}
	require.Equal(t, early, asked(), "no name of ours goes elsewhere")
	require.NoError(t, Wait(t, func() error {
		if out := m.do("causeway-agent health"); strings.Contains(out, "snippet") {
			return fmt.Errorf("the agent does not see that it was told:\n%s", out)
		}
		return nil
	}))

	t.Run("the device is made anew", func(t *testing.T) {
		m.Host.Sh("ip link del cw0")
		finds(ours, vip)
	})
	t.Run("resolved restarts", func(t *testing.T) {
		m.do("systemctl restart systemd-resolved")
		finds(ours, vip)
		finds("www.example.org", "9.8.7.6")
	})
	gone := func() error {
		if out := m.do("resolvectl domain cw0; resolvectl dns cw0"); strings.Contains(out, "causeway") || strings.Contains(out, "169.254") {
			return fmt.Errorf("still told: %s", out)
		}
		return nil
	}
	t.Run("off", func(t *testing.T) {
		m.do("cp -p /etc/causeway/agent.yaml /run/agent.yaml; printf 'dns: {off: true}\n' >>/etc/causeway/agent.yaml; systemctl reload causeway-agent")
		require.NoError(t, Wait(t, gone))
		m.do("cp -p /run/agent.yaml /etc/causeway/agent.yaml; systemctl reload causeway-agent")
		finds(ours, vip)
	})
	t.Run("without a hub", func(t *testing.T) {
		require.NoError(t, s.Hub.Proc.Stop(step(t)))
		m.do("systemctl restart causeway-agent; resolvectl flush-caches")
		finds(ours, vip)
		require.NoError(t, s.StartHub(step(t)))
	})
	t.Run("kill", func(t *testing.T) {
		m.do("systemctl kill -s KILL causeway-agent; resolvectl flush-caches")
		finds(ours, vip)
	})
	m.do("systemctl stop causeway-agent")
	require.NoError(t, Wait(t, gone))
	finds("www.example.org", "9.8.7.6")
	require.Equal(t, before, etc())
	m.do("systemctl start causeway-agent")
	finds(ours, vip)
	m.do("causeway-agent leave")
	_, err = os.Stat(filepath.Join(m.Root, "var/lib/causeway-agent/split-dns"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Equal(t, before, etc())
	require.NotContains(t, m.do("resolvectl --no-pager"), "causeway")
	finds("www.example.org", "9.8.7.6")
}
