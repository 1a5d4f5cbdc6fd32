package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// captureUnread: a capture with payloads is under way and who asked for it is stopped, so that it
// stands all the way back into the agent's kernel. The node takes and acknowledges changes
// meanwhile, and once it is read again the capture goes on.
func captureUnread(t *testing.T, s *System, nodes []*smallNode) {
	a, b := nodes[0], nodes[1]
	file := filepath.Join(t.TempDir(), "unread.pcapng")
	p, err := s.Hub.Host.Start(lab.Program{Name: "unread", Dir: "/", Args: []string{"sh", "-c", `exec "$@" > "$0"`, file, s.Bin.CLI, "--socket", s.Hub.Socket, "diag", "capture", "n1", "--payload", "icmp"}})
	require.NoError(t, err)
	t.Cleanup(func() { p.Kill() })
	flood, err := a.Pod.Start(lab.Program{Name: "pings", Args: []string{"ping", "-q", "-f", "-s", "1300", b.Pod.V4}})
	require.NoError(t, err)
	t.Cleanup(func() { flood.Kill() })

	// What waits in the agent's kernel for the hub, by connection.
	waits := func(ctx context.Context, port string) (n int, from string, err error) {
		out, err := a.Host.Run(ctx, "ss", "-Htn", "state", "established", "dst", "198.18.0.1", "dport", "=", port)
		f := strings.Fields(out)
		if err != nil || len(f) < 4 {
			return 0, "", fmt.Errorf("no one connection to port %s: %v %q", port, err, out)
		}
		n, err = strconv.Atoi(f[1])
		return n, f[2], err
	}
	require.NoError(t, lab.Wait(step(t), "the capture on a connection of its own", func(ctx context.Context) error {
		_, _, err := waits(ctx, ":4711")
		return err
	}))
	p.Signal(syscall.SIGSTOP)
	var stands string
	standing := func(ctx context.Context) error {
		n, from, err := waits(ctx, ":4711")
		if err == nil && n < 128<<10 {
			err = fmt.Errorf("%d bytes wait", n)
		}
		stands = from
		return err
	}
	require.NoError(t, lab.Wait(step(t), "the capture to stand", standing))
	first := stands
	for _, verb := range []string{"reject", "approve"} {
		before, err := s.Nodes(step(t))
		require.NoError(t, err)
		_, err = s.CLI(step(t), "route", verb, "n3", "10.3.1.0/24")
		require.NoError(t, err)
		require.NoError(t, lab.Wait(step(t), "the change to be acknowledged", func(ctx context.Context) error {
			now, err := s.Nodes(ctx)
			if err == nil && !before["n1"].Netmap.Less(now["n1"].Netmap) {
				err = errors.New("not yet")
			}
			return err
		}))
	}
	require.NoError(t, standing(step(t)), "it stood all the while")
	require.Equal(t, first, stands, "the same connection")

	p.Signal(syscall.SIGCONT)
	require.NoError(t, lab.Wait(step(t), "the capture to go on", func(ctx context.Context) error {
		if err := standing(ctx); err == nil {
			return errors.New("it stands")
		}
		_, _, err := waits(ctx, ":4711")
		return err
	}))
	p.Signal(syscall.SIGINT)
	require.NoError(t, p.Wait(step(t)))
	require.NoError(t, lab.Wait(step(t), "the connection to end", func(ctx context.Context) error {
		if _, _, err := waits(ctx, ":4711"); err == nil {
			return errors.New("it is there")
		}
		return nil
	}))
}
