package e2e

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// A hub whose disk is set back, as by a snapshot of its virtual machine, gives no number a second time:
// its agents know that its state once went further. Both sides say what happened, and the command
// that the hub names mends it.
func TestHubIsSetBack(t *testing.T) {
	t.Parallel()
	lab.Counts(t)
	s, nodes := newSmall(t, 3)
	joinSmall(t, s, nodes, 1)
	require.NoError(t, s.WaitReady(step(t), "n1"))
	var tokens []string
	for range 3 {
		token, err := s.Token(step(t), "s3")
		require.NoError(t, err)
		tokens = append(tokens, token)
	}
	stop := func() { require.NoError(t, s.Hub.Proc.Stop(step(t))) }
	stop()
	snapshot := s.Hub.Dir + ".snapshot"
	s.Hub.Host.Sh("cp -a " + s.Hub.Dir + " " + snapshot)
	require.NoError(t, s.StartHub(step(t)))
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	all, err := s.Nodes(step(t))
	require.NoError(t, err)
	given := all["n2"].Number

	stop()
	s.Hub.Host.Sh("rm -rf " + s.Hub.Dir + " && cp -a " + snapshot + " " + s.Hub.Dir)
	require.NoError(t, s.StartHub(step(t)))
	n3, err := s.Prepare(NodeSpec{Name: "n3", Site: "s3", Host: nodes[2].Host})
	require.NoError(t, err)
	_, err = n3.Redeem(step(t), tokens[0]) // at once: agents have not come back yet
	require.Contains(t, failed(t, err).Stderr, "the hub's state was set back to an earlier time")
	require.NotContains(t, failed(t, err).Stderr, "tried", "what takes an operator is not tried again")
	_, err = s.CLI(step(t), "site", "create", "later")
	require.Contains(t, failed(t, err).Stderr, "the state log of this hub was set back")
	_, err = s.CLI(step(t), "doctor")
	require.Contains(t, failed(t, err).Stdout, "the state log of this hub was set back")
	require.NoError(t, lab.Wait(step(t), "n2 to say what happened", func(ctx context.Context) error {
		out, _ := s.Node("n2").Agent(ctx, "health", "-o", "json")
		if !strings.Contains(out, "the hub's state was set back") {
			return errors.New(out)
		}
		return nil
	}))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4), "what agents hold goes on")

	// It knows over a restart, too, and a revocation is taken.
	stop()
	require.NoError(t, s.StartHub(step(t)))
	_, err = s.CLI(step(t), "site", "create", "later")
	require.Contains(t, failed(t, err).Stderr, "the state log of this hub was set back")
	var shown []api.Token
	require.NoError(t, s.Ask(step(t), &shown, "token", "list"))
	open := slices.IndexFunc(shown, func(x api.Token) bool { return x.State == "open" })
	require.GreaterOrEqual(t, open, 0, shown)
	_, err = s.CLI(step(t), "token", "revoke", shown[open].ID)
	require.NoError(t, err, "what shuts somebody out goes on")
	stop()
	repair := []string{s.Bin.Hub, "repair", "--data-dir", s.Hub.Dir}
	_, err = s.Hub.Host.RunAs(step(t), lab.Nobody, repair...)
	r := failed(t, err)
	require.Contains(t, r.Stdout, "set back: the log ended at transaction ")
	require.Contains(t, r.Stderr, "nothing was changed: run it again with --yes")
	out, err := s.Hub.Host.RunAs(step(t), lab.Nobody, slices.Concat(repair, []string{"--yes", "--skip-numbers", "10"})...)
	require.NoError(t, err)
	require.Contains(t, out, "repaired: netmap epoch 2")
	require.NoError(t, s.StartHub(step(t)))
	require.NoError(t, s.WaitReady(within(t, stepTimeout), "n1"))
	_, err = s.Join(step(t), NodeSpec{Name: "n4", Site: "s3", Host: nodes[2].Host})
	require.NoError(t, err)
	require.NoError(t, s.WaitReady(step(t), "n4"))
	all, err = s.Nodes(step(t))
	require.NoError(t, err)
	require.Greater(t, all["n4"].Number, given, "a number is given once")
	require.NoError(t, lab.Wait(step(t), "n2 to say that it has to join again", func(ctx context.Context) error {
		out, _ := s.Node("n2").Agent(ctx, "health", "-o", "json")
		if !strings.Contains(out, "it has to join again") {
			return errors.New(out)
		}
		return nil
	}))
}
