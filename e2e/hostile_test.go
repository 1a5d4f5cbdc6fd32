package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// A stranger in the public network sends hub and agents what it recorded of
// theirs, changed in many ways, and garbage: nobody answers, nothing moves, and
// every datagram is counted by its reason.
func TestStrangerIsNotAnswered(t *testing.T) {
	t.Parallel()
	s, n, inet := newSitesOf(t, HubAddr, siteKind{Public: true}, siteKind{Public: true})
	stranger := s.Lab.Host("stranger").Link("eth0", inet, "203.0.113.66/24")
	require.NoError(t, stranger.Settle(step(t)))
	recorded, err := s.Hub.Host.Capture("eth0", "udp port 51820")
	require.NoError(t, err)
	direct, err := n[0].Host.Capture("eth0", "udp and not port 51820")
	require.NoError(t, err)
	joinSites(t, s, n, nil)
	_, err = s.Serve(step(t), n[1].Pod.Host)
	require.NoError(t, err)
	f := startTraffic(t, s, n[0].Pod, n[1].Pod)
	waitPaths(t, stepTimeout, n[0].Node, n[1].Node, protocol.PathDirect)
	_, err = s.Send(step(t), "tcp", n[0].Pod.Host, n[1].Pod.V4, 100_000)
	require.NoError(t, err)
	require.NoError(t, recorded.Stop())
	require.NoError(t, direct.Stop())

	var before, after api.Status
	require.NoError(t, s.Ask(step(t), &before, "status"))
	log := watchPath(t, n[0].Node, n[1].Name)
	seen, err := stranger.Capture("eth0", "udp or icmp")
	require.NoError(t, err)
	targets := []string{HubAddr + ":51820"}
	for _, x := range n {
		targets = append(targets, fmt.Sprintf("%s:%d", x.LAN, underlayPort(t, x)))
	}
	for _, file := range []string{recorded.File, direct.File} {
		var r struct{ Recorded, Sent, Answers int }
		out, err := stranger.Run(step(t), append([]string{s.Bin.Labtool, "attack", file}, targets...)...)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		t.Logf("%s", out)
		require.Greater(t, r.Recorded, 20)
		require.Zero(t, r.Answers)
	}
	require.NoError(t, seen.Stop())
	out, err := stranger.Run(step(t), "tcpdump", "-nr", seen.File, "dst host 203.0.113.66")
	require.NoError(t, err)
	require.Empty(t, out, "nothing comes back to the stranger")

	require.NoError(t, s.Ask(step(t), &after, "status"))
	reasons := map[string]uint64{}
	for reason, count := range after.Relay.Dropped {
		if d := count - before.Relay.Dropped[reason]; d > 0 {
			reasons[reason] = d
		}
	}
	t.Logf("dropped by the hub: %v", reasons)
	require.Greater(t, len(reasons), 3, "by reason: %v", maps.Clone(reasons))
	nodes, err := s.Nodes(step(t))
	require.NoError(t, err)
	text, err := json.Marshal(nodes)
	require.NoError(t, err)
	require.NotContains(t, string(text), "203.0.113.66", "no binding")
	for _, x := range n {
		var l json.RawMessage
		require.NoError(t, x.ask(step(t), "/v1/netmap", &l))
		require.NotContains(t, string(l), "203.0.113.66", "no candidate")
	}
	require.Len(t, log.end(), 1, "no change of path")
	t.Logf("longest gap %.2f s", f.end(t))
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
}
