package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What hosts do to a service: each ends with pods that reach each other and
// nobody's help. A soak tries all.
//
// Not parallel: a machine is heavy.
func TestSystemdMatrix(t *testing.T) {
	if !soak() {
		return // TestSystemdAgent stands for it
	}
	p := builtPackages(t)
	m, s, nodes := agentMachine(t)
	me, other := nodes[0].Pod, nodes[1].Pod
	m.install(p, "causeway-agent")
	m.join(s, me, other)
	pid := func() string { return m.property("causeway-agent", "MainPID") }
	again := func(t *testing.T, old string) {
		require.NoError(t, Wait(t, func() error { return m.changed(old) }))
	}
	dockerRules := func(variant string) string {
		return `for i in ` + variant + `; do $i -N DOCKER-USER; $i -A DOCKER-USER -j RETURN; $i -A FORWARD -j DOCKER-USER; $i -P FORWARD DROP; done; `
	}
	for _, c := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"journald restarted", func(t *testing.T) {
			old := pid()
			m.do("systemctl restart systemd-journald")
			m.joined(s, "n1", me, other)
			require.Equal(t, old, pid(), "it goes on")
		}},
		{"out of memory", func(t *testing.T) {
			old := pid()
			m.do("systemctl set-property --runtime causeway-agent MemoryMax=8M")
			require.NoError(t, Wait(t, func() error {
				if m.property("causeway-agent", "NRestarts") == "0" && pid() == old {
					return errors.New("not killed yet")
				}
				return nil
			}))
			m.do("systemctl set-property --runtime causeway-agent MemoryMax=infinity")
		}},
		{"disk full", func(t *testing.T) {
			m.do(`systemctl stop causeway-agent; cp -a /var/lib/causeway-agent /root/state
				mount -t tmpfs -o size=128k,mode=700,uid=$(id -u causeway-agent),gid=$(id -g causeway-agent) tmpfs /var/lib/causeway-agent
				cp -a /root/state/. /var/lib/causeway-agent/; dd if=/dev/zero of=/var/lib/causeway-agent/fill bs=1k 2>/dev/null || :
				systemctl start causeway-agent`)
			require.NoError(t, Ping(step(t), me.Host, other.V4))
			require.NoError(t, Wait(t, func() error {
				list, err := s.Nodes(step(t))
				if err == nil && !strings.Contains(strings.Join(list["n1"].Reasons, " "), "no space left") {
					err = fmt.Errorf("the hub says of n1: %v", list["n1"].Reasons)
				}
				return err
			}), "the hub is told")
			m.do(`systemctl stop causeway-agent; umount /var/lib/causeway-agent; rm -r /root/state; systemctl start causeway-agent`)
		}},
		{"network up late", func(t *testing.T) {
			require.NoError(t, m.Off(step(t), false))
			m.forget()
			m.Host.Sh("ip link set eth0 down")
			require.NoError(t, m.Boot(step(t)))
			require.NoError(t, Wait(t, func() error {
				if m.property("causeway-agent", "ActiveState") != "active" {
					return errors.New("not active")
				}
				return nil
			}), "ready without a network")
			m.Host.Sh("ip link set eth0 up")
		}},
		{"rp_filter strict", func(t *testing.T) {
			m.Host.Sysctl("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1", "net.ipv4.conf.eth0.rp_filter=1")
			m.do("systemctl restart causeway-agent")
		}},
		{"systemd-networkd", func(t *testing.T) {
			// It takes foreign rules away when it starts; ours are put back.
			m.do(`printf '[Match]\nName=eth0\n[Network]\nKeepConfiguration=yes\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' >/etc/systemd/network/eth0.network; systemctl restart systemd-networkd`)
			require.Contains(t, m.do("networkctl list --no-pager --no-legend cw0"), "unmanaged")
		}},
		{"Docker's rules, iptables-nft", func(t *testing.T) {
			m.do(dockerRules("iptables-nft") + "systemctl restart causeway-agent")
		}},
		{"Docker's rules, iptables-legacy", func(t *testing.T) {
			m.do(`d=/etc/systemd/system/causeway-agent.service.d; mkdir -p $d; cp /usr/share/doc/causeway-agent/dropins/iptables.conf $d/; systemctl daemon-reload; ` +
				dockerRules("iptables-legacy") + "systemctl restart causeway-agent")
		}},
		{"IPv6 off", func(t *testing.T) {
			m.Host.Sysctl("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
			old := pid()
			m.do("systemctl restart causeway-agent")
			again(t, old)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run(t)
			m.joined(s, "n1", me, other)
		})
	}
}
