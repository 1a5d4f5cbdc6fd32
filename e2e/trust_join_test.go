package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/failpoint"
	"causeway/netns/lab"
	"causeway/protocol"
)

// rounds is how often a fault is tried: often in a soak, once else.
func rounds(soak int) int {
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		return soak
	}
	return 1
}

// The hub is killed at every step between reading a join and answering it.
// Whatever the step: no half node is left, the same key's retry gets the one
// identity there is, another key never gets any once the token is consumed.
func TestHubKilledWhileJoining(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	count := 0
	try := func(t *testing.T, point string, arm func(*testing.T)) {
		for range rounds(20) {
			count++
			id := fmt.Sprint(count)
			token, err := s.Token(step(t), "s1", "--route", fmt.Sprintf("10.77.%d.0/24", count%256))
			require.NoError(t, err)
			first, err := s.Prepare(NodeSpec{Name: "first-" + id, Site: "s1", Host: nodes[0].Host})
			require.NoError(t, err)
			other, err := s.Prepare(NodeSpec{Name: "other-" + id, Site: "s1", Host: nodes[1].Host})
			require.NoError(t, err)
			arm(t)
			_, err = first.Redeem(step(t), token, "--wait", "0")
			select {
			case <-s.Hub.Proc.Done():
			case <-step(t).Done():
				t.Fatalf("the hub lived on at %s", point)
			}
			answered := err == nil // the answer may be out before the signal comes
			s.Hub.Env = nil
			require.NoError(t, s.StartHub(step(t)))

			redeemed := wholeNode(t, s, token, first.Name)
			require.False(t, answered && !redeemed, "an answer that was not stored")
			if redeemed {
				_, err = other.Redeem(step(t), token)
				requireOneLine(t, err, "the hub refused")
			}
			before, err := s.Nodes(step(t))
			require.NoError(t, err)
			if answered {
				require.FileExists(t, filepath.Join(first.StateDir, "identity.json"))
			} else {
				_, err = first.Redeem(step(t), token)
				require.NoError(t, err, "the same key's retry")
			}
			require.True(t, wholeNode(t, s, token, first.Name))
			after, err := s.Nodes(step(t))
			require.NoError(t, err)
			if redeemed {
				require.Equal(t, before[first.Name].Number, after[first.Name].Number)
				require.Equal(t, before[first.Name].WireGuardKey, after[first.Name].WireGuardKey)
			}
			_, err = other.Redeem(step(t), token)
			requireOneLine(t, err, "the hub refused")
			require.NotContains(t, after, other.Name)
			t.Logf("killed at %s: answered %v, node stored %v, retry got number %d, another key none", point, answered, redeemed, after[first.Name].Number)
		}
	}
	for _, point := range []string{"join-read", "join-opened", "join-stored", "join-sealed", "join-written"} {
		try(t, point, func(t *testing.T) {
			require.NoError(t, s.Hub.Proc.Stop(step(t)))
			s.Hub.Env = []string{failpoint.Variable + "=" + point}
			require.NoError(t, s.StartHub(step(t)))
		})
	}
	// In the middle of storing: at the log's write, and at its sync.
	for _, call := range []string{"write,pwrite64,writev", "fsync,fdatasync"} {
		try(t, call, func(t *testing.T) {
			blocks, err := filepath.Glob(filepath.Join(s.Hub.Dir, "nats", "jetstream", "*", "streams", "CAUSEWAY_STATE", "msgs", "*.blk"))
			require.NoError(t, err)
			require.NotEmpty(t, blocks)
			args := []string{"strace", "-f", "-q", "-p", strconv.Itoa(s.Hub.Proc.PID())}
			for _, b := range blocks {
				args = append(args, "-P", b)
			}
			p, err := s.Hub.Host.Start(lab.Program{Name: "strace", Args: append(args, "-e", "trace="+call, "-e", "inject="+call+":signal=SIGKILL:when=1")})
			require.NoError(t, err)
			require.NoError(t, lab.Wait(step(t), "strace", func(context.Context) error { return traced(s.Hub.Proc.PID(), p) }))
		})
	}
	t.Logf("%d deaths of the hub: 0 half nodes, 0 identities for another key", count)
}

// traced reports whether every thread of a process has a tracer.
func traced(pid int, tracer *lab.Process) error {
	if !tracer.Running() {
		return lab.Permanent(fmt.Errorf("strace ended: %s", tracer.Output()))
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		return fmt.Errorf("no threads of %d: %v", pid, err)
	}
	want := fmt.Sprintf("TracerPid:\t%d\n", tracer.PID())
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err == nil && !strings.Contains(string(b), want) {
			return fmt.Errorf("%s is not traced", f)
		}
	}
	return nil
}

// wholeNode checks that a token and the node that it would make agree, and
// reports whether there is the node.
func wholeNode(t *testing.T, s *System, token, name string) bool {
	t.Helper()
	parsed, err := protocol.ParseToken(token)
	require.NoError(t, err)
	var tokens []api.Token
	require.NoError(t, s.Ask(step(t), &tokens, "token", "list"))
	nodes, err := s.Nodes(step(t))
	require.NoError(t, err)
	n, there := nodes[name]
	for _, k := range tokens {
		if k.ID != parsed.ID.String() {
			continue
		}
		if !there {
			require.Equal(t, "open", k.State, "a token consumed without a node")
			return false
		}
		require.Equal(t, "used", k.State)
		require.Equal(t, name, k.UsedBy)
		require.Len(t, n.Routes, 1, "with the token's route")
		require.NotEmpty(t, n.Overlay)
		return true
	}
	t.Fatal("the token is gone")
	return false
}
