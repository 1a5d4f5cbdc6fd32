package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/debug"
	"causeway/netns/lab"
)

// dnsAddr is the lab's DNS server.
const dnsAddr = "203.0.113.53"

// named is a hub that agents know by name, and a DNS server that tells where it is.
type named struct {
	*System
	t      *testing.T
	node   *Node
	file   string // of the server's records
	resolv string
	dns    *lab.Host
	server *lab.Process
}

// newNamed joins n1 by the hub's name; its agent has not run yet.
func newNamed(t *testing.T) *named {
	t.Helper()
	l, hub, nodes := smallHosts(t, 1)
	x := &named{t: t, dns: l.Host("dns").Link("eth0", nodes[0].Inet, dnsAddr+"/24")}
	x.file, x.resolv = filepath.Join(x.dns.Dir(), "records"), filepath.Join(x.dns.Dir(), "resolv.conf")
	require.NoError(t, os.WriteFile(x.resolv, []byte("nameserver "+dnsAddr+"\noptions timeout:2 attempts:2\n"), 0o644))
	x.record(HubAddr)
	require.NoError(t, x.dns.Settle(step(t)))
	x.startDNS()
	s, err := NewSystem(step(t), l, binaries(t), hub, hubName)
	require.NoError(t, err)
	x.System = s
	require.NoError(t, nodes[0].Host.Settle(step(t)))
	require.NoError(t, s.CreateSite(step(t), "s1"))
	x.node, err = s.Prepare(NodeSpec{Name: "n1", Site: "s1", Host: nodes[0].Host})
	require.NoError(t, err)
	x.node.Resolv = x.resolv
	token, err := s.Token(step(t), "s1")
	require.NoError(t, err)
	_, err = x.node.Host.Run(step(t), "unshare", "-m", "sh", "-ec", `mount --bind "$0" /etc/resolv.conf; exec "$@"`, x.resolv,
		x.node.bin, "join", token, "--config", x.node.Config, "--state-dir", x.node.StateDir, "--name", "n1")
	require.NoError(t, err)
	return x
}

func (x *named) record(addr string) {
	require.NoError(x.t, os.WriteFile(x.file, fmt.Appendf(nil, "%s %s 5\n", hubName, addr), 0o644))
}

func (x *named) startDNS() {
	var err error
	x.server, err = x.dns.Start(lab.Program{Name: "dns", Dir: "/", Args: []string{x.Labtool(), "dns", dnsAddr + ":53", x.file}})
	require.NoError(x.t, err)
	require.NoError(x.t, x.server.WaitOutput(step(x.t), "serving"))
}

// Labtool is the path of labtool.
func (x *named) Labtool() string { return binaries(x.t).Labtool }

// status is what the agent says.
func (x *named) status(ctx context.Context) (s debug.Status, err error) {
	out, err := x.node.Agent(ctx, "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// connected waits for a session with the hub and returns how long that took, and what the agent
// says of its hub condition then.
func (x *named) connected(within time.Duration) (took time.Duration, note string) {
	x.t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	require.NoError(x.t, lab.Wait(ctx, "a session with the hub", func(ctx context.Context) error {
		s, err := x.status(ctx)
		if err != nil {
			return err
		}
		for _, c := range s.Conditions {
			if c.Name == "hub" && (!c.OK || s.Hub == 0) {
				return errors.New("not connected: " + c.Cause)
			} else if c.Name == "hub" {
				note = c.Note
			}
		}
		return nil
	}))
	return time.Since(start), note
}

// An agent that starts while DNS is down reaches its hub within 5 s, by UDP and, where that is
// blocked, by a stream: at its first start by the address of the join, later by those at which the
// hub answered. It says what it does, and how it joined. Not parallel: a time limit.
func TestStartWithoutDNS(t *testing.T) {
	x := newNamed(t)
	for _, c := range []struct{ name, nft, note string }{
		{"DNS refuses", "", "look up " + hubName},
		{"DNS says nothing", "ip daddr " + dnsAddr + " drop", "look up " + hubName},
		{"DNS says nothing, UDP is blocked", "ip daddr " + dnsAddr + " drop; udp dport 51820 drop", "reached over a stream"},
	} {
		x.server.Kill()
		x.node.Host.Sh("nft 'add table ip down; flush table ip down; add chain ip down out { type filter hook output priority 0; }'")
		for _, r := range strings.Split(c.nft, "; ") {
			if r != "" {
				x.node.Host.Sh("nft add rule ip down out " + r)
			}
		}
		require.NoError(t, x.node.Start())
		took, _ := x.connected(20 * time.Second)
		t.Logf("%s: a session with the hub %.1f s after the agent's start", c.name, took.Seconds())
		require.Less(t, took, 5*time.Second, c.name)
		require.NoError(t, Wait(t, func() error {
			_, note := x.connected(5 * time.Second)
			if !strings.Contains(note, c.note) {
				return errors.New(note)
			}
			return nil
		}))
		require.NoError(t, x.node.Proc.Stop(step(t)))
	}
	x.node.Host.Sh("nft delete table ip down")
	x.startDNS()
	require.NoError(t, x.node.Start())
	x.connected(10 * time.Second)
	out, err := x.node.Agent(step(t), "status")
	require.NoError(t, err)
	require.Regexp(t, `(?m)^joined    \S+ at `+hubName+`:443 by IPv4 over eth0, where it was `+HubAddr+`$`, out)
}

// The hub's record moves, its old address is dead, and nothing but UDP passes: the agent is at the
// new address within 30 s. Then UDP is blocked and TCP passes: over a stream, and back.
func TestHubMoves(t *testing.T) {
	t.Parallel()
	const second = "203.0.113.2"
	x := newNamed(t)
	require.NoError(t, x.node.Start())
	x.connected(10 * time.Second)
	x.node.Host.Sh("nft 'add table ip way; add chain ip way out { type filter hook output priority 0; }; add rule ip way out tcp dport 443 drop'")
	x.Hub.Host.Sh("ip addr del " + HubAddr + "/24 dev eth0; ip addr add " + second + "/24 dev eth0") // in this order: the second of a network goes with the first
	gone := time.Now()
	require.NoError(t, Wait(t, func() error {
		s, err := x.status(step(t))
		for _, c := range s.Conditions {
			if c.Name == "hub" && c.OK {
				err = errors.New("it has not noticed")
			}
		}
		return err
	}))
	x.record(second) // when the old one is known to be dead, and was asked for already
	moved := time.Now()
	x.connected(60 * time.Second)
	took := time.Since(moved)
	t.Logf("connected %.1f s after the record moved, %.1f s after the old address was gone", took.Seconds(), time.Since(gone).Seconds())
	require.Less(t, took, 30*time.Second)

	x.node.Host.Sh("nft 'flush chain ip way out; add rule ip way out udp dport 51820 drop'")
	require.NoError(t, Wait(t, func() error {
		_, note := x.connected(10 * time.Second)
		if !strings.Contains(note, "over a stream") {
			return errors.New(note)
		}
		return nil
	}))
	x.node.Host.Sh("nft delete table ip way")
	require.NoError(t, Wait(t, func() error {
		_, note := x.connected(10 * time.Second)
		if note != "" {
			return errors.New(note)
		}
		return nil
	}))
}
