package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/identity"
	"causeway/protocol"
)

var counted = regexp.MustCompile(`packets (\d+)`)

// Two nodes say that they are reached at a host that is none of the cluster, at many ports of
// it, and at loopback and link-local addresses; the hub tells all others. A node with traffic for
// both sends that host few probes.
func TestInventedCandidates(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 3)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	target := s.Lab.Host("target").Link("eth0", nodes[0].Inet, "203.0.113.66/24")
	require.NoError(t, target.Settle(step(t)))
	_, err := target.Run(step(t), "nft", "add table inet count; add chain inet count in { type filter hook input priority 0; }; add rule inet count in meta l4proto udp counter")
	require.NoError(t, err)
	packets := func() int {
		out, err := target.Run(step(t), "nft", "list", "chain", "inet", "count", "in")
		require.NoError(t, err)
		n, err := strconv.Atoi(counted.FindStringSubmatch(out)[1])
		require.NoError(t, err)
		return n
	}
	for _, n := range nodes[1:] {
		require.NoError(t, Ping(step(t), nodes[0].Pod.Host, n.Pod.V4))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	defer stop()
	for i, n := range nodes[1:] {
		var status protocol.Status
		for j := range 14 {
			status.Candidates = append(status.Candidates, netip.MustParseAddrPort(fmt.Sprintf("203.0.113.66:%d", 1000+100*i+j)))
		}
		status.Candidates = append(status.Candidates, netip.MustParseAddrPort("127.0.0.1:53"), netip.MustParseAddrPort("169.254.1.1:53"))
		id, err := identity.Peek(n.StateDir)
		require.NoError(t, err)
		wg.Go(func() {
			a := &attacker{t: t, n: n.Node}
			for ctx.Err() == nil { // its agent takes the session back
				if a.hello(id, nil) == nil {
					a.send(protocol.KindStatus, status)
				}
				select {
				case <-ctx.Done():
				case <-time.After(2 * time.Second):
				}
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				nodes[0].Pod.Host.Run(ctx, "ping", "-nq", "-i0.2", "-c10", "-W1", n.Pod.V4)
			}
		})
	}
	require.NoError(t, Wait(t, func() error {
		if packets() == 0 {
			return fmt.Errorf("no probe yet")
		}
		return nil
	}))
	const window = 12
	begin := time.Now()
	select {
	case <-time.After(window * time.Second): // what is measured: packets in that time
	case <-t.Context().Done():
	}
	got, took := packets(), time.Since(begin)
	stop()
	t.Logf("%d probes at a host that is none of the cluster's in %.1f s", got, took.Seconds())
	// Two nodes probe for each of two peers: 32 at once and one a second, each.
	require.LessOrEqual(t, got, 3*(32+window+3))
}
