package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// A hub that has no name moves to another address, while nobody can tell its agents: they are
// lost to it until a person hands them the new hub list, with the agent running and without.
func TestHubsSet(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	old, err := s.CLI(step(t), "hubs", "list", "-o", "json")
	require.NoError(t, err)
	confirmed := func(ctx context.Context) (time.Time, error) {
		var h struct{ Confirmed time.Time }
		out, err := nodes[0].Agent(ctx, "hubs", "show", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &h)
		}
		return h.Confirmed, err
	}
	// Each session begins with the question whether the list is the newest.
	joined, err := confirmed(step(t))
	require.NoError(t, err)
	require.False(t, joined.IsZero(), "the join asked")
	require.NoError(t, nodes[0].Proc.Stop(step(t)))
	require.NoError(t, nodes[0].Start())
	require.NoError(t, lab.Wait(step(t), "the hub to show again that the list is the newest", func(ctx context.Context) error {
		at, err := confirmed(ctx)
		if err == nil && !at.After(joined.Add(500*time.Millisecond)) {
			err = errors.New(at.String())
		}
		return err
	}))
	require.NoError(t, s.WaitReady(step(t), "n1"))

	const other = "203.0.113.2"
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	s.Hub.Host.Sh("ip addr del " + HubAddr + "/24 dev eth0; ip addr add " + other + "/24 dev eth0")
	require.NoError(t, s.Hub.Host.Settle(step(t)))
	s.Hub.Public = other
	require.NoError(t, s.StartHub(step(t)))
	list, err := s.CLI(step(t), "hubs", "list", "-o", "json")
	require.NoError(t, err)
	table, err := s.CLI(step(t), "hubs", "list")
	require.NoError(t, err)
	require.Contains(t, table, other+":51820")
	dir := t.TempDir()
	at := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return "@" + path
	}
	file := at("hubs.json", list)
	for _, n := range nodes {
		require.NoError(t, lab.Wait(step(t), "the agent to miss its hub", func(ctx context.Context) error {
			out, err := n.Agent(ctx, "health")
			if err == nil && !strings.Contains(out, `no hub answers at `+HubAddr) {
				err = errors.New(out)
			}
			return err
		}))
	}

	stranger, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	signed, err := protocol.HubList{Version: 1, Serial: 99, NotAfter: time.Now().Add(time.Hour), Hubs: []protocol.Hub{{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{9}, UDP: []string{other + ":51820"}}}}.Sign(stranger)
	require.NoError(t, err)
	foreign, err := json.Marshal(signed)
	require.NoError(t, err)

	// What is none, or not newer, or not of this cluster, changes nothing.
	for _, bad := range []struct{ arg, want string }{
		{at("empty.json", ""), "holds none; 'causeway hubs list -o json'"},
		{at("other.json", string(foreign)), "does not match the pin"},
		{"@" + filepath.Join(dir, "missing"), "no such file"},
		{"hubs.json", "is neither '@FILE' nor '-'"},
	} {
		_, err := nodes[0].Agent(step(t), "hubs", "set", bad.arg)
		requireOneLine(t, err, bad.want)
	}
	out, err := nodes[0].Agent(step(t), "hubs", "set", at("old.json", old))
	require.NoError(t, err)
	require.Contains(t, out, "this node holds hub list 1 already")

	out, err = nodes[0].Agent(step(t), "hubs", "set", file)
	require.NoError(t, err)
	require.Contains(t, out, "hub list 2 is this node's now")
	require.Contains(t, out, other+":443")
	require.NoError(t, s.WaitReady(step(t), "n1"))
	_, err = nodes[0].Agent(step(t), "hubs", "set", at("old.json", old))
	requireOneLine(t, err, "serial 1 is lower than 2")

	// Where no agent runs it is the state directory that takes it.
	require.NoError(t, nodes[1].Proc.Stop(step(t)))
	out, err = nodes[1].Host.Run(step(t), "sh", "-c", `exec "$0" hubs set - --state-dir "$1" --debug-socket "$2" <"$3"`, s.Bin.Agent, nodes[1].StateDir, nodes[1].Socket, file[1:])
	require.NoError(t, err)
	require.Contains(t, out, "hub list 2 is this node's now")
	require.NoError(t, nodes[1].Start())
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
}
