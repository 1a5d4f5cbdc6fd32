package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/failpoint"
	"causeway/netns/lab"
	"causeway/protocol"
)

// nodeSetBack is a cluster of which node n1's disk is set back again and again.
type nodeSetBack struct {
	*hubSetBack
	n *smallNode
}

// nodePoint is something that a node forgets when it is set back.
type nodePoint struct {
	what   string
	before func(*nodeSetBack) // ahead of the copy
	do     func(*nodeSetBack)
	// words are what the node says then, and doctor what 'causeway doctor' says; none: it comes
	// back by itself, and has the key that the hub has.
	words, doctor []string
	outdated      bool               // words and doctor are those of a key that was rotated out
	cure          func(*nodeSetBack) // nil: it joins again, as its words say
	after         func(*nodeSetBack)
}

// rotated gives n1 a new key; the one so far is good no more.
func (x *nodeSetBack) rotated() {
	x.t.Helper()
	all, err := x.Nodes(step(x.t))
	require.NoError(x.t, err)
	before := all["n1"].KeyEpoch
	require.NoError(x.t, lab.Wait(step(x.t), "a new key", func(ctx context.Context) error {
		if _, err := x.n.Agent(ctx, "rotate-key", "--overlap", "0"); err != nil {
			return err
		}
		all, err := x.Nodes(ctx)
		if err == nil && all["n1"].KeyEpoch == before { // it was the rotation before that ended
			err = errState("the same key")
		}
		return err
	}))
}

// begin begins a rotation of n1 that no hub hears of, and end has it end.
func (x *nodeSetBack) begin() {
	x.t.Helper()
	require.NoError(x.t, x.Hub.Proc.Stop(step(x.t)))
	_, err := x.n.Agent(step(x.t), "rotate-key", "--overlap", "0")
	require.Error(x.t, err, "no hub has taken it")
}

func (x *nodeSetBack) end() {
	x.t.Helper()
	require.NoError(x.t, x.StartHub(step(x.t)))
	require.NoError(x.t, waitEpoch(x.t, x.System, "n1", x.newestKey()))
}

// newestKey is the epoch of the newest key in n1's state directory.
func (x *nodeSetBack) newestKey() uint32 {
	x.t.Helper()
	var id struct {
		Epoch uint32    `json:"key_epoch"`
		Next  *struct{} `json:"next"`
	}
	b, err := os.ReadFile(filepath.Join(x.n.StateDir, "identity.json"))
	require.NoError(x.t, err)
	require.NoError(x.t, json.Unmarshal(b, &id))
	if id.Next != nil {
		id.Epoch++
	}
	return id.Epoch
}

func (x *nodeSetBack) restart() {
	x.t.Helper()
	require.NoError(x.t, x.n.Proc.Stop(step(x.t)))
	require.NoError(x.t, x.n.Start())
}

// try sets n1 back to before p and has it mended, with what both sides say.
func (x *nodeSetBack) try(p nodePoint) {
	t := x.t
	t.Helper()
	if p.before != nil {
		p.before(x)
	}
	copied := x.n.StateDir + ".snapshot"
	x.n.Host.Sh(snapshotOf(x.n.StateDir, copied))
	p.do(x)
	x.n.Proc.Kill()
	x.n.Host.Sh("rm -rf " + x.n.StateDir + " && cp -a " + copied + " " + x.n.StateDir)
	if p.outdated {
		all, err := x.Nodes(step(t))
		require.NoError(t, err)
		here, hubs := x.newestKey(), all["n1"].KeyEpoch
		require.Less(t, here, hubs)
		p.words = []string{fmt.Sprintf("the hub knows this node by a newer key, of epoch %d", hubs), fmt.Sprintf("that of epoch %d", here), "set back to an earlier time, or is a copy",
			"causeway token create --site s1 --replace n1", "causeway-agent join --replace TOKEN"}
		p.doctor = []string{"n1: node-set-back", fmt.Sprintf("a host at 203.0.113.21 has its identity with key epoch %d, and the node's is %d", here, hubs), "causeway token create --site s1 --replace n1"}
	}
	start := time.Now()
	require.NoError(t, x.n.Start())
	if p.words == nil {
		conditionIs(t, x.n.Node, "control", true, "") // of this run: the hub may not have missed the one before yet
		require.NoError(t, x.WaitReady(step(t), "n1", "n2"))
		measured(t, "set back node is back", time.Since(start).Seconds(), 30)
	} else {
		says(t, x.n.Node, p.words...)
		measured(t, "set back node says so", time.Since(start).Seconds(), 20)
		x.doctor(p.doctor...)
		if p.cure != nil {
			p.cure(x)
		} else {
			x.rejoin(1)
		}
	}
	if p.after != nil {
		p.after(x)
	}
	x.works()
	all, err := x.Nodes(step(t))
	require.NoError(t, err)
	require.Equal(t, numberOf(t, x.n.Node), all["n1"].Number)
	t.Logf("%s: works again after %.1f s; said %q, doctor %q", p.what, time.Since(start).Seconds(), p.words, p.doctor)
}

// doctor waits until 'causeway doctor' says these words.
func (x *nodeSetBack) doctor(words ...string) {
	x.t.Helper()
	require.NoError(x.t, lab.Wait(step(x.t), "doctor", func(ctx context.Context) error {
		out, err := x.CLI(ctx, "doctor")
		if r := (*lab.RunError)(nil); errors.As(err, &r) {
			out = r.Stdout
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				return fmt.Errorf("no %q in %s", w, out)
			}
		}
		return nil
	}))
}

var nodePoints = []nodePoint{
	{what: "a new key", do: (*nodeSetBack).rotated, outdated: true},
	{what: "two new keys", do: func(x *nodeSetBack) { x.rotated(); x.rotated() }, outdated: true},
	{what: "the end of a rotation", before: (*nodeSetBack).begin, do: (*nodeSetBack).end},
	{what: "the end of a rotation, and another", before: (*nodeSetBack).begin, do: func(x *nodeSetBack) { x.end(); x.rotated() }, outdated: true},
	{what: "the hub's new key", do: func(x *nodeSetBack) {
		require.NoError(x.t, x.Hub.Proc.Stop(step(x.t)))
		_, err := x.Hub.Host.RunAs(step(x.t), lab.Nobody, x.Bin.Hub, "rotate-key", "--data-dir", x.Hub.Dir, "--overlap", "0")
		require.NoError(x.t, err)
		require.NoError(x.t, x.StartHub(step(x.t)))
		require.NoError(x.t, x.WaitReady(step(x.t), "n1", "n2"))
	}},
	{what: "a route's approval", do: func(x *nodeSetBack) {
		require.NoError(x.t, x.n.Configure([]string{"10.1.77.0/24"}, nil))
		x.restart()
		require.NoError(x.t, x.Approve(step(x.t), "n1", "10.1.77.0/24"))
		require.NoError(x.t, x.Node("n2").Installed(step(x.t), "10.1.77.0/24"))
	}, after: func(x *nodeSetBack) {
		require.NoError(x.t, x.Node("n2").Installed(step(x.t), "10.1.77.0/24"))
	}},
	{what: "a label", do: func(x *nodeSetBack) { x.cli("node", "label", "n1", "rack=r1") },
		after: func(x *nodeSetBack) {
			all, err := x.Nodes(step(x.t))
			require.NoError(x.t, err)
			require.Equal(x.t, "r1", all["n1"].Labels["rack"])
		}},
	{what: "an upgrade", before: func(x *nodeSetBack) {
		old, err := before()
		require.NoError(x.t, err)
		x.n.bin = old.Agent // which joins: an older agent gets no session of a node that proved itself once
		x.rejoin(1)
	}, do: func(x *nodeSetBack) {
		require.NoError(x.t, x.n.Exchange(step(x.t), x.Bin.Agent))
		require.NoError(x.t, x.WaitReady(step(x.t), "n1", "n2"))
		x.cli("node", "label", "n1", "rack=r2")
	}},
	{what: "a peer's new key", do: func(x *nodeSetBack) {
		x.cli("node", "rotate-key", "n2", "--wait", "--overlap", "0")
		require.NoError(x.t, Ping(step(x.t), x.n.Pod.Host, x.nodes[1].Pod.V4))
	}},
	{what: "a peer's revocation", before: func(x *nodeSetBack) { x.join(3) }, do: func(x *nodeSetBack) {
		x.cli("node", "revoke", "n3", "--yes", "--wait")
	}, after: func(x *nodeSetBack) {
		require.NoError(x.t, x.Node("n3").Proc.Stop(step(x.t)))
		require.Error(x.t, PingOnce(step(x.t), x.n.Pod.Host, x.nodes[2].Pod.V4))
	}},
	{what: "a range that is held closed", before: func(x *nodeSetBack) {
		require.NoError(x.t, x.Node("n2").Configure([]string{"10.2.88.0/24"}, nil))
		require.NoError(x.t, x.Node("n2").Proc.Stop(step(x.t)))
		require.NoError(x.t, x.Node("n2").Start())
		require.NoError(x.t, x.Approve(step(x.t), "n2", "10.2.88.0/24"))
		require.NoError(x.t, x.n.Installed(step(x.t), "10.2.88.0/24"))
	}, do: func(x *nodeSetBack) {
		require.NoError(x.t, x.Node("n2").Configure(nil, nil))
		require.NoError(x.t, x.Node("n2").Proc.Stop(step(x.t)))
		require.NoError(x.t, x.Node("n2").Start())
		says(x.t, x.n.Node, "10.2.88.0/24 since")
	}, after: func(x *nodeSetBack) {
		says(x.t, x.n.Node, "10.2.88.0/24 since")
		_, err := x.n.Agent(step(x.t), "release", "10.2.88.0/24")
		require.NoError(x.t, err)
	}},
	{what: "a revocation", do: func(x *nodeSetBack) {
		x.cli("node", "revoke", "n1", "--yes")
		says(x.t, x.n.Node, "this node was revoked")
	}, words: []string{"was revoked: if this host's disk was set back", "this node was revoked: no peer is reached", "causeway token create --site s1'"},
		doctor: []string{"n1: node-set-back", "which is gone (revoked)", "causeway token create --site s1,"}},
	{what: "a leave and a join", do: func(x *nodeSetBack) {
		require.NoError(x.t, x.n.Leave(step(x.t)))
		x.join(1)
	}, words: []string{"left the cluster, and another node has its name", "causeway token create --site s1 --replace n1"},
		doctor: []string{"n1: node-set-back", "which is gone (left)", "n1: node-unreachable"}},
	{what: "a join in its place", do: func(x *nodeSetBack) { x.rejoin(1) },
		words:  []string{"was revoked, and another node has its name", "causeway token create --site s1 --replace n1"},
		doctor: []string{"n1: node-set-back", "which is gone (revoked)"}},
	{what: "a new key, by a copy beside the node", do: (*nodeSetBack).copied},
	{what: "the end of a join", do: (*nodeSetBack).half},
	// The last: the hub is elsewhere then.
	{what: "the hub's new address", do: func(x *nodeSetBack) {
		const other = "203.0.113.2"
		x.Hub.Host.Sh("ip addr add " + other + "/24 dev eth0")
		require.NoError(x.t, x.Hub.Proc.Stop(step(x.t)))
		x.Hub.Public = other
		require.NoError(x.t, x.StartHub(step(x.t)))
		require.NoError(x.t, x.WaitReady(step(x.t), "n1", "n2"))
		for _, n := range []*smallNode{x.n, x.nodes[1]} {
			require.NoError(x.t, lab.Wait(step(x.t), "the new address at "+n.Name, func(ctx context.Context) error {
				out, err := n.Agent(ctx, "hubs", "show")
				if err == nil && !strings.Contains(out, other) {
					err = errors.New(out)
				}
				return err
			}))
		}
		x.Hub.Host.Sh("ip addr del " + HubAddr + "/24 dev eth0; ip addr replace " + other + "/24 dev eth0")
	}, words: []string{"no hub answers at " + HubAddr, "causeway-agent hubs set"}, doctor: []string{"n1: node-unreachable"}, cure: func(x *nodeSetBack) {
		list := filepath.Join(x.n.Host.Dir(), "hubs.json")
		require.NoError(x.t, os.WriteFile(list, []byte(x.cli("hubs", "list", "-o", "json")), 0o644))
		_, err := x.n.Agent(step(x.t), "hubs", "set", "@"+list, "--state-dir", x.n.StateDir)
		require.NoError(x.t, err)
	}},
}

// copied starts a copy of an earlier state of n1 on another host, while n1 runs with a newer key.
func (x *nodeSetBack) copied() {
	t := x.t
	clone, err := x.Prepare(NodeSpec{Name: fmt.Sprintf("copy-%d", x.tried), Site: "s1", Host: x.nodes[3].Host})
	require.NoError(t, err)
	copyLive(t, clone.StateDir, x.n.StateDir)
	x.rotated()
	require.NoError(t, clone.Start())
	says(t, clone, "the hub knows this node by a newer key", "or is a copy of the node's")
	x.doctor("n1: node-set-back", "beside the node, a host at 203.0.113.24 has its identity", "stop the agent there")
	require.NoError(t, Ping(step(t), x.n.Pod.Host, x.nodes[1].Pod.V4), "the node itself goes on")
	x.state("n1", api.NodeReady)
	require.NoError(t, clone.Proc.Stop(step(t)))
	x.n.Host.Sh(snapshotOf(x.n.StateDir, x.n.StateDir+".snapshot")) // of now: n1 itself is not set back
}

// half sets another host back to amid its join: the same token gives it the identity that it had.
func (x *nodeSetBack) half() {
	t := x.t
	require.NoError(t, x.Hub.Proc.Stop(step(t)))
	x.Hub.Env = []string{failpoint.Variable + "=join-stored"}
	require.NoError(t, x.StartHub(step(t)))
	require.NoError(t, x.WaitReady(step(t), "n1", "n2"))
	token, err := x.Token(step(t), "s4")
	require.NoError(t, err)
	n, err := x.Prepare(NodeSpec{Name: "half", Site: "s4", Host: x.nodes[3].Host})
	require.NoError(t, err)
	_, err = n.Redeem(step(t), token, "--wait", "0")
	require.Error(t, err)
	require.Error(t, x.Hub.Proc.Wait(step(t)))
	x.Hub.Env = nil
	require.NoError(t, x.StartHub(step(t)))
	copied := n.StateDir + ".snapshot"
	n.Host.Sh(snapshotOf(n.StateDir, copied))
	_, err = n.Redeem(step(t), token)
	require.NoError(t, err)
	x.joined(n)
	number := numberOf(t, n)
	for _, rotated := range []bool{false, true} {
		require.NoError(t, n.Start())
		require.NoError(t, x.WaitReady(step(t), n.Name))
		if rotated {
			x.cli("node", "rotate-key", n.Name, "--wait", "--overlap", "0")
		}
		require.NoError(t, n.Proc.Stop(step(t)))
		n.Host.Sh("rm -rf " + n.StateDir + " && cp -a " + copied + " " + n.StateDir)
		require.NoError(t, n.Start())
		require.Error(t, n.Proc.Wait(step(t)))
		require.Contains(t, n.Proc.Output(), "holds no identity; run 'causeway-agent join TOKEN' first")
		_, err = n.Redeem(step(t), token)
		if rotated {
			require.Contains(t, failed(t, err).Stderr, "'causeway token create' makes a new token")
			require.Contains(t, x.cli("audit"), "used already by node half")
			break
		}
		require.NoError(t, err, "the same token and key")
		require.Equal(t, number, numberOf(t, n))
	}
	token, err = x.Token(step(t), "s4", "--replace", "half")
	require.NoError(t, err)
	_, err = n.Redeem(step(t), token, "--replace")
	require.NoError(t, err)
	x.joined(n)
	require.NoError(t, n.Start())
	require.NoError(t, x.WaitReady(step(t), n.Name))
	require.NoError(t, n.Leave(step(t)))
}

// The disk of a node is set back to before whatever it stores. It comes back by itself, or both
// sides say what happened and which command helps; a key that was rotated out is not taken again.
func TestNodeIsSetBackAnywhere(t *testing.T) {
	t.Parallel()
	lab.Counts(t)
	s, nodes := newSmall(t, 4)
	x := &nodeSetBack{hubSetBack: &hubSetBack{System: s, t: t, nodes: nodes, given: map[protocol.NodeNumber]string{}}}
	x.join(1)
	x.join(2)
	x.n = nodes[0]
	if !soak() {
		x.try(nodePoints[0])
		require.Equal(t, 1, x.printed, "it did not join again as doctor says")
		return
	}
	for _, p := range nodePoints {
		ok := t.Run(strings.ReplaceAll(p.what, " ", "-"), func(t *testing.T) {
			x.t = t
			x.try(p)
		})
		if !ok {
			t.Fatalf("set back to before %s: what follows would say nothing", p.what)
		}
	}
	t.Logf("set back to before %d things: %d numbers given, none twice", len(nodePoints), len(x.given))
}

// snapshotOf is a script that copies the directory of a program that may run, and may replace a file
// meanwhile: then it begins anew.
func snapshotOf(dir, to string) string {
	return fmt.Sprintf("for i in 1 2 3 4 5; do rm -rf %[2]s; cp -a %[1]s %[2]s && exit 0; done; exit 1", dir, to)
}
