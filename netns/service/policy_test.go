package service

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/netns/policy"
)

// The policy judges a flow to a service by its backend: what it closes is refused, and what it opens passes. A dead backend's
// connections are reset all the same, open or closed.
func TestWithPolicy(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	w.serve("a", "b")
	const here, node, atA, atB = 1, 2, 3, 4
	var c policy.Config
	c.Interface = "cw0"
	for _, m := range []struct {
		at    *[]policy.Member
		name  string
		class policy.Class
	}{{&c.Local, "pc", here}, {&c.Local, "lan", here}, {&c.Local, "n", node}, {&c.Remote, "a", atA}, {&c.Remote, "b", atB}} {
		for i := range 2 {
			p, err := backend(m.name, i == 1).Addr().Prefix(32 + 96*i)
			require.NoError(t, err)
			*m.at = append(*m.at, policy.Member{Prefix: p, Class: m.class})
		}
	}
	wall := policy.NewTable()
	allow := func(l ...policy.Allow) {
		t.Helper()
		c.Allows = l
		w.on(func() error { return wall.Set(c) })
	}
	var openA, openB []policy.Allow
	for _, from := range []policy.Class{here, node} {
		openA = append(openA, policy.Allow{From: from, To: atA, Proto: policy.Any, Rule: "to-a"})
		openB = append(openB, policy.Allow{From: from, To: atB, Proto: policy.Any, Rule: "to-b"})
	}
	clients := []string{"pc", "lan", "n"}
	allow(openB...)
	for _, to := range []string{"a", "b"} {
		w.set(services(64, to))
		for _, from := range clients {
			for _, v6 := range []bool{false, true} {
				for _, network := range []string{"tcp", "udp"} {
					start := time.Now()
					name, _, err := ask(w.host(from), network, at(v6, 80))
					if to == "b" {
						require.NoError(t, err, "%s by %s", from, network)
						require.Equal(t, "b", name)
						continue
					}
					require.True(t, refused(err) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EACCES), "%s by %s: %v", from, network, err)
					most := time.Second
					if from == "pc" { // by ICMP, since its bridge hands frames to netfilter; who is still in the call hears of the second SYN's alone
						most = 2500 * time.Millisecond
					}
					require.Less(t, time.Since(start), most, "%s by %s, IPv6 %v: %v", from, network, v6, err)
				}
			}
		}
	}
	// Established, then dead; and of one half the policy closed the way meanwhile, which tells nobody of those that wait.
	for _, closed := range []bool{false, true} {
		allow(append(openA, openB...)...)
		w.set(services(64, "a"))
		var flows []*flow
		for _, from := range clients {
			for _, v6 := range []bool{false, true} {
				for _, how := range []string{"talks", "idle"} {
					f := w.open(from, v6, how)
					flows = append(flows, f)
				}
			}
		}
		silent(w.a)
		for _, f := range flows {
			f.goes()
		}
		if closed {
			allow(openB...)
		}
		dead := time.Now()
		w.set(services(64, "b"), backends("a")...)
		w.on(func() error { _, err := w.table.Prod(t.Context(), backends("a")); return err })
		var worst time.Duration
		for _, f := range flows {
			worst = max(worst, f.reset(t, dead))
		}
		t.Logf("closed %v: the last of %d reset after %s", closed, len(flows), worst.Round(time.Millisecond))
		heal(w.a)
	}
}
