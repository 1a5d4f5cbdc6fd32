package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// The hub is gone and both hosts start anew, with nothing of the tunnel left on
// them: the netmaps that the agents kept are enough to reach each other directly.
func TestAgentsStartWithoutHub(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	startWithoutHub(t, s, nodes[0], nodes[1])
}

// The same where each is behind a router that lets nothing in but answers: both
// have the ports of before, and ask each other at once.
func TestAgentsStartWithoutHubBehindNAT(t *testing.T) {
	t.Parallel()
	s, nodes, _ := newSites(t, 2)
	joinSites(t, s, nodes, nil)
	startWithoutHub(t, s, nodes[0].smallNode, nodes[1].smallNode)
}

func startWithoutHub(t *testing.T, s *System, a, b *smallNode) {
	t.Helper()
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4))
	hold, err := s.Serve(step(t), b.Pod.Host)
	require.NoError(t, err)
	_, err = s.Send(step(t), "tcp", a.Pod.Host, b.Pod.V4, 1<<20) // idle peers are not probed
	require.NoError(t, err)
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathDirect))
	require.NoError(t, s.WaitPath(step(t), "n2", "n1", protocol.PathDirect))
	s.Hub.Proc.Kill()
	for _, n := range []*smallNode{a, b} {
		n.Proc.Kill()
		n.Host.Sh("ip link del cw0; ip route flush table 51806 || :; ip -6 route flush table 51806 || :; nft flush ruleset")
	}
	require.Error(t, PingOnce(step(t), a.Pod.Host, b.Pod.V4))
	for _, n := range []*smallNode{a, b} {
		require.NoError(t, n.Start())
	}
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4))
	require.NoError(t, Ping(step(t), b.Pod.Host, a.Pod.V6))
	_, err = s.Send(step(t), "tcp", a.Pod.Host, b.Pod.V4, 1<<20)
	require.NoError(t, err)
	require.True(t, hold.Running())
}
