package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// Of a healthy pair nothing is found; then a stopped agent and a route that nobody
// approved are both named, the worse first.
func TestDoctor(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 3)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathDirect))
	var out string
	// The hub hears of a new path a little later.
	require.NoError(t, lab.Wait(step(t), "the doctor to find nothing", func(ctx context.Context) (err error) {
		out, err = s.CLI(ctx, "doctor")
		if err == nil && out != "Nothing is wrong: the hub, nodes (2) and pairs of them (1)\nNo policy is declared: every node may talk to every other\n" {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	}))

	_, err := s.Join(step(t), NodeSpec{Name: "n3", Site: "s3", Host: nodes[2].Host, TokenRoutes: PodRoutes(3, 1), Routes: []string{"192.168.93.0/24"}})
	require.NoError(t, err)
	require.NoError(t, s.WaitReady(step(t), "n3"))
	require.NoError(t, nodes[0].Proc.Stop(step(t)))
	want := []string{"critical n1 node-unreachable", "warning n3 route-not-approved"}
	c, err := api.NewClient(api.ClientConfig{Socket: s.Hub.Socket})
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, lab.Wait(step(t), "the doctor to find both", func(ctx context.Context) error {
		k, err := c.Doctor(ctx)
		var got []string
		for _, f := range k.Findings {
			if f.Severity != api.SeverityInfo {
				got = append(got, f.Severity+" "+f.Where+" "+f.Check)
			}
		}
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("it finds %q", got)
		}
		return err
	}))
	_, err = s.CLI(step(t), "doctor")
	r := failed(t, err)
	require.Equal(t, 4, exitCode(t, r), r)
	require.Empty(t, r.Stderr)
	require.Regexp(t, `(?s)^critical  n1: node-unreachable, since .*on n1: systemctl start causeway-agent; journalctl -u causeway-agent\n.*causeway route approve n3 192\.168\.93\.0/24`, r.Stdout)
	t.Logf("it says\n%s", r.Stdout)
}
