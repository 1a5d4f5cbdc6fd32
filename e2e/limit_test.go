package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/debug"
	"causeway/agent/items"
	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// limitLive is how long a limit that was declared, changed or deleted may take to hold.
const limitLive = 2.0

// A limit of what goes between two sites holds at once, and no longer than it is declared;
// it says how much it dropped, nodes say that they are held, and a mistake in its file changes nothing.
func TestRelayLimit(t *testing.T) {
	t.Parallel()
	symmetric := siteKind{NAT: lab.Symmetric}
	p := newPair(t, symmetric, symmetric)
	p.start(protocol.PathRelay).end(t)
	const offered = 1000 // datagrams in a second, for half a second
	through := func() (share float64) {
		t.Helper()
		out, err := p.a.Pod.Run(step(t), p.Bin.Labtool, "rate", p.b.Pod.V4, "-pps", fmt.Sprint(offered), "-size", "200", "-for", "500ms")
		require.NoError(t, err)
		var r struct{ Sent, Received int64 }
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		return float64(r.Received) / float64(r.Sent)
	}
	apply := func(verb, text string) error {
		f := filepath.Join(t.TempDir(), "limit.yaml")
		require.NoError(t, os.WriteFile(f, []byte(text), 0o600))
		_, err := p.CLI(step(t), verb, "-f", f)
		return err
	}
	live := func(what string, holds func(share float64) bool) {
		t.Helper()
		begin := time.Now()
		require.NoError(t, Wait(t, func() error {
			if share := through(); !holds(share) {
				return fmt.Errorf("%.2f of the datagrams arrive", share)
			}
			return nil
		}), what)
		// The last half of a second, at least, was measured under the new limit.
		measured(t, "limit "+what, max(0, time.Since(begin).Seconds()-0.5), limitLive)
	}
	// A busy machine loses some by itself.
	free := func(share float64) bool { return share > 0.8 }
	held := func(share float64) bool { return share < 0.5 }
	require.NoError(t, Wait(t, func() error {
		if share := through(); !free(share) {
			return fmt.Errorf("%.2f of the datagrams arrive", share)
		}
		return nil
	}))
	limit := func(rate string) string { return "kind: limit\nname: branch\nbetween: [s1, s2]\n" + rate }
	require.Error(t, apply("diff", limit("packets: 100\n")), "it differs, and nothing is changed")
	require.True(t, free(through()))
	require.NoError(t, apply("apply", limit("packets: 100\n")))
	live("declared", held)
	require.NoError(t, Ping(step(t), p.a.Pod.Host, p.b.Pod.V4))
	told := func(want ...items.Held) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			for _, n := range []*siteNode{p.a, p.b} {
				var st debug.Status
				if err := n.ask(step(t), "/v1/status", &st); err != nil {
					return err
				}
				if len(st.Items) != len(want) || len(want) > 0 && (st.Items[0].Name != want[0].Name || st.Items[0].Text != want[0].Text) {
					return fmt.Errorf("%s has %+v", n.Name, st.Items)
				}
			}
			return nil
		}))
	}
	told(items.Held{Name: "branch", Text: "100 datagrams a second of what goes between sites s1 and s2, both ways together through a hub's relay"})
	var o api.Object
	require.NoError(t, p.Ask(step(t), &o, "get", "limit", "branch"))
	require.NotContains(t, []string{"", "0"}, o.Status["dropped"])
	require.Equal(t, 2, o.Have, o.Lack)
	require.ErrorContains(t, apply("apply", limit("packets: 5000\n")+"---\nkind: site\nname: s9\n---\nkind: limit\nname: other\nsite: nowhere\nbytes: 1\n"), `there is no site "nowhere"`)
	require.True(t, held(through()), "nothing of a file with a mistake is done")
	_, err := p.CLI(step(t), "site", "show", "s9")
	require.Error(t, err)
	_, err = p.CLI(step(t), "site", "delete", "s1", "--yes")
	require.Error(t, err)
	require.NoError(t, apply("apply", limit("packets: 5000\n")))
	live("changed", free)
	require.NoError(t, apply("apply", limit("packets: 100\n")))
	live("declared again", held)
	_, err = p.CLI(step(t), "delete", "limit", "branch", "--yes")
	require.NoError(t, err)
	live("deleted", free)
	told()
	var l *lab.RunError
	_, err = p.CLI(step(t), "get", "limit", "branch")
	require.True(t, errors.As(err, &l), err)
}
