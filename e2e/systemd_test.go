package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// machine is a host with systemd that installs packages.
type machine struct {
	*lab.Machine
	t      *testing.T
	before map[string]string // net.* settings as a new kernel has them
}

// newMachine boots the host as a machine, with Debian packages that not each has.
func newMachine(t *testing.T, h *lab.Host, packages ...string) *machine {
	t.Helper()
	root, err := moduleRoot(step(t))
	require.NoError(t, err)
	m, err := h.Machine(root, packages...)
	require.NoError(t, err)
	x := &machine{Machine: m, t: t, before: sysctls(h)}
	require.NoError(t, m.Boot(step(t)))
	return x
}

func sysctls(h *lab.Host) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(h.Sh(`sysctl -a 2>/dev/null | grep '^net\.ipv' | grep -v -e stable_secret -e fastopen_key`)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " = "); ok {
			out[k] = v
		}
	}
	return out
}

// do runs a shell script on the machine.
func (m *machine) do(script string) string {
	m.t.Helper()
	out, err := m.Run(within(m.t, 2*time.Minute), "sh", "-ec", script)
	if err != nil {
		log, _ := m.Run(step(m.t), "journalctl", "--no-pager", "-o", "cat", "-n", "60")
		require.NoError(m.t, err, "journal:\n%s", log)
	}
	return out
}

// install installs a package with apt; there is no network, and none is
// needed.
func (m *machine) install(p Packages, name string) {
	m.t.Helper()
	require.NoError(m.t, m.Copy(p.File(name, "deb"), "srv/"+name+".deb"))
	m.do("apt-get install -q -y /srv/" + name + ".deb")
}

// property of a service.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.do("systemctl show --value -p " + name + " " + unit))
}

// forget takes away what a kernel would have forgotten over a reboot: the
// namespace outlives the machine.
func (m *machine) forget() {
	m.t.Helper()
	m.Host.Sh(`nft flush ruleset
		ip link del cw0 2>/dev/null || :
		for f in -4 -6; do
			while ip $f rule del table 51806 2>/dev/null; do :; done
			ip $f route flush table 51806 2>/dev/null || :
		done`)
	for k, v := range sysctls(m.Host) {
		if was, ok := m.before[k]; ok && was != v {
			m.Host.Sh(fmt.Sprintf("sysctl -qw '%s=%s'", k, was))
		}
	}
}

// reboot ends the machine, by its plug or in order, and boots it again.
func (m *machine) reboot(plug bool) {
	m.t.Helper()
	require.NoError(m.t, m.Off(step(m.t), plug))
	m.forget()
	// systemd says that it is starting for as long as an upgrade that power loss met is judged: over a minute.
	require.NoError(m.t, m.Boot(within(m.t, 3*time.Minute)))
}

// kept is all that a package could leave on the machine: files and what they
// hold, users, groups, units.
func (m *machine) kept() string {
	m.t.Helper()
	return m.do(`find /etc /usr /opt /root /var/lib /run/causeway -xdev ! -path '/var/lib/dpkg*' ! -path '/var/lib/apt*' ! -path '/var/lib/systemd*' ! -name '*-' \
		! -path /etc/ld.so.cache -printf '%p %M %u %g %l\n' 2>/dev/null | sort
		find /etc -xdev -type f ! -name '*-' -exec sha256sum {} + | sort -k2
		getent passwd; getent group; systemctl list-unit-files --no-legend --no-pager | grep -i causeway || :; dpkg-query -W -f '${Package} ${db:Status-Status}\n'`)
}

// joined waits until node name answers at the hub and its pods answer pings.
func (m *machine) joined(s *System, name string, from, to *Pod) {
	m.t.Helper()
	err := s.WaitReady(step(m.t), name)
	if err == nil {
		err = Ping(step(m.t), from.Host, to.V4)
	}
	if err != nil {
		out, _ := m.Run(step(m.t), "journalctl", "--no-pager", "-n", "60", "-u", "causeway-agent")
		require.NoError(m.t, err, out)
	}
}

// agentMachine is a host that joined by its package, n1, beside an ordinary one, n2.
func agentMachine(t *testing.T, packages ...string) (*machine, *System, []*smallNode) {
	t.Helper()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 2)
	m := newMachine(t, nodes[0].Host, packages...)
	return m, s, nodes
}

// join joins the machine as node n1 and starts its service.
func (m *machine) join(s *System, from, to *Pod) {
	m.t.Helper()
	token, err := s.Token(step(m.t), "s1", "--route", "10.1.1.0/24", "--route", "fd10:1:1::/64")
	require.NoError(m.t, err)
	require.NoError(m.t, os.WriteFile(filepath.Join(m.Root, "srv/token"), []byte(token), 0o600))
	require.Contains(m.t, m.do("causeway-agent join --name n1 @/srv/token; rm /srv/token"), "systemctl enable --now causeway-agent")
	m.do("systemctl enable -q --now causeway-agent")
	m.joined(s, "n1", from, to)
}

// A host's life with the package: install, join, run without root, crash, freeze,
// reload, upgrade by the hub, reboot, drop-ins, purge.
//
// Not parallel: a machine is heavy.
func TestSystemdAgent(t *testing.T) {
	p := builtPackages(t)
	m, s, nodes := agentMachine(t)
	me, other := nodes[0].Pod, nodes[1].Pod
	host, files := snapshot(m.Host), m.kept()

	m.install(p, "causeway-agent")
	require.Equal(t, "inactive", m.property("causeway-agent", "ActiveState"), "nothing starts before it joined")
	require.Contains(t, m.do("causeway-agent --version"), packagesVersion)
	m.join(s, me, other)
	pid := m.property("causeway-agent", "MainPID")
	status := m.do("cat /proc/" + pid + "/status")
	require.Contains(t, status, "CapEff:\t0000000000003000", "CAP_NET_ADMIN and CAP_NET_RAW alone")
	require.NotContains(t, status, "Uid:\t0\t")
	// Its socket is found where it always was, and nobody else can take that name.
	require.Contains(t, m.do("causeway-agent status"), "site s1")
	require.Equal(t, "root 755\ncauseway-agent 755\n", m.do(`stat -c "%U %a" /run/causeway /run/causeway/agent; cd /run/causeway
		if runuser -u nobody -- ln -sf /dev/null agent.sock 2>/dev/null || runuser -u causeway-agent -- rm -f agent.sock 2>/dev/null; then echo taken; fi`))

	t.Run("wall", func(t *testing.T) { // the agent's user alone gets at the hub, not even root
		for _, at := range []string{"198.18.0.1/4710", "fd63:7761:7900::1/4710", "198.18.0.1/4712"} {
			_, err := m.Host.Run(step(t), "timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/"+at)
			require.Error(t, err, at)
			m.do("setpriv --reuid=" + strings.TrimSpace(m.do("stat -c %u /proc/"+pid)) + " --clear-groups timeout 5 bash -c 'exec 3<>/dev/tcp/" + at + "'")
		}
	})
	t.Run("kill", func(t *testing.T) {
		m.do("systemctl kill -s KILL causeway-agent")
		require.NoError(t, Wait(t, func() error { return m.changed(pid) }))
		m.joined(s, "n1", me, other)
		require.Equal(t, "1", m.property("causeway-agent", "NRestarts"))
	})
	t.Run("freeze", func(t *testing.T) {
		m.do(`mkdir -p /run/systemd/system/causeway-agent.service.d
			printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/causeway-agent.service.d/watchdog.conf
			systemctl daemon-reload; systemctl restart causeway-agent`)
		m.joined(s, "n1", me, other)
		pid := m.property("causeway-agent", "MainPID")
		m.do("kill -STOP " + pid)
		require.NoError(t, Wait(t, func() error { return m.changed(pid) }))
		m.joined(s, "n1", me, other)
		require.Contains(t, m.do("journalctl --no-pager -u causeway-agent"), "Watchdog timeout")
		m.do("rm -r /run/systemd/system/causeway-agent.service.d; systemctl daemon-reload")
	})
	t.Run("reload", func(t *testing.T) {
		pid := m.property("causeway-agent", "MainPID")
		m.do(`printf 'routes: [10.99.1.0/24]\ntunnel: {mtu: 1300}\n' >/etc/causeway/agent.yaml; systemctl reload causeway-agent`)
		require.NoError(t, Wait(t, func() error {
			var rs []api.Route
			if err := s.Ask(step(t), &rs, "route", "list", "--pending"); err != nil {
				return err
			}
			if len(rs) != 1 || rs[0].Prefix.String() != "10.99.1.0/24" {
				return fmt.Errorf("pending routes: %v", rs)
			}
			return nil
		}))
		require.Equal(t, pid, m.property("causeway-agent", "MainPID"))
		require.Contains(t, m.do("journalctl --no-pager -u causeway-agent"), `"settings":"tunnel.mtu"`)
		require.NoError(t, Ping(step(t), me.Host, other.V4))
	})
	t.Run("drop-ins", func(t *testing.T) {
		m.do(`groupadd -r docker; d=/etc/systemd/system/causeway-agent.service.d; mkdir -p $d
			cp /usr/share/doc/causeway-agent/dropins/*.conf $d/; systemctl daemon-reload; systemctl restart causeway-agent`)
		m.joined(s, "n1", me, other)
		m.runtimes(s)
		m.do("rm -r /etc/systemd/system/causeway-agent.service.d /var/lib/cni; groupdel docker; systemctl daemon-reload; systemctl restart causeway-agent")
		m.joined(s, "n1", me, other)
	})
	if !soak() {
		t.Run("upgrade", func(t *testing.T) { m.upgrades(t, p, s, me, other) })
	}
	for _, plug := range []bool{false, true} {
		t.Run(fmt.Sprintf("reboot, plug pulled %v", plug), func(t *testing.T) {
			m.reboot(plug)
			start := time.Now()
			m.joined(s, "n1", me, other)
			t.Logf("ping %.1f s after the boot", time.Since(start).Seconds())
		})
	}

	m.do("apt-get purge -q -y causeway-agent; rm -f /srv/*.deb")
	require.Empty(t, cmp.Diff(files, m.kept()))
	require.Empty(t, cmp.Diff(host, snapshot(m.Host)))
	awaitLeft(t, s, "n1")
	t.Run("installer", func(t *testing.T) { m.installer(p, s, me, other) })
}

// runtimes lets a real Podman answer at its socket, which is root's, and waits until
// the agent's service, with its drop-ins and without root, tells of its containers.
func (m *machine) runtimes(s *System) {
	m.t.Helper()
	pm := m.Host.Podman("10.88.9.0/24")
	require.NoError(m.t, pm.Image(step(m.t), "bb"))
	_, err := pm.Run(step(m.t), "run", "-d", "--name", "web", "--network", "none", "bb", "/bin/sleep", "600")
	require.NoError(m.t, err)
	m.do("install -d -m 0700 /run/podman /var/lib/cni/networks/lan; echo c1 >/var/lib/cni/networks/lan/10.1.1.77")
	require.NoError(m.t, pm.ServeAt(step(m.t), m.Inside()+"/run/podman/podman.sock"))
	m.do("chmod 0660 /run/podman/podman.sock")
	require.NoError(m.t, Wait(m.t, func() error {
		var inv api.Inventory
		if err := s.Ask(step(m.t), &inv, "inventory", "show", "n1"); err != nil {
			return err
		}
		if v, ok := inv.Runtimes["podman"]; !ok || v.Error != "" {
			return fmt.Errorf("runtimes: %+v", inv.Runtimes)
		}
		for _, c := range inv.Containers {
			if c.Name == "web" {
				return nil
			}
		}
		return fmt.Errorf("no container web: %+v", inv.Containers)
	}))
	_, err = pm.Run(step(m.t), "rm", "-f", "-t", "0", "web")
	require.NoError(m.t, err)
}

// installer installs by install.sh, twice, and not what was tampered with.
func (m *machine) installer(p Packages, s *System, from, to *Pod) {
	m.t.Helper()
	for _, f := range []string{p.File("causeway-agent", "deb"), filepath.Join(p.Dir, "SHA256SUMS"), filepath.Join(p.Dir, "SHA256SUMS.sig"), filepath.Join(p.Dir, "install.sh"), p.Key() + ".pub"} {
		require.NoError(m.t, m.Copy(f, "srv/"+filepath.Base(f)))
	}
	deb := "/srv/" + filepath.Base(p.File("causeway-agent", "deb"))
	out := m.do("cp " + deb + " /root/x; echo >>" + deb + "; if sh /srv/install.sh --from /srv 2>&1; then exit 1; fi; mv /root/x " + deb)
	require.Contains(m.t, out, "its checksum is not that of SHA256SUMS")
	pub := "/srv/" + filepath.Base(p.Key()) + ".pub"
	out = m.do(`ssh-keygen -q -t ed25519 -N '' -f /root/other; if sh /srv/install.sh --from /srv --key /root/other.pub 2>&1; then exit 1; fi
		echo >>/srv/SHA256SUMS; if sh /srv/install.sh --from /srv --key "$(cat ` + pub + `)" 2>&1; then exit 1; fi; sed -i '$d' /srv/SHA256SUMS; rm /root/other*`)
	require.Equal(m.t, 2, strings.Count(out, "SHA256SUMS is not signed by that key"), out)
	require.NotContains(m.t, m.do("dpkg-query -W"), "causeway-agent")
	token, err := s.Token(step(m.t), "s1", "--route", "10.1.1.0/24")
	require.NoError(m.t, err)
	require.NoError(m.t, os.WriteFile(filepath.Join(m.Root, "srv/token"), []byte(token), 0o600))
	m.do("hostname again; sums=$(sha256sum </srv/SHA256SUMS | cut -d' ' -f1); for i in 1 2; do sh /srv/install.sh --from /srv --key " + pub + " --sums $sums --token @/srv/token; done")
	m.joined(s, "again", from, to)
	require.Equal(m.t, "enabled", m.property("causeway-agent", "UnitFileState"))
}

// changed is nil once the agent's process is another one than pid.
func (m *machine) changed(pid string) error {
	now := m.property("causeway-agent", "MainPID")
	if now == pid || now == "0" || m.property("causeway-agent", "ActiveState") != "active" {
		return errors.New("the agent is not there again")
	}
	return nil
}

// hubMachine is a hub by its package, and two nodes that reach each other through it
// alone.
func hubMachine(t *testing.T, p Packages) (*machine, *System, []*smallNode) {
	t.Helper()
	needRoot(t)
	bin := binaries(t)
	l := lab.New(t)
	inet := l.Switch("inet")
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	m := newMachine(t, hub)
	m.install(p, "causeway-hub")
	require.Contains(t, m.do("causeway-hub init --public-host "+HubAddr), "systemctl enable --now")
	m.do("systemctl enable -q --now causeway-hub-https.socket causeway-hub-admin.socket causeway-hub")
	s, err := PrepareSystem(l, bin, hub, HubAddr)
	require.NoError(t, err)
	s.Hub.Socket = filepath.Join(m.Inside(), "run/causeway/hub.sock")
	var nodes []*smallNode
	for i := 1; i <= 2; i++ {
		n := &smallNode{Inet: inet, LAN: fmt.Sprintf("203.0.113.%d", 20+i)}
		n.Host = l.Host(fmt.Sprintf("n%d", i)).Link("eth0", inet, n.LAN+"/24")
		net := n.Host.PodNet("pods0", fmt.Sprintf("10.%d.1.1/24", i), fmt.Sprintf("fd10:%d:1::1/64", i))
		v4, v6 := fmt.Sprintf("10.%d.1.11", i), fmt.Sprintf("fd10:%d:1::11", i)
		n.Pod = &Pod{Host: net.Pod(fmt.Sprintf("p%d", i), v4+"/24", v6+"/64"), V4: v4, V6: v6}
		n.Host.Nft(fmt.Sprintf("table inet apart { chain o { type filter hook output priority 0; ip daddr 203.0.113.%d drop; }\n}", 23-i))
		nodes = append(nodes, n)
		require.NoError(t, n.Host.Settle(step(t)))
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("s%d", i)))
	}
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	return m, s, nodes
}

// A hub's restart and crash under systemd: what the relay carries stands still
// for less than a second, and no connection is lost.
//
// Not parallel: a time limit.
func TestSystemdHub(t *testing.T) {
	m, s, nodes := hubMachine(t, builtPackages(t))
	a, b := nodes[0].Pod, nodes[1].Pod
	_, err := s.Serve(step(t), b.Host)
	require.NoError(t, err)
	status := m.do("cat /proc/" + m.property("causeway-hub", "MainPID") + "/status")
	require.Contains(t, status, "CapEff:\t0000000000000000")
	require.NotContains(t, status, "Uid:\t0\t")
	require.Equal(t, fmt.Sprint(min(runtime.GOMAXPROCS(0), 8)+1), m.property("causeway-hub", "NFileDescriptorStore"))
	for what, script := range map[string]string{
		"restart": "systemctl restart causeway-hub",
		"crash":   "systemctl kill -s KILL causeway-hub",
		"upgrade": "dpkg -i /srv/causeway-hub.deb",
	} {
		t.Run(what, func(t *testing.T) {
			worst := 0.0
			for range repeat(1, 3) {
				worst = max(worst, m.renewHub(s, a, b, script))
			}
			measured(t, "longest gap of a hub's "+what, worst, hubGap)
		})
	}
	m.hubDropIns(s)
	m.purgeHub()
}

// hubDropIns runs the hub with each of its drop-ins.
func (m *machine) hubDropIns(s *System) {
	m.t.Helper()
	with := func(dropin string) string {
		m.do(`install -m 0600 /dev/null /etc/causeway/nats.creds; echo secret >/etc/causeway/nats.creds
			d=/etc/systemd/system/causeway-hub.service.d; mkdir -p $d; cp /usr/share/doc/causeway-hub/dropins/` + dropin + ` $d/; systemctl daemon-reload; systemctl restart causeway-hub`)
		require.NoError(m.t, s.WaitReady(step(m.t), "n1", "n2"))
		return m.property("causeway-hub", "MainPID")
	}
	pid := with("low-ports.conf")
	require.Contains(m.t, m.do("cat /proc/"+pid+"/status"), "CapEff:\t0000000000000400", "CAP_NET_BIND_SERVICE alone")
	pid = with("credentials.conf")
	dir := strings.TrimSpace(m.do(`tr '\0' '\n' </proc/` + pid + `/environ | sed -n 's/^CREDENTIALS_DIRECTORY=//p'`))
	require.NotEmpty(m.t, dir)
	// Root's file, read as the hub's user in the hub's view of the host.
	require.Equal(m.t, "secret\n", m.do("nsenter -t "+pid+" -m setpriv --reuid causeway-hub --regid causeway-hub --clear-groups cat "+dir+"/nats.creds"))
	m.do("rm -r /etc/systemd/system/causeway-hub.service.d /etc/causeway/nats.creds; systemctl daemon-reload; systemctl restart causeway-hub")
	require.NoError(m.t, s.WaitReady(step(m.t), "n1", "n2"))
}

// purgeHub removes the package for good: a cluster's keys and state stay, and their user;
// without them nothing does.
func (m *machine) purgeHub() {
	m.t.Helper()
	require.Contains(m.t, m.do("apt-get purge -q -y causeway-hub 2>&1"), "kept /var/lib/causeway-hub")
	require.Equal(m.t, "/var/lib/causeway-hub/cluster.key\n", m.do("find /etc /usr /run/causeway -name '*causeway*' 2>/dev/null || :; ls /var/lib/causeway-hub/cluster.key"))
	require.Contains(m.t, m.do("getent passwd"), "causeway-hub")
	require.NotContains(m.t, m.do("systemctl list-unit-files --no-legend --no-pager"), "causeway")
	m.do("apt-get install -q -y /srv/causeway-hub.deb; rm -rf /var/lib/causeway-hub/*; apt-get purge -q -y causeway-hub")
	require.NotContains(m.t, m.do("getent passwd; getent group; ls /var/lib /etc /run"), "causeway")
}

// renewHub has the hub started anew by a script while pods talk, and returns the longest
// gap.
func (m *machine) renewHub(s *System, a, b *Pod, script string) float64 {
	m.t.Helper()
	f := startTraffic(m.t, s, a, b)
	pid := m.property("causeway-hub", "MainPID")
	m.do(script)
	require.NoError(m.t, Wait(m.t, func() error {
		if now := m.property("causeway-hub", "MainPID"); now == pid || m.property("causeway-hub", "ActiveState") != "active" {
			return errors.New("the hub is not there again")
		}
		return nil
	}))
	require.NoError(m.t, s.WaitReady(step(m.t), "n1", "n2"))
	require.NoError(m.t, Ping(step(m.t), a.Host, b.V4))
	return f.end(m.t)
}

// hubGap is how long what the relay carries may stand still over a hub's new
// start, in seconds.
const hubGap = 1.0
