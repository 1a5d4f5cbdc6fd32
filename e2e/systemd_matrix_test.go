package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// hostCase is something that happens to the host of an agent's service.
type hostCase struct {
	name string
	// run lets it happen. What it returns is when nothing stood in the agent's way any more.
	run  func(t *testing.T) time.Time
	undo string // a script that makes the machine as it was
}

// What hosts do to a service: each ends with pods that reach each other and
// nobody's help, in the time of docs/SYSTEMD.md. A soak tries all. Docker here is Debian's 20.10;
// today's is in TestDocker29Engine.
//
// Not parallel: a machine is heavy.
func TestSystemdMatrix(t *testing.T) {
	if !soak() {
		return // TestSystemdAgent stands for it
	}
	p := builtPackages(t)
	m, s, nodes := agentMachine(t, "firewalld", "docker.io", "ufw")
	me, other := nodes[0].Pod, nodes[1].Pod
	m.install(p, "causeway-agent")
	m.join(s, me, other)
	pid := func() string { return m.property("causeway-agent", "MainPID") }
	// after runs a script and returns when it began: what it does is the fault itself.
	after := func(script string) time.Time {
		start := time.Now()
		m.do(script)
		return start
	}
	// until waits for what another program says, and until it says so.
	until := func(t *testing.T, script, want string) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			if out := m.do(script); !strings.Contains(out, want) {
				return fmt.Errorf("no %q in\n%s", want, out)
			}
			return nil
		}))
	}
	told := func(t *testing.T, want string) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			list, err := s.Nodes(step(t))
			if err == nil && !strings.Contains(strings.Join(list["n1"].Reasons, " "), want) {
				err = fmt.Errorf("the hub says of n1: %v", list["n1"].Reasons)
			}
			return err
		}), "the hub is told")
	}
	ended := func(t *testing.T, c hostCase) {
		if c.undo != "" {
			m.do(c.undo)
		}
		if t.Failed() { // the next shall not suffer from it
			m.do("systemctl reset-failed causeway-agent; systemctl restart causeway-agent")
		}
		m.joined(s, "n1", me, other)
	}
	// with has the agent's service run with the drop-in that this iptables needs.
	with := func(variant string) string {
		if variant != "iptables-legacy" {
			return ""
		}
		return m.dropIn("iptables.conf")
	}
	docker := func(variant string) func(*testing.T) time.Time {
		return func(t *testing.T) time.Time {
			// As over a boot: Docker drops what is forwarded if it is the one who allows forwarding.
			m.do("systemctl stop causeway-agent; sysctl -qw net.ipv4.ip_forward=0; update-alternatives --set iptables /usr/sbin/" + variant + "; " +
				with(variant) + "systemctl start docker causeway-agent")
			require.Contains(t, m.do(variant+" -S FORWARD"), "-P FORWARD DROP")
			m.joined(s, "n1", me, other)
			start := after("systemctl restart docker")
			m.joined(s, "n1", me, other)
			require.NoError(t, Ping(step(t), other.Host, me.V4))
			require.Equal(t, "2", strings.TrimSpace(m.do(variant+" -S DOCKER-USER | grep -c cw0")))
			return start
		}
	}
	dockerGone := func(variant string) string {
		return `systemctl stop docker.socket docker containerd; ip link del docker0 2>/dev/null || :
			for t in filter nat; do ` + variant + ` -t $t -F; ` + variant + ` -t $t -X; done; ` + variant + ` -P FORWARD ACCEPT; update-alternatives --auto iptables
			if [ -e /etc/systemd/system/causeway-agent.service.d ]; then rm -r /etc/systemd/system/causeway-agent.service.d; systemctl daemon-reload; systemctl restart causeway-agent; fi`
	}
	const firewalldGone = "systemctl stop firewalld; rm -f /etc/firewalld/zones/trusted.xml*"
	table := "| what happens | seconds |\n|---|---|\n"
	for _, c := range []hostCase{
		{"journald restarted", func(t *testing.T) time.Time {
			old := pid()
			start := after("systemctl restart systemd-journald")
			m.joined(s, "n1", me, other)
			require.Equal(t, old, pid(), "it goes on")
			return start
		}, ""},
		{"killed for want of memory", func(t *testing.T) time.Time {
			// Anew, for no kernel takes memory away that is in use: a limit below that is refused.
			m.do("systemctl set-property --runtime causeway-agent MemoryMax=8M; systemctl reset-failed causeway-agent; systemctl restart --no-block causeway-agent")
			require.NoError(t, Wait(t, func() error {
				if n := m.property("causeway-agent", "NRestarts"); n == "0" || n == "1" {
					return errors.New("not killed twice yet")
				}
				return nil
			}))
			require.Contains(t, m.do("journalctl --no-pager -o cat -u causeway-agent -n 40"), "status=9/KILL")
			return after("systemctl set-property --runtime causeway-agent MemoryMax=infinity")
		}, "systemctl set-property --runtime causeway-agent MemoryMax=infinity"},
		{"disk full, then not", func(t *testing.T) time.Time {
			m.do(`systemctl stop causeway-agent; cp -a /var/lib/causeway-agent /root/state
				mount -t tmpfs -o size=128k,mode=700,uid=$(id -u causeway-agent),gid=$(id -g causeway-agent) tmpfs /var/lib/causeway-agent
				cp -a /root/state/. /var/lib/causeway-agent/; dd if=/dev/zero of=/var/lib/causeway-agent/fill bs=1k 2>/dev/null || :
				systemctl start causeway-agent`)
			require.NoError(t, Ping(step(t), me.Host, other.V4))
			told(t, "no space left")
			start := after("rm /var/lib/causeway-agent/fill")
			m.joined(s, "n1", me, other)
			return start
		}, `systemctl stop causeway-agent; umount /var/lib/causeway-agent; rm -r /root/state; systemctl start causeway-agent`},
		{"network up after the agent", func(t *testing.T) time.Time {
			require.NoError(t, m.Off(step(t), false))
			m.forget()
			m.Host.Sh("ip link set eth0 down")
			require.NoError(t, m.Boot(step(t)))
			until(t, "systemctl show -P ActiveState causeway-agent", "active") // ready without a network
			start := time.Now()
			m.Host.Sh("ip link set eth0 up")
			return start
		}, ""},
		{"agent started anew, rp_filter strict", func(t *testing.T) time.Time {
			m.Host.Sysctl("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1", "net.ipv4.conf.eth0.rp_filter=1")
			return after("systemctl restart causeway-agent")
		}, ""},
		{"systemd-networkd takes over the links", func(t *testing.T) time.Time {
			// It takes foreign rules away when it starts; ours are put back.
			start := after(`printf '[Match]\nName=eth0\n[Network]\nKeepConfiguration=yes\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' >/etc/systemd/network/eth0.network; systemctl restart systemd-networkd`)
			m.joined(s, "n1", me, other)
			require.Contains(t, m.do("networkctl list --no-pager --no-legend cw0"), "unmanaged")
			return start
		}, "rm /etc/systemd/network/eth0.network; systemctl stop systemd-networkd.socket systemd-networkd"},
		{"Docker restarted, its FORWARD drop (iptables-nft)", docker("iptables-nft"), dockerGone("iptables-nft")},
		{"Docker restarted, its FORWARD drop (iptables-legacy, with iptables.conf)", docker("iptables-legacy"), dockerGone("iptables-legacy")},
		{"firewalld started, then the command that the hub's reason names", func(t *testing.T) time.Time {
			m.do("systemctl start firewalld")
			told(t, "firewalld rejects them")
			require.Error(t, PingOnce(step(t), me.Host, other.V4))
			list, err := s.Nodes(step(t))
			require.NoError(t, err)
			_, command, _ := strings.Cut(strings.Join(list["n1"].Reasons, " "), "run '")
			command, _, _ = strings.Cut(command, "'")
			require.Equal(t, "firewall-cmd --permanent --zone=trusted --add-interface=cw0 --add-interface=pods0 && firewall-cmd --reload", command)
			require.Contains(t, m.do("causeway-agent doctor || :"), "do:  run '"+command+"'")
			why, err := s.CLI(step(t), "diag", "explain", me.V4, other.V4)
			require.Error(t, err, why)
			require.Contains(t, why+err.Error(), command)
			start := after(command)
			m.joined(s, "n1", me, other)
			require.NoError(t, Ping(step(t), me.Host, other.V6))
			require.NoError(t, Ping(step(t), other.Host, me.V4))
			return start
		}, firewalldGone},
		{"firewalld reloaded", func(t *testing.T) time.Time {
			m.do("systemctl start firewalld; firewall-cmd -q --permanent --zone=trusted --add-interface=cw0 --add-interface=pods0; firewall-cmd -q --reload")
			m.joined(s, "n1", me, other)
			const found = "journalctl --no-pager -o cat -u causeway-agent | grep -c 'found changed on the host' || :"
			before := m.do(found)
			for range 5 { // its table is flushed and written anew, ours stays
				m.do("firewall-cmd -q --reload")
				require.NoError(t, Ping(step(t), me.Host, other.V4))
			}
			require.Equal(t, before, m.do(found))
			return after("firewall-cmd -q --reload")
		}, firewalldGone},
		{"ufw enabled, then the command that the hub's reason names", func(t *testing.T) time.Time {
			m.do("ufw --force enable")
			told(t, "ufw drops them") // all but pings
			const want = "ufw route allow in on cw0 out on pods0 && ufw route allow in on pods0 out on cw0"
			require.Contains(t, m.do("causeway-agent doctor || :"), "do:  run '"+want+"'")
			why, err := s.CLI(step(t), "diag", "explain", me.V4, other.V4, "--port", "80")
			require.Error(t, err, why)
			require.Contains(t, why+err.Error(), want)
			start := after(want)
			m.joined(s, "n1", me, other)
			require.NoError(t, Ping(step(t), me.Host, other.V6))
			require.NoError(t, Ping(step(t), other.Host, me.V4))
			m.do("ufw reload")
			require.NoError(t, Ping(step(t), other.Host, me.V4), "its rules are written anew, with this one")
			return start
		}, "ufw --force reset; ufw disable; for p in iptables ip6tables; do $p -P INPUT ACCEPT; $p -P FORWARD ACCEPT; $p -P OUTPUT ACCEPT; $p -F; $p -X; done"},
		{"Docker's and containerd's containers, by their drop-ins", func(t *testing.T) time.Time { return m.realRuntimes(s) }, `ctr tasks kill -s KILL cnt; docker rm -f web
			rm -r /etc/systemd/system/causeway-agent.service.d; systemctl daemon-reload; systemctl restart causeway-agent
			` + dockerGone("iptables-nft")},
		{"captures, by their drop-in", func(t *testing.T) time.Time { return m.captures(s, me, other) }, `
			rm -r /etc/systemd/system/causeway-agent.service.d; systemctl daemon-reload; systemctl restart causeway-agent`},
		{"agent started anew, IPv6 off", func(t *testing.T) time.Time {
			m.Host.Sysctl("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
			return after("systemctl restart causeway-agent")
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			t.Cleanup(func() { ended(t, c) })
			start := c.run(t)
			m.joined(s, "n1", me, other)
			table += fmt.Sprintf("| %s | %.1f |\n", c.name, time.Since(start).Seconds())
		})
	}
	m.t = t
	t.Logf("until the node is ready and pods reach each other:\n%s", table)
}

// dropIn is a script that gives the agent's unit a drop-in of the package.
func (m *machine) dropIn(names ...string) string {
	script := "d=/etc/systemd/system/causeway-agent.service.d; mkdir -p $d; "
	for _, name := range names {
		script += "cp /usr/share/doc/causeway-agent/dropins/" + name + " $d/; "
	}
	return script + "systemctl daemon-reload; "
}

// realRuntimes has Docker and containerd run a container each, and waits until the agent's
// service tells of it: by its group of Docker's, whose socket others cannot read, and of
// containerd's, which is root's, not before it has that drop-in too. It returns when both were there to see.
func (m *machine) realRuntimes(s *System) time.Time {
	m.t.Helper()
	require.NoError(m.t, os.MkdirAll(filepath.Join(m.Root, "srv/bb/bin"), 0o755))
	require.NoError(m.t, m.Copy("/bin/busybox", "srv/bb/bin/busybox"))
	m.do(`systemctl start docker; tar -C /srv/bb -c . | docker import - bb
		docker run -d --name web --ulimit nofile=1024:1024 bb /bin/busybox sleep 600
		ctr run -d --null-io --rootfs /srv/bb cnt /bin/busybox sleep 600`)
	require.Equal(m.t, "660 root docker", strings.TrimSpace(m.do("stat -c '%a %U %G' /run/docker.sock")))
	sees := func(want map[string]bool) {
		require.NoError(m.t, Wait(m.t, func() error {
			var inv api.Inventory
			if err := s.Ask(step(m.t), &inv, "inventory", "show", "n1"); err != nil {
				return err
			}
			got := map[string]bool{}
			for _, c := range inv.Containers {
				got[c.Runtime+" "+c.Name] = true
			}
			for c, there := range want {
				if got[c] != there {
					return fmt.Errorf("%s: %v; runtimes %+v, containers %+v", c, got[c], inv.Runtimes, inv.Containers)
				}
			}
			return nil
		}))
	}
	m.do(m.dropIn("runtimes.conf") + "systemctl restart causeway-agent")
	sees(map[string]bool{"docker web": true, "containerd cnt": false})
	start := time.Now()
	m.do(m.dropIn("runtimes-root.conf") + "systemctl restart causeway-agent")
	sees(map[string]bool{"docker web": true, "containerd cnt": true})
	return start
}

// captures takes a capture of the agent's service, which it cannot without its drop-in. It
// returns when the service was started with it.
func (m *machine) captures(s *System, me, other *Pod) time.Time {
	m.t.Helper()
	ping, err := me.Host.Start(lab.Program{Name: "ping", Args: []string{"ping", "-nq", "-i", "0.2", other.V4}})
	require.NoError(m.t, err)
	defer ping.Kill()
	capture := func() (string, error) {
		return s.Hub.Host.Run(step(m.t), "bash", "-euo", "pipefail", "-c", `"$@" | tcpdump -nr - 2>/dev/null`, "sh",
			s.Bin.CLI, "--socket", s.Hub.Socket, "diag", "capture", "n1", "icmp", "--duration", "2s")
	}
	out, err := capture()
	require.ErrorContains(m.t, err, "CAP_NET_RAW", out)
	start := time.Now()
	m.do(m.dropIn("capture.conf") + "systemctl restart causeway-agent")
	m.joined(s, "n1", me, other)
	out, err = capture()
	require.NoError(m.t, err)
	require.Contains(m.t, out, "> "+other.V4+": ICMP echo request")
	return start
}
