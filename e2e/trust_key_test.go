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

	"github.com/stretchr/testify/require"

	"causeway/agent/identity"
	"causeway/netns/lab"
	"causeway/protocol"
)

// The hub's netmap has another identity for a node than the one that an agent
// pinned. Instead of the hub's word the pin is changed, which is the same to the
// agent: it refuses the node, both ways, and whoever looks at the hub sees it.
func TestSubstitutedKey(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	a, b := nodes[0], nodes[1]
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4))
	file := filepath.Join(a.StateDir, "pins.json")
	pins := map[protocol.NodeNumber]identity.Pin{}
	require.NoError(t, lab.Wait(step(t), "the pin", func(context.Context) error {
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, &pins)
		}
		delete(pins, 0) // the file's checksum
		if err == nil && len(pins) != 1 {
			err = fmt.Errorf("%d pins", len(pins))
		}
		return err
	}))
	a.Proc.Kill()
	for n, p := range pins {
		other, err := protocol.NewIdentityPrivateKey()
		require.NoError(t, err)
		p.IdentityKey = other.Public()
		pins[n] = p
	}
	text, err := json.Marshal(pins)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, text, 0o600))
	require.NoError(t, a.Start())
	const why = "its identity key is not the one that was seen first for this node"
	for _, args := range [][]string{{"node", "show", "n1"}, {"events"}} {
		require.NoError(t, lab.Wait(step(t), "the incident", func(ctx context.Context) error {
			out, err := s.CLI(ctx, args...)
			if err == nil && !strings.Contains(out, why) {
				err = errors.New(out)
			}
			return err
		}))
	}
	require.NoError(t, lab.Wait(step(t), "the state, which is not shown at once", func(ctx context.Context) error {
		out, err := s.CLI(ctx, "node", "show", "n1")
		if err == nil && !strings.Contains(out, "degraded") {
			err = errors.New(out)
		}
		return err
	}))
	out, err := a.Agent(step(t), "health")
	if err != nil {
		out = failed(t, err).Stdout
	}
	require.Contains(t, out, why)
	require.Error(t, PingOnce(step(t), a.Pod.Host, b.Pod.V4))
	require.Error(t, PingOnce(step(t), b.Pod.Host, a.Pod.V4))
}
