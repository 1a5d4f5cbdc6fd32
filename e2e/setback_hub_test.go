package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/failpoint"
	"causeway/netns/lab"
	"causeway/protocol"
)

// hubSetBack is a hub that is set back again and again, with nodes that know better.
type hubSetBack struct {
	*System
	t     *testing.T
	nodes []*smallNode
	given map[protocol.NodeNumber]string // numbers of joins that were answered, by what joined
	again []string                       // nodes that have to join again
	tried int
	// printed counts who joined again as 'causeway doctor' said.
	printed int
}

// hubPoint is something that a hub forgets when it is set back.
type hubPoint struct {
	what   string
	before func(*hubSetBack) // ahead of the copy
	do     func(*hubSetBack)
	// after looks at what the repaired hub made of it.
	after func(*hubSetBack)
}

// numberOf is the number that a host was given.
func numberOf(t *testing.T, n *Node) protocol.NodeNumber {
	t.Helper()
	var id struct {
		Number protocol.NodeNumber `json:"number"`
	}
	b, err := os.ReadFile(filepath.Join(n.StateDir, "identity.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &id))
	return id.Number
}

// joined notes a join that was answered: no number is given twice.
func (x *hubSetBack) joined(n *Node) {
	x.t.Helper()
	number := numberOf(x.t, n)
	x.tried++
	by := fmt.Sprintf("%s, join %d", n.Name, x.tried)
	before, twice := x.given[number]
	require.False(x.t, twice, "number %d was given to %s and to %s", number, before, by)
	x.given[number] = by
}

// join joins host i and waits until the others know it.
func (x *hubSetBack) join(i int) {
	x.t.Helper()
	joinSmall(x.t, x.System, x.nodes, i)
	x.joined(x.nodes[i-1].Node)
	require.NoError(x.t, x.WaitReady(step(x.t), x.nodes[i-1].Name))
}

// rejoin has a node join again as its own words say: a token that replaces what the hub knows
// by its name, if anything, and join --replace.
func (x *hubSetBack) rejoin(i int) {
	x.t.Helper()
	n := x.nodes[i-1]
	require.NoError(x.t, n.Proc.Stop(step(x.t)))
	if x.asPrinted(i) {
		return
	}
	all, err := x.Nodes(step(x.t))
	require.NoError(x.t, err)
	args := []string{}
	if old, ok := all[n.Name]; ok && old.State != api.NodeRevoked && old.State != api.NodeLeft {
		args = append(args, "--replace", n.Name)
	}
	for _, r := range PodRoutes(i, 1) {
		args = append(args, "--route", r)
	}
	token, err := x.Token(step(x.t), n.Site, args...)
	require.NoError(x.t, err)
	_, err = n.Redeem(step(x.t), token, "--replace")
	require.NoError(x.t, err)
	x.joined(n.Node)
	require.NoError(x.t, n.Start())
	require.NoError(x.t, x.WaitReady(step(x.t), n.Name))
}

// anew are the two commands in a mend by which a host takes a node's place.
var anew = regexp.MustCompile(`(causeway token create .*?), then (?:there|on [a-z0-9-]+)[^:]*: causeway-agent (join --replace TOKEN --name [a-z0-9-]+)$`)

// asPrinted has a node join again as 'causeway doctor' says for it, word by word, if it says how. Who is not
// known to the hub any more gets the routes of its token besides, as the doctor says too.
func (x *hubSetBack) asPrinted(i int) bool {
	x.t.Helper()
	n := x.nodes[i-1]
	c := &curing{t: x.t, s: x.System, nodes: x.nodes}
	check := "node-set-back"
	mend, ok, _ := c.finding(step(x.t), check, n.Name)
	if !ok {
		check = "node-unknown"
		mend, ok, _ = c.finding(step(x.t), check, n.Name)
	}
	m := anew.FindStringSubmatch(mend)
	if !ok || m == nil {
		return false
	}
	x.t.Logf("applied: %s", mend)
	args := strings.Fields(m[1])[1:]
	if !slices.Contains(args, "--route") {
		for _, r := range PodRoutes(i, 1) {
			args = append(args, "--route", r)
		}
	}
	token := strings.TrimSpace(x.cli(args...))
	_, err := n.Host.Run(step(x.t), append(append([]string{x.Bin.Agent}, strings.Fields(strings.Replace(m[2], "TOKEN", token, 1))...), "--config", n.Config, "--state-dir", n.StateDir)...)
	require.NoError(x.t, err)
	x.joined(n.Node)
	require.NoError(x.t, n.Start())
	require.NoError(x.t, x.WaitReady(step(x.t), n.Name))
	c.gone(check, n.Name)
	x.printed++
	return true
}

// says waits until a node's health has these words.
func says(t *testing.T, n *Node, words ...string) {
	t.Helper()
	require.NoError(t, lab.Wait(step(t), n.Name+" to say "+strings.Join(words, "; "), func(ctx context.Context) error {
		out, _ := n.Agent(ctx, "health", "-o", "json")
		for _, w := range words {
			if !strings.Contains(strings.ReplaceAll(out, `\u0026`, "&"), w) {
				return fmt.Errorf("no %q in %s", w, out)
			}
		}
		return nil
	}))
}

// back sets the hub's data directory back to a copy of earlier.
func (x *hubSetBack) back(copied string) {
	x.t.Helper()
	require.NoError(x.t, x.Hub.Proc.Stop(step(x.t)))
	x.Hub.Host.Sh("rm -rf " + x.Hub.Dir + " && cp -a " + copied + " " + x.Hub.Dir)
	require.NoError(x.t, x.StartHub(step(x.t)))
}

// copy stops the hub for a copy of its data directory.
func (x *hubSetBack) copy() string {
	x.t.Helper()
	require.NoError(x.t, x.Hub.Proc.Stop(step(x.t)))
	to := x.Hub.Dir + ".snapshot"
	x.Hub.Host.Sh("rm -rf " + to + " && cp -a " + x.Hub.Dir + " " + to)
	require.NoError(x.t, x.StartHub(step(x.t)))
	return to
}

// repair is what the hub names, and what it prints.
func (x *hubSetBack) repair() {
	x.t.Helper()
	require.NoError(x.t, x.Hub.Proc.Stop(step(x.t)))
	repair := []string{x.Bin.Hub, "repair", "--data-dir", x.Hub.Dir, "--skip-numbers", "0"}
	_, err := x.Hub.Host.RunAs(step(x.t), lab.Nobody, repair...)
	r := failed(x.t, err)
	require.Contains(x.t, r.Stdout, "set back: the log ended at transaction ")
	require.Contains(x.t, r.Stderr, "run it again with --yes")
	_, err = x.Hub.Host.RunAs(step(x.t), lab.Nobody, append(repair, "--yes")...)
	require.NoError(x.t, err)
	require.NoError(x.t, x.StartHub(step(x.t)))
}

// try sets the hub back to before p and has it mended, with what hub and nodes say.
func (x *hubSetBack) try(p hubPoint) {
	t := x.t
	t.Helper()
	begin := time.Now()
	x.again = nil
	token, err := x.Token(step(t), "s5")
	require.NoError(t, err)
	if p.before != nil {
		p.before(x)
	}
	copied := x.copy()
	p.do(x)
	// The change is known where it counts before the disk goes back.
	x.known()
	x.back(copied)

	start := time.Now()
	late, err := x.Prepare(NodeSpec{Name: fmt.Sprintf("late-%d", x.tried), Site: "s5", Host: x.nodes[4].Host})
	require.NoError(t, err)
	_, err = late.Redeem(step(t), token) // at once: agents have not come back yet
	require.Contains(t, failed(t, err).Stderr, "the hub's state was set back to an earlier time")
	require.Contains(t, failed(t, err).Stderr, "'causeway doctor' there says how")
	measured(t, "set back hub says so", time.Since(start).Seconds(), 20)
	_, err = x.CLI(step(t), "site", "create", "later")
	require.Contains(t, failed(t, err).Stderr, "the state log of this hub was set back")
	_, err = x.CLI(step(t), "doctor")
	require.Contains(t, failed(t, err).Stdout, "the state log of this hub was set back")
	require.Contains(t, failed(t, err).Stdout, "'causeway-hub repair'")
	out, err := x.CLI(step(t), "status")
	require.NoError(t, err)
	require.Contains(t, out, "the state log of this hub was set back")
	for _, name := range x.again {
		says(t, x.Node(name), "the hub's state was set back", "'causeway doctor' says how to mend that")
	}

	x.repair()
	for _, name := range x.again {
		says(t, x.Node(name), "restored from an earlier time", "it has to join again", "causeway token create --site "+x.Node(name).Site)
		x.rejoin(slices.IndexFunc(x.nodes, func(n *smallNode) bool { return n.Node == x.Node(name) }) + 1)
	}
	if p.after != nil {
		p.after(x)
	}
	x.works()
	fresh, err := x.Join(step(t), NodeSpec{Name: fmt.Sprintf("fresh-%d", x.tried), Site: "s5", Host: x.nodes[4].Host})
	require.NoError(t, err)
	x.joined(fresh)
	require.NoError(t, x.WaitReady(step(t), fresh.Name))
	require.NoError(t, fresh.Leave(step(t)))
	t.Logf("%s: mended after %.1f s; %d numbers given, none twice; joined again: %v", p.what, time.Since(begin).Seconds(), len(x.given), x.again)
}

// known waits until an agent has a mark of the state as it is now, on the hub's word.
func (x *hubSetBack) known() {
	x.t.Helper()
	if x.Hub.Proc.Running() {
		steady(x.t, 3*time.Second) // a mark comes within two: what is waited for shows nowhere
	}
}

// works holds the two nodes that stay to what they are for.
func (x *hubSetBack) works() {
	x.t.Helper()
	require.NoError(x.t, x.WaitReady(step(x.t), "n1", "n2"))
	require.NoError(x.t, Ping(step(x.t), x.nodes[0].Pod.Host, x.nodes[1].Pod.V4))
	require.NoError(x.t, Ping(step(x.t), x.nodes[1].Pod.Host, x.nodes[0].Pod.V6))
	x.cli("site", "list")
}

func (x *hubSetBack) cli(args ...string) string {
	x.t.Helper()
	out, err := x.CLI(step(x.t), args...)
	require.NoError(x.t, err)
	return out
}

var hubPoints = []hubPoint{
	{what: "an admin", do: func(x *hubSetBack) {
		x.cli("admin", "create", "olga", "--role", "viewer")
	}},
	{what: "an admin's revocation", do: func(x *hubSetBack) {
		x.cli("admin", "create", "oleg", "--role", "viewer")
		x.cli("admin", "revoke", "oleg", "--yes")
	}},
	{what: "a token", do: func(x *hubSetBack) { x.cli("token", "create", "--site", "s1") }},
	{what: "a token and its use", do: func(x *hubSetBack) {
		x.join(3)
		x.again = []string{"n3"}
	}, after: func(x *hubSetBack) { require.NoError(x.t, x.Node("n3").Leave(step(x.t))) }},
	{what: "several joins", do: func(x *hubSetBack) {
		x.join(3)
		x.join(4)
		x.again = []string{"n3", "n4"}
	}}, // n3 and n4 stay
	{what: "a join whose answer was lost", do: func(x *hubSetBack) {
		require.NoError(x.t, x.Hub.Proc.Stop(step(x.t)))
		x.Hub.Env = []string{failpoint.Variable + "=join-stored"}
		require.NoError(x.t, x.StartHub(step(x.t)))
		require.NoError(x.t, x.WaitReady(step(x.t), "n1", "n2"))
		token, err := x.Token(step(x.t), "s5")
		require.NoError(x.t, err)
		half, err := x.Prepare(NodeSpec{Name: "half", Site: "s5", Host: x.nodes[4].Host})
		require.NoError(x.t, err)
		_, err = half.Redeem(step(x.t), token, "--wait", "0")
		require.Error(x.t, err)
		require.Error(x.t, x.Hub.Proc.Wait(step(x.t)))
		x.Hub.Env = nil
		require.NoError(x.t, x.StartHub(step(x.t)))
		require.NoError(x.t, x.WaitReady(step(x.t), "n1", "n2"))
	}},
	{what: "a node's new key", do: func(x *hubSetBack) {
		x.cli("node", "rotate-key", "n1", "--wait", "--overlap", "0")
		x.again = []string{"n1"}
	}},
	{what: "two new keys of a node", do: func(x *hubSetBack) {
		x.cli("node", "rotate-key", "n2", "--wait", "--overlap", "0")
		require.NoError(x.t, lab.Wait(step(x.t), "n2 to have made two keys", func(ctx context.Context) error {
			_, err := x.Node("n2").Agent(ctx, "rotate-key", "--overlap", "0")
			return err
		}))
		x.again = []string{"n2"}
	}},
	{what: "the hub's new key", do: func(x *hubSetBack) {
		require.NoError(x.t, x.Hub.Proc.Stop(step(x.t)))
		_, err := x.Hub.Host.RunAs(step(x.t), lab.Nobody, x.Bin.Hub, "rotate-key", "--data-dir", x.Hub.Dir, "--overlap", "0")
		require.NoError(x.t, err)
		require.NoError(x.t, x.StartHub(step(x.t)))
		require.NoError(x.t, x.WaitReady(step(x.t), "n1", "n2"))
	}},
	{what: "a site", do: func(x *hubSetBack) { x.cli("site", "create", "s9", "--range", "10.99.0.0/16") }},
	{what: "a site's change", do: func(x *hubSetBack) { x.cli("site", "set", "s1", "--range", "10.1.0.0/16") }},
	{what: "a route's approval", do: func(x *hubSetBack) {
		n := x.Node("n1")
		require.NoError(x.t, n.Proc.Stop(step(x.t)))
		require.NoError(x.t, n.Configure([]string{"10.1.77.0/24"}, nil))
		require.NoError(x.t, n.Start())
		require.NoError(x.t, x.Approve(step(x.t), "n1", "10.1.77.0/24"))
		require.NoError(x.t, x.Node("n2").Installed(step(x.t), "10.1.77.0/24"))
	}, after: func(x *hubSetBack) { require.NoError(x.t, x.Approve(step(x.t), "n1", "10.1.77.0/24")) }},
	{what: "a node's new name", do: func(x *hubSetBack) {
		x.cli("node", "rename", "n4", "n9")
	}},
	{what: "an upgrade", before: func(x *hubSetBack) {
		old, err := before()
		require.NoError(x.t, err)
		require.NoError(x.t, x.ExchangeHub(step(x.t), old.Hub))
		x.HubBefore = true
		defer func() { x.HubBefore = false }()
		require.NoError(x.t, x.WaitReady(step(x.t), "n1", "n2"))
	}, do: func(x *hubSetBack) {
		require.NoError(x.t, x.ExchangeHub(step(x.t), x.Bin.Hub))
		require.NoError(x.t, x.WaitReady(step(x.t), "n1", "n2"))
		x.cli("site", "set", "s2", "--range", "10.2.0.0/16")
	}},
	{what: "a label", do: func(x *hubSetBack) { x.cli("node", "label", "n1", "rack=r1") }},
	{what: "a drain", do: func(x *hubSetBack) { x.cli("node", "drain", "n1") }},
	{what: "a revocation", do: func(x *hubSetBack) { x.cli("node", "revoke", "n3", "--yes", "--wait") },
		after: func(x *hubSetBack) { x.state("n3", api.NodeRevoked) }},
	{what: "a leave", do: func(x *hubSetBack) { require.NoError(x.t, x.Node("n4").Leave(step(x.t))) },
		after: func(x *hubSetBack) { x.state("n4", api.NodeRevoked, api.NodeLeft) }},
	{what: "a quarantine", do: func(x *hubSetBack) {
		clone, err := x.Prepare(NodeSpec{Name: "clone", Site: "s1", Host: x.nodes[3].Host})
		require.NoError(x.t, err)
		require.NoError(x.t, os.RemoveAll(clone.StateDir))
		copyLive(x.t, clone.StateDir, x.Node("n1").StateDir)
		require.NoError(x.t, clone.Start())
		require.NoError(x.t, lab.Wait(within(x.t, noticedWithin), "the quarantine", quarantined(x.System, "n1")))
		require.NoError(x.t, clone.Proc.Stop(step(x.t)))
	}},
}

// state waits until a node has one of these states.
func (x *hubSetBack) state(name string, states ...string) {
	x.t.Helper()
	require.NoError(x.t, lab.Wait(step(x.t), name+" to be "+strings.Join(states, " or "), func(ctx context.Context) error {
		all, err := x.Nodes(ctx)
		if err == nil && !slices.Contains(states, all[name].State) {
			err = errors.New(all[name].State)
		}
		return err
	}))
}

// The disk of a hub is set back to before whatever it stores. It finds out before it gives a
// number away, says so, and takes nothing until what it names has mended it; who has to join
// again says so, with the commands.
func TestHubIsSetBackAnywhere(t *testing.T) {
	t.Parallel()
	lab.Counts(t)
	l, host, nodes := smallHosts(t, 5)
	s := startSmall(t, l, host, nodes, "--listen-admin", ":7443")
	x := &hubSetBack{System: s, t: t, nodes: nodes, given: map[protocol.NodeNumber]string{}}
	if !soak() {
		x.join(1)
		x.join(2)
		x.try(hubPoints[2]) // a token changes no netmap
		return
	}
	// Before the first join nobody but the node that joined knows of it.
	first := hubPoint{what: "the first join", do: func(x *hubSetBack) {
		x.join(1)
		x.again = []string{"n1"}
	}, after: func(x *hubSetBack) { x.join(2) }}
	for _, p := range slices.Concat([]hubPoint{first}, hubPoints) {
		ok := t.Run(strings.ReplaceAll(p.what, " ", "-"), func(t *testing.T) {
			x.t = t
			x.try(p)
		})
		if !ok {
			t.Fatalf("set back to before %s: what follows would say nothing", p.what)
		}
	}
	require.NotZero(t, x.printed, "nobody joined again as doctor says")
	t.Logf("set back to before %d things: %d numbers given, none twice", len(hubPoints)+1, len(x.given))
}
