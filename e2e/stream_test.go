package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// noUDP lets no UDP out of the sites.
func noUDP(nodes ...*siteNode) {
	for _, n := range nodes {
		n.Router.Block(`oifname "wan" meta l4proto udp`)
	}
}

// startTogether stops the agents and starts them again in the same moment. It
// returns the time to the first ping between pods.
func startTogether(t *testing.T, a, b *siteNode) time.Duration {
	t.Helper()
	for _, n := range []*siteNode{a, b} {
		require.NoError(t, n.Proc.Stop(step(t)))
	}
	start := time.Now()
	require.NoError(t, lab.All(a.Start, b.Start))
	require.NoError(t, lab.Wait(step(t), "the first ping", func(ctx context.Context) error {
		_, err := a.Pod.Run(ctx, "ping", "-nqc1", "-W0.2", b.Pod.V4)
		return err
	}))
	return time.Since(start)
}

// hubNote is what a node says of its hub condition.
func hubNote(t *testing.T, n *Node) (note string) {
	t.Helper()
	out, err := n.Agent(step(t), "health", "-o", "json")
	require.NoError(t, err)
	var h struct{ Conditions []protocol.Condition }
	require.NoError(t, json.Unmarshal([]byte(out), &h))
	for _, c := range h.Conditions {
		if c.Name == "hub" {
			require.True(t, c.OK, c.Cause)
			return c.Note
		}
	}
	t.Fatal("no hub condition")
	return ""
}

// Not parallel: a time limit.
func TestStreamWhereUDPIsBlocked(t *testing.T) {
	s, n, _ := newSites(t, 2)
	a, b := n[0], n[1]
	noUDP(a, b)
	joinSites(t, s, n, nil)
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4))
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathStream))
	require.NoError(t, s.WaitPath(step(t), "n2", "n1", protocol.PathStream))
	require.Contains(t, hubNote(t, a.Node), "over a stream")

	d := startTogether(t, a, b)
	t.Logf("from the agents' start to the first ping: %.2f s, both over streams", d.Seconds())
	require.Less(t, d, 5*time.Second)
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathStream))

	_, err := s.Serve(step(t), b.Pod.Host)
	require.NoError(t, err)
	got, err := s.Send(step(t), "tcp", a.Pod.Host, b.Pod.V4, 100<<20)
	require.NoError(t, err)
	t.Logf("TCP over two streams: %.0f Mbit/s", got.Mbits)

	// The other side gets UDP to the hub, and only that.
	b.Router.Unblock().Block(`oifname "wan" meta l4proto udp ip daddr != ` + HubAddr)
	require.NoError(t, s.WaitPath(step(t), "n2", "n1", protocol.PathRelay))
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathStream))
	require.NoError(t, PingOnce(step(t), a.Pod.Host, b.Pod.V4))
	require.NoError(t, PingOnce(step(t), b.Pod.Host, a.Pod.V6))
	_, err = s.Send(step(t), "tcp", a.Pod.Host, b.Pod.V4, 20<<20)
	require.NoError(t, err)
	require.NoError(t, lab.Wait(step(t), "the condition to say nothing of a stream", func(context.Context) error {
		if note := hubNote(t, b.Node); note != "" {
			return errors.New(note)
		}
		return nil
	}))
}

// Not parallel: a time limit.
func TestUDPBlockedInMidFlow(t *testing.T) {
	s, n, _ := newSites(t, 2)
	a, b := n[0], n[1]
	joinSites(t, s, n, nil)
	_, err := s.Serve(step(t), b.Pod.Host)
	require.NoError(t, err)
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4))
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathDirect))
	hold, err := s.Hold(step(t), a.Pod.Host, b.Pod.V4)
	require.NoError(t, err)
	noUDP(a)
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathStream))
	require.NoError(t, s.WaitPath(step(t), "n2", "n1", protocol.PathRelay))
	require.NoError(t, PingOnce(step(t), b.Pod.Host, a.Pod.V4))
	start := time.Now()
	a.Router.Unblock()
	require.NoError(t, s.WaitPath(within(t, 30*time.Second), "n1", "n2", protocol.PathDirect))
	require.NoError(t, s.WaitPath(within(t, 30*time.Second), "n2", "n1", protocol.PathDirect))
	t.Logf("back on UDP after %.1f s", time.Since(start).Seconds())
	_, gap, err := hold.End(step(t))
	require.NoError(t, err)
	t.Logf("the connection stood still for %.2f s at most", gap)
	require.Less(t, gap, 3.0)
}
