package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// stateWithin is how soon the hub shows what became of a node, in seconds.
const stateWithin = 15

// stateLog is what the hub said of nodes, change by change.
type stateLog struct {
	mu   sync.Mutex
	seen map[string][]string
	last map[string]api.Node
}

// watchStates looks at all nodes ten times a second until the test ends.
func watchStates(t *testing.T, s *System) *stateLog {
	t.Helper()
	c, err := api.NewClient(api.ClientConfig{Socket: s.Hub.Socket})
	require.NoError(t, err)
	l := &stateLog{seen: map[string][]string{}, last: map[string]api.Node{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done; c.Close() })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			nodes, err := c.Nodes(ctx)
			l.mu.Lock()
			for _, n := range nodes {
				if err == nil && n.State != l.last[n.Name].State {
					l.seen[n.Name] = append(l.seen[n.Name], n.State)
				}
				l.last[n.Name] = n
			}
			l.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return l
}

func (l *stateLog) of(name string) (api.Node, []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[name], slices.Clone(l.seen[name])
}

func (l *stateLog) await(name, state string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*stateWithin*time.Second)
	defer cancel()
	return lab.Wait(ctx, name+" to be "+state, func(context.Context) error {
		if n, seen := l.of(name); n.State != state {
			return fmt.Errorf("it is %s: %v, so far %v", n.State, n.Reasons, seen)
		}
		return nil
	})
}

// What becomes of an agent is shown within 15 s, and so is that it is well again; a
// link that blinks is not shown at all. Not parallel: time limits.
func TestNodeStates(t *testing.T) {
	s, nodes := newSmall(t, 5)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3", "n4", "n5"))
	log := watchStates(t, s)
	require.NoError(t, log.await("n5", api.NodeReady))
	watches := map[string]*lab.Process{}
	for _, args := range [][]string{{"events", "--watch"}, {"node", "list", "--watch"}, {"audit", "--watch", "-n", "1"}} {
		p, err := s.Hub.Host.Start(lab.Program{Name: "watch-" + args[0], Args: append([]string{s.Bin.CLI, "--socket", s.Hub.Socket}, args...)})
		require.NoError(t, err)
		watches[args[0]] = p
	}
	require.NoError(t, watches["node"].WaitOutput(step(t), "ready"))

	type fault struct {
		name, what, state string
		begin, end        func()
	}
	link := func(h *lab.Host, to string) func() { return func() { h.Sh("ip link set eth0 " + to) } }
	faults := []fault{
		{"n1", "agent stopped by a signal", api.NodeUnreachable,
			func() { nodes[0].Proc.Signal(syscall.SIGSTOP) }, func() { nodes[0].Proc.Signal(syscall.SIGCONT) }},
		{"n2", "link down", api.NodeUnreachable, link(nodes[1].Host, "down"), link(nodes[1].Host, "up")},
		{"n3", "agent killed", api.NodeUnreachable,
			func() { nodes[2].Proc.Kill() }, func() { require.NoError(t, nodes[2].Start()) }},
		{"n4", "foreign firewall", api.NodeDegraded,
			func() {
				nodes[3].Host.Sh("nft add table inet foreign; nft 'add chain inet foreign forward { type filter hook forward priority 0; policy drop; }'")
			},
			func() { nodes[3].Host.Sh("nft delete table inet foreign") }},
	}
	blink, stop := context.WithCancel(context.Background())
	var blinks int
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; blink.Err() == nil; blinks++ {
			for _, to := range []string{"down", "up"} {
				nodes[4].Host.Sh("ip link set eth0 " + to)
				steady(t, time.Second)
			}
		}
	})
	took := make([][2]time.Duration, len(faults))
	var fs []func() error
	for i, f := range faults {
		fs = append(fs, func() error {
			for k, change := range []func(){f.begin, f.end} {
				start := time.Now()
				change()
				if err := log.await(f.name, []string{f.state, api.NodeReady}[k]); err != nil {
					return fmt.Errorf("%s: %w", f.what, err)
				}
				took[i][k] = time.Since(start)
			}
			return nil
		})
	}
	err := lab.All(fs...)
	stop()
	wg.Wait()
	require.NoError(t, err)
	for i, f := range faults {
		measured(t, f.what+" to "+f.state, took[i][0].Seconds(), stateWithin)
		measured(t, f.what+" over to ready", took[i][1].Seconds(), stateWithin)
		_, seen := log.of(f.name)
		require.Equal(t, []string{api.NodeReady, f.state, api.NodeReady}, seen, "%s: each once, nothing between", f.what)
	}
	_, seen := log.of("n5")
	require.Equal(t, []string{api.NodeReady}, seen, "a link that blinked %d times, for a second each", blinks)
	t.Logf("a link that blinked %d times changed no state", blinks)

	// All of that was told to whoever watches.
	shows := func(watch string, words ...string) {
		t.Helper()
		require.NoError(t, lab.Wait(step(t), watch+" to be told", func(context.Context) error {
			out := watches[watch].Output()
			for _, l := range strings.Split(out, "\n") {
				if strings.Contains(strings.Join(strings.Fields(l), " "), strings.Join(words, " ")) {
					return nil
				}
			}
			return fmt.Errorf("%q is not in\n%s", words, out)
		}))
	}
	shows("events", "node_unreachable", "n1", "the node is unreachable: no sign of life")
	shows("events", "node_ready", "n1")
	shows("events", "node_degraded", "n4", "the node is degraded: firewall:")
	require.Regexp(t, `(?m)^n1 .* unreachable .*\n(.*\n)*n1 .* ready `, watches["node"].Output())
	// A hub that is started again: the watches go on.
	s.Hub.Proc.Kill()
	require.NoError(t, s.StartHub(step(t)))
	require.NoError(t, s.CreateSite(step(t), "later"))
	shows("audit", "site create later")
	shows("audit", "trying again")
	require.NoError(t, log.await("n1", api.NodeReady))
	require.Equal(t, 1, strings.Count(watches["audit"].Output(), "site create later"))
}
