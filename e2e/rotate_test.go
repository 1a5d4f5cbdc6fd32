package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// A node's key is rotated by command, from the hub and on the host, while pods of
// two sites have a transfer under way: it stands still for no longer than a
// handshake may take.
func TestNodeKeyRotated(t *testing.T) {
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	_, err := s.Serve(step(t), nodes[1].Pod.Host)
	require.NoError(t, err)
	before, err := s.Nodes(step(t))
	require.NoError(t, err)
	f := startTraffic(t, s, nodes[0].Pod, nodes[1].Pod)
	steady(t, time.Second)
	start := time.Now()
	_, err = s.CLI(step(t), "node", "rotate-key", "n1", "--wait")
	require.NoError(t, err)
	byHub := time.Since(start)
	out, err := nodes[1].Agent(step(t), "rotate-key", "--overlap", "0")
	require.NoError(t, err)
	require.Contains(t, out, "epoch 2")
	steady(t, 2*time.Second)
	after, err := s.Nodes(step(t))
	require.NoError(t, err)
	for _, n := range []string{"n1", "n2"} {
		require.NotEqual(t, before[n].WireGuardKey, after[n].WireGuardKey)
		require.Equal(t, uint32(2), after[n].KeyEpoch)
	}
	require.NoError(t, Ping(step(t), nodes[1].Pod.Host, nodes[0].Pod.V6))
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	gap := f.end(t)
	t.Logf("n1 rotated in %.0f ms; the connection stood still for %.2f s at most", byHub.Seconds()*1e3, gap)
	require.Less(t, gap, 1.0)
	for _, n := range nodes {
		st, err := os.Stat(filepath.Join(n.StateDir, "identity.json"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	}
	b, err := os.ReadFile(filepath.Join(nodes[1].StateDir, "identity.json"))
	require.NoError(t, err)
	require.NotContains(t, string(b), `"old"`, "without an overlap the old key is gone")

	// Killed anywhere in a rotation, agent or hub, the node works and ends with
	// the key that the hub has.
	for i := range rounds(20) {
		epoch := uint32(3 + i)
		require.NoError(t, waitEpoch(t, s, "n1", epoch-1))
		steady(t, time.Second) // a key is that old before another is made
		_, err := s.CLI(step(t), "node", "rotate-key", "n1")
		require.NoError(t, err)
		time.Sleep(rand.N(250 * time.Millisecond)) // the moment is what is tried
		if i%2 == 0 {
			nodes[0].Proc.Kill()
			require.NoError(t, nodes[0].Start())
		} else {
			s.Hub.Proc.Kill()
			require.NoError(t, s.StartHub(step(t)))
		}
		require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
		require.NoError(t, waitEpoch(t, s, "n1", epoch))
		require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
		require.NoError(t, Ping(step(t), nodes[1].Pod.Host, nodes[0].Pod.V4))
	}
	out, err = s.CLI(step(t), "audit")
	require.NoError(t, err)
	require.GreaterOrEqual(t, strings.Count(out, "stated its key, epoch"), 3)
}

// waitEpoch waits until the hub has a node's key of this epoch.
func waitEpoch(t *testing.T, s *System, name string, epoch uint32) error {
	t.Helper()
	return lab.Wait(step(t), "the new key of "+name, func(ctx context.Context) error {
		ns, err := s.Nodes(ctx)
		if err == nil && ns[name].KeyEpoch < epoch {
			err = fmt.Errorf("key epoch %d", ns[name].KeyEpoch)
		}
		return err
	})
}

// The hub's key is rotated, then its public address changes, while pods have
// traffic and one agent is away: the list that the cluster key signs leads all
// of them on, with the old key and address good for a while.
func TestHubKeyAndAddressChange(t *testing.T) {
	s, nodes := newSmall(t, 3)
	for i := 1; i <= 3; i++ {
		joinSmall(t, s, nodes, i)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	_, err := s.Serve(step(t), nodes[1].Pod.Host)
	require.NoError(t, err)
	f := startTraffic(t, s, nodes[0].Pod, nodes[1].Pod)
	token, err := s.Token(step(t), "s1")
	require.NoError(t, err)
	rotate := func() (string, error) {
		return s.Hub.Host.RunAs(step(t), lab.Nobody, s.Bin.Hub, "rotate-key", "--data-dir", s.Hub.Dir)
	}
	_, err = rotate()
	requireOneLine(t, err, "another causeway-hub uses")

	nodes[2].Proc.Kill() // away during the change
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	first, err := rotate()
	require.NoError(t, err)
	out, err := rotate() // as by somebody who does not know that it was done
	require.NoError(t, err)
	require.Contains(t, out, "new hub key")
	require.NotEqual(t, first, out)
	for _, name := range []string{"hub.key", "hub.key.old"} {
		st, err := os.Stat(filepath.Join(s.Hub.Dir, name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	}
	require.NoError(t, s.StartHub(step(t)))
	start := time.Now()
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	took := time.Since(start)
	require.NoError(t, nodes[2].Start())
	require.NoError(t, s.WaitReady(step(t), "n3"))
	require.NoError(t, Ping(step(t), nodes[2].Pod.Host, nodes[0].Pod.V4))
	gap := f.end(t)
	t.Logf("hub key rotated: agents were back %.1f s after the hub's start, the connection stood still for %.2f s at most", took.Seconds(), gap)
	require.Less(t, gap, 1.0, "traffic between nodes needs no hub")
	again, err := s.Prepare(NodeSpec{Name: "n4", Site: "s1", Host: nodes[0].Host})
	require.NoError(t, err)
	_, err = again.Redeem(step(t), token)
	require.NoError(t, err, "a token made before is good: it pins the cluster key")

	// Another public address, with the old one still there for a while.
	const other = "203.0.113.2"
	f = startTraffic(t, s, nodes[0].Pod, nodes[1].Pod)
	s.Hub.Host.Sh("ip addr add " + other + "/24 dev eth0")
	nodes[2].Proc.Kill()
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	s.Hub.Public = other
	require.NoError(t, s.StartHub(step(t)))
	atOther := func(n *smallNode) {
		t.Helper()
		require.NoError(t, lab.Wait(step(t), "the new address at "+n.Name, func(ctx context.Context) error {
			b, err := os.ReadFile(filepath.Join(n.StateDir, "identity.json"))
			if err != nil {
				return err
			}
			var id struct {
				HubList protocol.SignedHubList `json:"hub_list"`
			}
			if err := json.Unmarshal(b, &id); err != nil {
				return err
			}
			if !strings.Contains(string(id.HubList.Payload), other+":") {
				return fmt.Errorf("it has %s", id.HubList.Payload)
			}
			return nil
		}))
	}
	atOther(nodes[0])
	atOther(nodes[1])
	require.NoError(t, nodes[2].Start())
	atOther(nodes[2])
	s.Hub.Host.Sh("ip addr del " + HubAddr + "/24 dev eth0; ip addr replace " + other + "/24 dev eth0")
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	t.Logf("public address changed: the connection stood still for %.2f s at most", f.end(t))
	require.NoError(t, Ping(step(t), nodes[2].Pod.Host, nodes[1].Pod.V6))
}
