package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// Real containers on nodes of two sites: each node's Podman network, which
// masquerades as Podman's own does, is its announced route, and the server
// sees the client's own address.
func TestContainers(t *testing.T) {
	w := sharedWorld(t)
	t.Parallel()
	ctx := within(t, 3*time.Minute)
	server, client := w.Hosts["a2"].Podman(containersA), w.Hosts["c1"].Podman(containersC)
	require.NoError(t, lab.All(
		func() error { return server.Image(ctx, "tool", w.Bin.Labtool) },
		func() error { return client.Image(ctx, "tool", w.Bin.Labtool) },
		func() error { return w.Approve(ctx, "a2", containersA) },
		func() error { return w.Approve(ctx, "c1", containersC) },
	))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		server.Run(ctx, "rm", "-f", "-a", "-t", "0")
		client.Run(ctx, "rm", "-f", "-a", "-t", "0")
	})
	_, err := server.Run(ctx, "run", "-d", "--name", "web", "tool", "/bin/labtool", "serve")
	require.NoError(t, err)
	_, err = client.Run(ctx, "run", "-d", "--name", "client", "tool", "/bin/sleep", "600")
	require.NoError(t, err)
	web, err := server.Address(ctx, "web")
	require.NoError(t, err)
	own, err := client.Address(ctx, "client")
	require.NoError(t, err)
	require.Contains(t, w.Hosts["c1"].Sh("iptables-save -t nat"), "MASQUERADE", "the network masquerades")
	require.NoError(t, lab.Wait(ctx, "the answer", func(ctx context.Context) error {
		out, err := client.Run(ctx, "exec", "client", "/bin/labtool", "http", "http://"+web+":7080/from-container")
		if err == nil && !strings.Contains(out, "hello "+own) {
			err = errors.New("answer: " + out)
		}
		return err
	}))
	out, err := server.Run(ctx, "logs", "web")
	require.NoError(t, err)
	require.Contains(t, out, "http GET /from-container from "+own)
	_, err = client.Run(ctx, "exec", "client", "/bin/labtool", "tcp", web, "-bytes", "50000000")
	require.NoError(t, err)
}
