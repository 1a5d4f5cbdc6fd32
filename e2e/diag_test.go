package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// What operators ask when something is slow or gone: n1 and n2 reach each other directly, n3
// over the relay, as its host lets nobody but the hub in.
func TestDiag(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 3)
	nodes[2].Host.Nft(`table inet shut { chain in { type filter hook prerouting priority -300; iifname "eth0" udp dport != 53 ip saddr != ` + HubAddr + ` drop; }; }`)
	debug := map[int]string{1: "allow: [payload]", 2: "deny: [bench, capture]"}
	var fs []func() error
	for i := 1; i <= 3; i++ {
		fs = append(fs, func() (err error) {
			name := fmt.Sprintf("n%d", i)
			nodes[i-1].Node, err = s.Join(step(t), NodeSpec{Name: name, Site: fmt.Sprintf("s%d", i), Host: nodes[i-1].Host, TokenRoutes: PodRoutes(i, 1), Debug: debug[i]})
			return err
		})
	}
	require.NoError(t, lab.All(fs...))
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[2].Pod.V4))
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathDirect))
	require.NoError(t, s.WaitPath(step(t), "n2", "n1", protocol.PathDirect))

	t.Run("path", func(t *testing.T) { diagPath(t, s, nodes) })
	t.Run("trace", func(t *testing.T) { diagTrace(t, s, nodes) })
	t.Run("mtu", func(t *testing.T) { diagMTU(t, s, nodes) })
	t.Run("capture", func(t *testing.T) { diagCapture(t, s, nodes) })
	t.Run("capture that nobody reads", func(t *testing.T) { captureUnread(t, s, nodes) })
	t.Run("bench", func(t *testing.T) { diagBench(t, s, nodes) })
	t.Run("agent doctor", func(t *testing.T) { agentDoctor(t, s, nodes) })
	t.Run("bundle", func(t *testing.T) { diagBundle(t, s, nodes) })
}

func diagPath(t *testing.T, s *System, nodes []*smallNode) {
	var r api.Trace
	// The probes have measured it by then, and the hub knows whose the pod is.
	require.NoError(t, Wait(t, func() error {
		r = api.Trace{}
		if err := s.Ask(step(t), &r, "diag", "path", "n1", nodes[1].Pod.V4); err != nil {
			return err
		}
		for from, v := range map[string]*protocol.TraceView{"n1": r.Forward, "n2": r.Back} {
			if v == nil || v.Peer.Path != protocol.PathDirect || v.Peer.Size != 1500 || v.Peer.RTT == 0 {
				return fmt.Errorf("%s: %+v", from, v)
			}
		}
		return nil
	}))
	require.Equal(t, "n2", r.To.Node)
	for from, v := range map[string]*protocol.TraceView{"n1": r.Forward, "n2": r.Back} {
		require.Equal(t, protocol.PathDirect, v.Peer.Path, from)
		require.Positive(t, v.Peer.RTT)
		require.Zero(t, v.Peer.Loss)
		require.Equal(t, 1500, v.Peer.Size, "the underlay's")
		require.Equal(t, 1440, v.Peer.MTU)
		require.False(t, v.Peer.Since.IsZero())
		require.Contains(t, v.Peer.Why, "direct")
		require.True(t, v.Peer.Candidates[0].Chosen)
	}
	require.Equal(t, nodes[1].LAN, r.Forward.Peer.Addr.Addr().String())

	require.NoError(t, s.Ask(step(t), &r, "diag", "path", nodes[0].Pod.V6, "n3"))
	require.Equal(t, protocol.PathRelay, r.Forward.Peer.Path)
	require.Equal(t, HubAddr, r.Forward.Peer.Addr.Addr().String())
	require.Regexp(t, `none of the peer's \d+ addresses answers`, r.Forward.Peer.Why)
	out, err := s.CLI(step(t), "diag", "path", "n1", "n3")
	require.NoError(t, err)
	require.Regexp(t, `(?m)^n1 to n3 +relay through `+HubAddr+`:51820$`, out)
	require.Regexp(t, `(?m)^ +direct +203\.0\.113\.23:\d+ .* no answer$`, out)

	for what, args := range map[string][]string{
		"neither a node nor a running pod": {"n1", "nosuchpod"},
		"no node has the address":          {"n1", "192.0.2.99"},
		"both ends are on node n1":         {"n1", nodes[0].Pod.V4},
	} {
		_, err := s.CLI(step(t), append([]string{"diag", "path"}, args...)...)
		requireOneLine(t, err, what)
	}
}

func diagTrace(t *testing.T, s *System, nodes []*smallNode) {
	kinds := func(r api.Trace) (out []string) {
		for _, h := range r.Hops {
			require.True(t, h.OK, "%+v", h)
			out = append(out, h.Kind)
		}
		return out
	}
	var r api.Trace
	require.NoError(t, s.Ask(step(t), &r, "diag", "trace", nodes[0].Pod.V4, nodes[1].Pod.V4))
	require.Equal(t, []string{api.HopPod, api.HopHost, api.HopTunnel, api.HopHost, api.HopPod}, kinds(r))
	require.NoError(t, s.Ask(step(t), &r, "diag", "trace", nodes[0].Pod.V6, nodes[2].Pod.V6))
	require.Equal(t, []string{api.HopPod, api.HopHost, api.HopTunnel, api.HopHub, api.HopHost, api.HopPod}, kinds(r))
	for i := range r.Hops[3:] {
		require.Positive(t, r.Hops[3+i].RTT, "hop %d of %+v", 3+i, r.Hops)
	}
	require.Contains(t, r.Hops[1].Note, "dev cw0")

	// A pod that answers nobody: its own node says so too.
	nodes[1].Pod.Nft(`table inet mute { chain in { type filter hook input priority 0; meta l4proto { icmp, ipv6-icmp } drop; }; }`)
	_, err := s.CLI(step(t), "diag", "trace", "n1", nodes[1].Pod.V4)
	require.ErrorContains(t, err, "pod "+nodes[1].Pod.V4+" does not answer")
	nodes[1].Pod.Nft(`delete table inet mute`)
}

// A hole that swallows large packets from n2 to n1 alone is told of that direction.
func diagMTU(t *testing.T, s *System, nodes []*smallNode) {
	var r api.MTU
	require.NoError(t, s.Ask(step(t), &r, "diag", "mtu", "n1", "n2"))
	for _, d := range []api.MTUDirection{r.Forward, r.Back} {
		require.True(t, d.OK, "%+v", d)
		require.Equal(t, []int{1500, 1440, 1440, 1440}, []int{d.Underlay, d.Known, d.Measured, d.Route}, "%+v", d)
	}
	// Inside the tunnel, where no probe of a path sees it.
	nodes[0].Host.Nft(`table inet hole { chain in { type filter hook input priority -300; iifname "cw0" udp length > 1200 drop; }; }`)
	out, err := s.CLI(step(t), "diag", "mtu", nodes[0].Pod.V4, "n2")
	nodes[0].Host.Nft(`delete table inet hole`)
	// Where processors are busy two datagrams of neighbouring sizes enter the kernel as one, and the hole takes both.
	require.Error(t, err)
	require.Regexp(t, "from n2: packets of 122[01] to 1440 bytes are sent and do not arrive", err.Error())
	require.NotContains(t, err.Error(), "from n1", out)
}

func diagBench(t *testing.T, s *System, _ []*smallNode) {
	for _, proto := range []string{"tcp", "udp"} {
		var r api.Bench
		require.NoError(t, s.Ask(step(t), &r, "diag", "bench", "n1", "n3", "--yes", "--proto", proto, "--time", "1s", "--rate", "8M"))
		require.Positive(t, r.Received)
		require.LessOrEqual(t, r.Sent, uint64(1_300_000), "the rate is held")
		if proto == "udp" {
			require.Equal(t, r.Datagrams*1200, r.Sent)
			require.Equal(t, r.Sent-r.Received, r.Lost*1200)
		}
		t.Logf("%s: %d kbit/s, %d of %d datagrams lost, jitter %s", proto, r.Rate/1000, r.Lost, r.Datagrams, time.Duration(r.Jitter))
	}
	// n2's config refuses it, whichever end n2 is.
	for _, ends := range [][]string{{"n1", "n2"}, {"n2", "n1"}} {
		_, err := s.CLI(step(t), append([]string{"diag", "bench", "--yes"}, ends...)...)
		requireOneLine(t, err, "denies the hub 'bench'")
	}
	_, err := s.CLI(step(t), "diag", "bench", "n1", "n3")
	requireOneLine(t, err, "use --yes")
}

// Captures of the tunnel and of a pod, as tcpdump and another reader of pcapng see them.
func diagCapture(t *testing.T, s *System, nodes []*smallNode) {
	const secret = "PAYLOADSECRET"
	a, b := nodes[0], nodes[1]
	capture := func(args ...string) []string {
		file := filepath.Join(t.TempDir(), "out.pcapng")
		// Written as packets come, and read while it goes on: the first packet ends it.
		p, err := s.Hub.Host.Start(lab.Program{Name: "capture", Dir: "/", Args: append([]string{"sh", "-c", `exec "$@" > "$0"`, file, s.Bin.CLI, "--socket", s.Hub.Socket, "diag", "capture"}, args...)})
		require.NoError(t, err)
		var lines []string
		require.NoError(t, Wait(t, func() error {
			if _, err := a.Pod.Run(step(t), "bash", "-c", "printf "+secret+" > /dev/udp/"+b.Pod.V4+"/9"); err != nil {
				return err
			}
			if err := Ping(step(t), a.Pod.Host, b.Pod.V4); err != nil {
				return err
			}
			out, err := s.Hub.Host.Run(step(t), "tcpdump", "-nr", file)
			lines = strings.Split(strings.TrimSpace(out), "\n")
			if err != nil && out == "" || len(lines) < 2 {
				return fmt.Errorf("%v: %q; %s", err, out, p.Output())
			}
			return nil
		}))
		p.Signal(syscall.SIGINT)
		require.NoError(t, p.Wait(step(t)))
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		r, err := pcapgo.NewNgReader(bytes.NewReader(raw), pcapgo.DefaultNgReaderOptions)
		require.NoError(t, err)
		require.Equal(t, layers.LinkTypeRaw, r.LinkType())
		payload := slices.Contains(args, "--payload")
		if strings.Contains(strings.Join(args, " "), "udp") {
			require.Equal(t, payload, bytes.Contains(raw, []byte(secret)), "payload")
		}
		for _, l := range lines {
			require.NotContains(t, l, "198.18.0.1.", "the hub's")
		}
		return lines
	}
	for _, on := range []string{"n1", a.Pod.V4} {
		for _, l := range capture(on, "icmp and dst host "+b.Pod.V4) {
			require.Contains(t, l, "> "+b.Pod.V4+": ICMP echo request")
		}
	}
	for _, l := range capture("n1", "udp", "port", "9", "--payload") {
		require.Contains(t, l, b.Pod.V4+".9: UDP")
	}
	capture("n1", "udp port 9")

	for want, args := range map[string][]string{
		"denies the hub 'capture'":         {"n2"},
		"debug: {allow: [payload]}":        {"n3", "--payload"},
		"is not expected there":            {"n1", "vlan 7"},
		"neither a node nor a running pod": {"nosuch"},
		"is not between 1ms and 5m":        {"n1", "--duration", "1h"},
	} {
		_, err := s.CLI(step(t), append([]string{"diag", "capture"}, args...)...)
		requireOneLine(t, err, want)
	}
	_, err := s.Hub.Host.Run(step(t), "script", "-qec", s.Bin.CLI+" --socket "+s.Hub.Socket+" diag capture n1", "/dev/null")
	require.ErrorContains(t, err, "not for a terminal")
}

// One archive with everything of all nodes, one of which does not run, and no secret.
func diagBundle(t *testing.T, s *System, nodes []*smallNode) {
	token, err := s.Token(step(t), "s1")
	require.NoError(t, err)
	nodes[2].Proc.Kill()
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	_, err = s.CLI(within(t, 2*time.Minute), "bundle", file, "--timeout", "1m")
	require.NoError(t, err)
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	var all []byte
	names := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		names[strings.TrimPrefix(h.Name, "causeway-bundle/")] = string(b)
		all = append(all, b...)
	}
	for _, n := range []string{"n1", "n2"} {
		for _, doc := range []string{"health", "status", "peers", "paths", "netmap", "routes", "runtime", "uses"} {
			require.Contains(t, names, "nodes/"+n+"/"+doc+".json")
		}
		require.Contains(t, names["nodes/"+n+"/metrics"], "causeway_agent_")
	}
	for _, doc := range []string{"status", "version", "settings", "sites", "nodes", "routes", "tokens", "inventory", "events", "audit"} {
		require.Contains(t, names, "hub/"+doc+".json")
	}
	require.Contains(t, names["MISSING.txt"], "nodes/n3")
	require.Contains(t, names["hub/settings.json"], s.Hub.Dir)
	secrets := writtenSecrets(t, s, []string{token}, nodes...)
	// And no node's signed statement, which others have in their netmaps.
	var held struct{ Netmap protocol.Netmap }
	require.NoError(t, json.Unmarshal(read(t, nodes[1].Socket, "/v1/netmap"), &held))
	require.NotEmpty(t, held.Netmap.Peers)
	for _, p := range held.Netmap.Peers {
		require.Len(t, p.Statement.Signature, 64)
		require.Contains(t, names["nodes/n2/netmap.json"], p.Statement.IdentityKey.String(), "the rest of it is there")
		secrets = append(secrets, writtenForms("statement of "+p.Name, p.Statement.Signature)...)
	}
	for _, x := range secrets {
		require.False(t, bytes.Contains(all, x.bytes), x.name)
	}
}

// The doctor on a healthy host, where UDP is blocked, where the overlay's addresses and a
// tunnel of others' are, and before joining.
func agentDoctor(t *testing.T, s *System, nodes []*smallNode) {
	look := func(n *smallNode, args ...string) (map[string]doctored, error) {
		out, err := n.Host.Run(step(t), append([]string{s.Bin.Agent, "doctor", "-o", "json", "--state-dir", n.StateDir, "--config", n.Config}, args...)...)
		if err != nil {
			out = failed(t, err).Stdout
		}
		var l []doctored
		require.NoError(t, json.Unmarshal([]byte(out), &l), out)
		by := map[string]doctored{}
		for _, k := range l {
			by[k.Name] = k
		}
		return by, err
	}
	udp, tcp := "hub "+HubAddr+":51820 udp", "hub "+HubAddr+":443 tcp"
	for _, h := range []*smallNode{nodes[0], nodes[1]} {
		h.Host.Sh("ip route replace default via " + HubAddr)
	}
	by, err := look(nodes[0])
	require.NoError(t, err)
	for _, name := range []string{"kernel", "capabilities", "tun", "nftables", "firewall", "other VPNs", "rules", "mtu", "ranges", "clock", "nat", udp, tcp} {
		require.Equal(t, "ok", by[name].Status, "%s: %+v", name, by[name])
	}
	require.Contains(t, by["nat"].What, "none: hubs see this host's own address "+nodes[0].LAN)

	h := nodes[1].Host
	h.Nft(`table inet shut { chain out { type filter hook output priority 0; oifname "eth0" udp dport 51820 drop; }; }`)
	by, err = look(nodes[1])
	require.NoError(t, err, "a warning is no failure")
	require.Equal(t, "warn", by[udp].Status)
	require.Equal(t, "ok", by[tcp].Status)
	require.Contains(t, by[udp].Do, "let UDP out")
	h.Nft(`delete table inet shut`)

	h.Sh("ip tuntap add mode tun name tailscale0 && ip addr add 198.18.77.1/24 dev tailscale0 && ip link set tailscale0 up && ip rule add fwmark 0x80000 lookup 52 priority 5210")
	by, err = look(nodes[1])
	requireLine(t, failed(t, err).Stderr, "checks failed")
	require.Equal(t, "fail", by["overlay range"].Status)
	require.Contains(t, by["overlay range"].What, "198.18.77.0/24 on tailscale0")
	require.Equal(t, "warn", by["other VPNs"].Status)
	require.Contains(t, by["rules"].What, "5210")
	h.Sh("ip link del tailscale0 && ip rule del priority 5210")

	// Before joining, as a newcomer reads it.
	out, err := h.Run(step(t), s.Bin.Agent, "doctor", "--state-dir", filepath.Join(t.TempDir(), "none"), "--hub", HubAddr)
	require.NoError(t, err)
	require.Regexp(t, `(?m)^warn +udp +whether UDP reaches the hub cannot be told yet$`, out)
	require.Regexp(t, `(?m)^ok +`+tcp+` +it answers$`, out)
	_, err = h.Run(step(t), s.Bin.Agent, "doctor", "--state-dir", filepath.Join(t.TempDir(), "none"), "--hub", HubAddr+":444")
	require.Contains(t, failed(t, err).Stdout, "connection refused")
}

type doctored struct{ Name, Status, What, Do string }
