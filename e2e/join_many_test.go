package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// Many hosts behind one address join in the same moment, a token each, while strangers behind the
// same address flood the hub's port with more than that address may ask. All join, by the code of
// 'causeway-agent join', within the time. Not parallel: a time limit.
func TestManyJoinsFromOneAddress(t *testing.T) {
	count, within := repeat(150, 500), 15*time.Second
	if count == 500 {
		within = 120 * time.Second
	}
	s, nodes := newSmall(t, 1)
	host := nodes[0].Host
	hub, err := api.NewClient(api.ClientConfig{Socket: s.Hub.Socket})
	require.NoError(t, err)
	defer hub.Close()
	var tokens []string
	for range count {
		c, err := hub.CreateToken(step(t), api.TokenSpec{Site: "s1"})
		require.NoError(t, err)
		tokens = append(tokens, c.Text)
	}
	file := filepath.Join(host.Dir(), "tokens")
	require.NoError(t, os.WriteFile(file, []byte(strings.Join(tokens, "\n")), 0o600))

	flood, err := host.Start(lab.Program{Name: "strangers", Dir: "/", Args: []string{s.Bin.Labtool, "knocks", HubAddr + ":443", "16"}})
	require.NoError(t, err)
	require.NoError(t, flood.WaitOutput(step(t), "told to come again"), "what the address may ask is used up")
	out, err := host.Run(step(t), s.Bin.Labtool, "joins", file, filepath.Join(host.Dir(), "hosts"), "2m")
	require.NoError(t, err)
	var r struct {
		Joined           int
		Errors           []string
		Tries            int
		Seconds, Slowest float64
	}
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.NoError(t, flood.Stop(step(t)))
	t.Logf("%d of %d hosts of one address joined within %.1f s, %d times told to come again, beside strangers: %s", r.Joined, count, r.Seconds, r.Tries, flood.Output())
	require.Empty(t, r.Errors)
	require.Equal(t, count, r.Joined)
	require.Less(t, r.Seconds, within.Seconds())
	list, err := s.Nodes(step(t))
	require.NoError(t, err)
	require.Len(t, list, count)
	numbers := map[string]bool{}
	for _, n := range list {
		numbers[fmt.Sprint(n.Number)] = true
	}
	require.Len(t, numbers, count, "no number twice")
}

// A join begins before its hub does, waits for it, and says so in one line.
func TestJoinWaitsForTheHub(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 1)
	token, err := s.Token(step(t), "s1")
	require.NoError(t, err)
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	n, err := s.Prepare(NodeSpec{Name: "n1", Site: "s1", Host: nodes[0].Host})
	require.NoError(t, err)
	p, err := n.Host.Start(lab.Program{Name: "join", Dir: "/", Args: []string{n.bin, "join", token, "--config", n.Config, "--state-dir", n.StateDir, "--name", "n1"}})
	require.NoError(t, err)
	require.NoError(t, p.WaitOutput(step(t), "waiting: cannot reach the hub at "+HubAddr+":443: connection refused"))
	require.NoError(t, s.StartHub(step(t)))
	require.NoError(t, p.Wait(step(t)))
	require.Contains(t, p.Output(), "joined site s1 as node n1")
	require.Equal(t, 1, strings.Count(p.Output(), "waiting: cannot reach"), p.Output())
}

// Whoever has the token is told that the name is taken, and what to do, which works: another name,
// or the place of the node, by a token for that. Nothing else changes.
func TestJoinNameTaken(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	require.NoError(t, s.WaitReady(step(t), "n1"))
	n, err := s.Prepare(NodeSpec{Name: "n1", Site: "s2", Host: nodes[1].Host})
	require.NoError(t, err)
	token, err := s.Token(step(t), "s2")
	require.NoError(t, err)
	_, err = n.Redeem(step(t), token)
	requireOneLine(t, err, "the name n1 is taken by node ", "of site s1; join with another --name, or, if this host takes that node's place, with --replace and a token of 'causeway token create --site s1 --replace n1'")
	require.NoDirExists(t, n.StateDir)

	// The host's own name is the first label of another's: what is proposed tells the two apart.
	_, err = n.Host.Run(step(t), "unshare", "-u", "sh", "-ec", `hostname n1.dc2.example; exec "$@"`, "sh", n.bin, "join", token, "--config", n.Config, "--state-dir", n.StateDir)
	requireOneLine(t, err, "is taken by node", "for example --name n1-dc2-example")
	require.NoError(t, s.WaitReady(step(t), "n1"), "who has the name keeps it")
	n.Name = "n1-dc2-example"
	_, err = n.Redeem(step(t), token)
	require.NoError(t, err, "by the same token")

	// The other cure, as it is printed.
	instead, err := s.Prepare(NodeSpec{Name: "n1", Site: "s1", Host: nodes[1].Host})
	require.NoError(t, err)
	instead.StateDir += "-instead"
	token, err = s.Token(step(t), "s1", "--replace", "n1")
	require.NoError(t, err)
	_, err = instead.Redeem(step(t), token)
	requireOneLine(t, err, "join with --replace to take its place, as this token permits")
	_, err = instead.Redeem(step(t), token, "--replace")
	require.NoError(t, err)
	list, err := s.Nodes(step(t))
	require.NoError(t, err)
	require.Contains(t, list, "n1-dc2-example")
	require.Contains(t, list, "n1")
}
