package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// A rule that goes takes all peers of a server's node away, and their routes: every connection that it opened is reset
// within two seconds, at both ends, those that say nothing as those that do, of pods and of hosts.
func TestPolicyCutsAll(t *testing.T) {
	t.Parallel()
	const count = 6
	s, nodes := newSmall(t, count)
	names := make([]string, count)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
		names[i] = nodes[i].Node.Name
	}
	require.NoError(t, s.WaitReady(step(t), names...))
	dir := t.TempDir()
	apply := func(open bool) {
		t.Helper()
		text := "kind: policy\nname: main\nrules: []\n"
		if open {
			text = "kind: policy\nname: main\nrules:\n"
			for i := 2; i <= count; i++ {
				text += fmt.Sprintf("- {name: of-%d, from: {site: s%[1]d}, to: {site: s1}, allow: [icmp, tcp]}\n", i)
			}
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(text), 0o600))
		out, err := s.CLI(step(t), "apply", "-f", dir)
		require.NoError(t, err, out)
	}
	one := nodes[0].Pod
	server := startServer(t, s, one)
	atServer := func() (n int) {
		out, err := one.Host.Run(step(t), "ss", "-Htn", "state", "established", "( sport = :7002 )")
		require.NoError(t, err)
		return strings.Count(out, "\n")
	}
	for round := range 3 {
		apply(true)
		type conn struct {
			what string
			held *Held
		}
		var l []conn
		for i, n := range nodes[1:] {
			require.NoError(t, Ping(step(t), n.Pod.Host, server))
			for what, from := range map[string]*lab.Host{"pod": n.Pod.Host, "host": n.Host} {
				for _, args := range [][]string{nil, {"-idle"}} {
					h, err := s.Hold(step(t), from, server, args...)
					require.NoError(t, err)
					l = append(l, conn{fmt.Sprint(what, i+2, args), h})
				}
			}
		}
		require.NoError(t, Wait(t, func() error {
			if n := atServer(); n != len(l) {
				return fmt.Errorf("%d of %d connections", n, len(l))
			}
			return nil
		}))
		took := make([]time.Duration, len(l))
		said := make([]string, len(l))
		var done sync.WaitGroup
		start := time.Now()
		for i, c := range l {
			done.Go(func() {
				said[i], _ = c.held.Broken(within(t, 10*time.Second))
				took[i] = time.Since(start)
			})
		}
		apply(false)
		applied := time.Since(start)
		var left time.Duration
		require.NoError(t, Wait(t, func() error {
			left = time.Since(start)
			if n := atServer(); n > 0 {
				return fmt.Errorf("the server still has %d", n)
			}
			return nil
		}))
		done.Wait()
		worst := left
		for i, c := range l {
			t.Logf("round %d, %s: %.3f s", round, c.what, took[i].Seconds())
			worst = max(worst, took[i])
			require.Contains(t, said[i], "connection reset by peer", c.what)
		}
		t.Logf("round %d: applied after %s, the server's ends gone after %s", round, applied.Round(time.Millisecond), left.Round(time.Millisecond))
		measured(t, fmt.Sprintf("policy rule removed to the last of %d resets", len(l)), worst.Seconds(), 2)
	}
}
