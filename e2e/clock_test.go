package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/debug"
	"causeway/netns/lab"
	"causeway/protocol"
)

// conditionIs waits until a node's condition holds or not, with a text in cause or note.
func conditionIs(t *testing.T, n *Node, name string, ok bool, text string) protocol.Condition {
	t.Helper()
	var found protocol.Condition
	require.NoError(t, lab.Wait(step(t), "condition "+name, func(ctx context.Context) error {
		var h debug.Health
		if err := n.ask(ctx, "/v1/health", &h); err != nil {
			return err
		}
		for _, c := range h.Conditions {
			if c.Name != name {
				continue
			}
			if found = c; c.OK != ok || !strings.Contains(c.Cause+c.Note, text) {
				return fmt.Errorf("%+v", c)
			}
			return nil
		}
		return errors.New("no such condition")
	}))
	return found
}

// With the hub away somebody sets a host's clock: ten days ahead cuts off no pod, and ten years
// back makes nothing young again: what goes by counts, as the kernel counts it.
func TestClockIsSet(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	a, b := nodes[0], nodes[1]
	_, err := s.Serve(step(t), b.Pod.Host)
	require.NoError(t, err)
	_, err = s.Send(step(t), "tcp", a.Pod.Host, b.Pod.V4, 1<<20) // idle peers are not probed
	require.NoError(t, err)
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathDirect))
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	conditionIs(t, a.Node, "control", false, "")

	clock, err := setClock(a.Proc.PID(), 10*24*time.Hour)
	require.NoError(t, err)
	conditionIs(t, a.Node, "clock", false, "set ahead by 240h")
	conditionIs(t, a.Node, "netmap", true, "")
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4))
	require.NoError(t, clock.restore())
	conditionIs(t, a.Node, "clock", true, "")

	// Eight days later, by the kernel's count: the wall clock has not moved.
	require.NoError(t, a.Proc.Stop(step(t)))
	a.Wrap = []string{"unshare", "--time", "--boottime", "691200", "--fork", "--kill-child"}
	require.NoError(t, a.Start())
	c := conditionIs(t, a.Node, "netmap", false, "longer than the netmap's max_age")
	t.Log(c.Cause)
	require.Error(t, PingOnce(step(t), a.Pod.Host, b.Pod.V4))
	conditionIs(t, a.Node, "clock", false, "set back by 19")
	require.Contains(t, a.Host.Sh("ip route show table 51806"), "10.2.1.0/24 dev cw0", "closed")
	require.NoError(t, s.StartHub(step(t)))
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4), "a hub makes it good again")
	conditionIs(t, a.Node, "clock", true, "")
}
