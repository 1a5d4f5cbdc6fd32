package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// reached is what 'labtool stranger' prints of an address.
type reached struct {
	Addr      string   `json:"addr"`
	Connected bool     `json:"connected"`
	Hello     []string `json:"hello"`
	NATS      string   `json:"nats"`
	Debug     string   `json:"debug"`
}

// helloFile writes a hello for programs of any user.
func helloFile(t *testing.T, h any) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hello-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	b, err := json.Marshal(h)
	require.NoError(t, err)
	f := filepath.Join(dir, "hello.json")
	require.NoError(t, os.WriteFile(f, b, 0o644))
	return f
}

// strangerAt runs a program without any key and returns where it came.
func strangerAt(t *testing.T, s *System, h *lab.Host, u *lab.User, hello string, addrs []string) map[string]reached {
	t.Helper()
	out, err := h.RunAs(step(t), u, append([]string{s.Bin.Labtool, "stranger", hello}, addrs...)...)
	require.NoError(t, err)
	var l []reached
	require.NoError(t, json.Unmarshal([]byte(out), &l))
	m := map[string]reached{}
	for _, r := range l {
		m[r.Addr] = r
	}
	require.Len(t, m, len(addrs))
	return m
}

// statementOf is what a node signed of itself, as every peer of it has it.
func statementOf(t *testing.T, peer *Node, name string) protocol.SignedNodeStatement {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(peer.StateDir, "netmap.json"))
	require.NoError(t, err)
	var held struct {
		Netmap protocol.Netmap `json:"netmap"`
	}
	require.NoError(t, json.Unmarshal(b, &held))
	for _, p := range held.Netmap.Peers {
		if p.Name == name {
			return p.Statement
		}
	}
	require.Fail(t, "no statement of "+name+" in "+peer.Name+"'s netmap")
	return protocol.SignedNodeStatement{}
}

// Whatever runs on a node's host, or behind it, has the node's address and what the node says
// of itself: a user without rights, a container that the host masquerades, an announced pod, a
// LAN host, and root of another node. Nothing of it gets at what hubs and agents
// have in the overlay; and where no wall is in the way, nobody without the node's key is
// welcomed, leaves for it, or gets NATS or debug of it. Nor does a flood of hellos keep the agent out.
func TestNobodyElseIsTheNode(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	s, nodes := newSmall(t, 2)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	one, two := nodes[0], nodes[1]
	box := one.Host.PodNet("br-box", "172.30.0.1/24", "fd30::1/64").Pod("box", "172.30.0.2/24", "fd30::2/64")
	lan := s.Lab.Switch("lan")
	one.Host.Link("lan0", lan, "192.168.77.1/24")
	behind := s.Lab.Host("behind").Link("eth0", lan, "192.168.77.2/24").Default("192.168.77.1")
	one.Host.Nft(`table inet engine {
	chain p {
		type nat hook postrouting priority 100;
		ip saddr { 172.30.0.0/24, 192.168.77.0/24 } oifname != { "br-box", "lan0" } masquerade
		ip6 saddr fd30::/64 oifname != "br-box" masquerade
	}
}`)
	one.Host.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1") // as an engine does
	require.NoError(t, one.Host.Settle(step(t)))
	require.NoError(t, behind.Settle(step(t)))
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), one.Pod.Host, two.Pod.V4)) // netmaps are there
	before, err := s.Nodes(step(t))
	require.NoError(t, err)
	hello := helloFile(t, protocol.Hello{AgentVersion: "stranger", Statement: statementOf(t, two.Node, "n1")})

	// Something answers at a port of agents.
	for _, n := range nodes {
		p, err := n.Host.Start(lab.Program{Name: "listener", Args: []string{"busybox", "nc", "-ll", "-p", "4713", "-e", "/bin/cat"}})
		require.NoError(t, err)
		t.Cleanup(func() { p.Kill() })
	}
	hub4, hub6 := "198.18.0.1", "[fd63:7761:7900::1]"
	control := []string{hub4 + ":4710", hub6 + ":4710"}
	agents := []string{before["n1"].Overlay[0].String() + ":4713", before["n2"].Overlay[0].String() + ":4713"}
	ports := append([]string{hub4 + ":4711", hub4 + ":4712", hub6 + ":4712", hub4 + ":4222"}, append(control, agents...)...)
	if soak() { // every port near, at every address
		for _, host := range []string{hub4, hub6, before["n1"].Overlay[0].String(), "[" + before["n1"].Overlay[1].String() + "]", before["n2"].Overlay[0].String(), "[" + before["n2"].Overlay[1].String() + "]"} {
			for port := 4700; port < 4725; port++ {
				if at := fmt.Sprintf("%s:%d", host, port); !slices.Contains(ports, at) {
					ports = append(ports, at)
				}
			}
		}
	}
	// Only what root has is there to be had.
	require.NoError(t, lab.Wait(step(t), "the ports", func(context.Context) error {
		r := strangerAt(t, s, one.Host, nil, hello, ports)
		for _, a := range append([]string{hub4 + ":4711", hub4 + ":4712", hub6 + ":4712", agents[1]}, control...) {
			if !r[a].Connected {
				return fmt.Errorf("nothing answers at %s", a)
			}
		}
		return nil
	}))

	unproven := func(who string, r reached) {
		t.Helper()
		require.Equal(t, []string{protocol.ErrorUnproven}, r.Hello, "%s at %s", who, r.Addr)
		require.Equal(t, "refused", r.NATS, "%s at %s", who, r.Addr)
		require.Equal(t, "refused", r.Debug, "%s at %s", who, r.Addr)
	}
	tries := 0
	for _, c := range []struct {
		who  string
		host *lab.Host
		user *lab.User
		echo bool // a hub answers a node's address, not a pod's
	}{
		{"a user of the host", one.Host, lab.Nobody, true},
		{"a masqueraded container", box, nil, true},
		{"an announced pod", one.Pod.Host, nil, false},
		{"a LAN host", behind, nil, true},
		{"a user of another node", two.Host, lab.Nobody, true},
		{"a pod of another node", two.Pod.Host, nil, false},
	} {
		if c.echo {
			require.NoError(t, Ping(step(t), c.host, hub4), "%s: echo goes on", c.who)
		}
		for a, r := range strangerAt(t, s, c.host, c.user, hello, ports) {
			require.False(t, r.Connected, "%s reaches %s: %+v", c.who, a, r)
			tries++
		}
	}
	// No wall keeps root out, here that of the agent's own user. He lacks the key.
	for who, h := range map[string]*lab.Host{"root of the host": one.Host, "root of another node": two.Host} {
		r := strangerAt(t, s, h, nil, hello, ports)
		for _, a := range control {
			require.True(t, r[a].Connected, "%s at %s", who, a)
			unproven(who, r[a])
			tries++
		}
		bulk := r[hub4+":4711"]
		require.True(t, bulk.Connected, "%s at %s", who, bulk.Addr)
		require.Empty(t, bulk.Hello, "%s at %s", who, bulk.Addr)
	}
	// Without the wall: it is taken away until the agent gives up, and the container gets through.
	deleted := 0
	require.NoError(t, lab.Wait(within(t, 30*time.Second), "the wall to be down", func(context.Context) error {
		one.Host.Sh("nft delete table inet causeway 2>/dev/null || true")
		deleted++
		r := strangerAt(t, s, box, nil, hello, control)
		for _, a := range control {
			if len(r[a].Hello) == 0 {
				return fmt.Errorf("no answer at %s", a)
			}
			unproven("a container without the wall", r[a])
		}
		return nil
	}))

	after, err := s.Nodes(step(t))
	require.NoError(t, err)
	for _, n := range []string{"n1", "n2"} {
		require.Equal(t, before[n].Connected, after[n].Connected, "%s has the session that it had", n)
		require.Equal(t, before[n].Routes, after[n].Routes)
		require.NotContains(t, []string{api.NodeLeft, api.NodeRevoked, api.NodeQuarantined}, after[n].State)
	}
	t.Logf("%d tries at ports of hub and agents: no welcome, leave, NATS or debug; the wall was taken away %d times", tries, deleted)
	floodOfHellos(t, s, one.Node, hello)
	_, err = one.Agent(step(t), "repair")
	require.NoError(t, err)
	require.Contains(t, one.Host.Sh("nft list table inet causeway"), "wall-out")
}

// floodOfHellos restarts a node's agent while others on its host say hello all the time.
func floodOfHellos(t *testing.T, s *System, n *Node, hello string) {
	t.Helper()
	empty := helloFile(t, struct{}{})
	var floods []*lab.Process
	for i, file := range []string{empty, hello} {
		p, err := n.Host.Start(lab.Program{Name: fmt.Sprintf("hellos%d", i), Args: []string{s.Bin.Labtool, "hellos", file, "198.18.0.1:4710", "100", "5m"}})
		require.NoError(t, err)
		t.Cleanup(func() { p.Kill() })
		require.NoError(t, p.WaitOutput(step(t), "enough were answered"))
		floods = append(floods, p)
	}
	worst := 0.0
	for range repeat(3, 20) {
		require.NoError(t, n.Proc.Stop(step(t)))
		begin := time.Now()
		require.NoError(t, n.Start())
		require.NoError(t, lab.Wait(within(t, time.Minute), "the session", func(ctx context.Context) error {
			l, err := s.Nodes(ctx)
			if err == nil && !l[n.Name].Connected.After(begin) {
				err = fmt.Errorf("%s has none", n.Name)
			}
			return err
		}))
		worst = max(worst, time.Since(begin).Seconds())
	}
	var events []api.Event
	require.NoError(t, s.Ask(step(t), &events, "events"))
	refused := 0
	for _, e := range events {
		if strings.Contains(e.Kind, "refused") {
			refused++
		}
	}
	for _, p := range floods {
		require.True(t, p.Running(), p.Output())
		require.NoError(t, p.Stop(step(t)))
		var h struct{ Sent int }
		require.NoError(t, json.Unmarshal([]byte(lastLine(p.Output())), &h))
		require.Greater(t, h.Sent, 100)
	}
	t.Logf("measured session-under-a-flood-of-hellos %.3f s; %d events of refused sessions; the floods: %s %s", worst, refused, lastLine(floods[0].Output()), lastLine(floods[1].Output()))
	require.Less(t, worst, 10.0)
	require.Less(t, refused, 20, "a flood of hellos is no flood of events")
}
