package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// What policies close is tried with packets: proven while all walls stand, and not when they are opened by hand.
func TestProve(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 3)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	_, err := s.CLI(step(t), "policy", "prove")
	require.ErrorContains(t, err, "nothing is closed")
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	require.NoError(t, os.WriteFile(policy, []byte("kind: segment\nname: prod\nsites: [s1, s2]\n---\nkind: segment\nname: dev\nsites: [s3]\n---\nkind: policy\nname: main\nrules:\n"+
		"- {name: one, from: {site: s1}, to: {site: s2}, allow: [icmp, tcp/7002]}\n- {name: lab, across: [dev, prod], from: {segment: dev}, to: {site: s2}, allow: [icmp]}\n"), 0o600))
	_, err = s.CLI(step(t), "apply", "-f", policy)
	require.NoError(t, err)

	// All that is closed is seen to be, by each layer that there is.
	n := 0
	prove := func(args ...string) (p protocol.PolicyProof, out string, err error) {
		t.Helper()
		n++
		file := filepath.Join(s.Hub.Host.Dir(), fmt.Sprintf("proof-%d.json", n))
		out, err = s.CLI(step(t), append([]string{"policy", "prove", "--file", file}, args...)...)
		t.Log(out)
		if err != nil {
			t.Log(err)
		}
		b, rerr := os.ReadFile(file)
		require.NoError(t, rerr)
		var signed protocol.SignedPolicyProof
		require.NoError(t, json.Unmarshal(b, &signed))
		p, rerr = signed.Open()
		require.NoError(t, rerr)
		return p, out, err
	}
	start := time.Now()
	p, out, err := prove("--open")
	require.NoError(t, err)
	measured(t, "policy prove, 3 nodes", time.Since(start).Seconds(), 60)
	require.Contains(t, out, "\nproven: ")
	require.Positive(t, p.Summary.Closed)
	require.Equal(t, []int{0, 0, 0}, []int{p.Summary.Arrived, p.Summary.NotTried, p.Summary.Lost})
	layers, forward, families := map[string]bool{}, map[bool]bool{}, map[bool]bool{}
	for _, x := range p.Pairs {
		if x.Result == protocol.ProofClosed {
			layers["first "+x.Layer], layers["second "+x.Second] = true, true
		}
		if x.Tried.FromNode != "" {
			forward[x.Seen.Forward], families[x.Tried.To.Is4()] = true, true
		}
	}
	require.True(t, layers["first "+protocol.LayerSender] && layers["second "+protocol.LayerReceiver] && layers["second "+protocol.LayerPeers], "%v", layers)
	require.False(t, layers["second "], "what is behind the sender's wall was not tried: %v", layers)
	require.Len(t, forward, 2, "of hosts and of pods")
	require.Len(t, families, 2)

	// Whoever keeps it can check it; whoever changes it cannot.
	file := filepath.Join(s.Hub.Host.Dir(), "proof-1.json")
	out, err = s.CLI(step(t), "policy", "verify", file, "--cluster", p.Cluster[:16])
	require.NoError(t, err)
	require.Contains(t, out, "\nproven: ")
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file+".bad", []byte(strings.Replace(string(b), `"closed"`, `"open"`, 1)), 0o600))
	_, err = s.CLI(step(t), "policy", "verify", file+".bad")
	require.ErrorContains(t, err, "bad signature")
	out, err = s.CLI(step(t), "audit")
	require.NoError(t, err)
	require.Contains(t, out, "policy prove: proven; ")

	// The receiver's wall is opened by hand: the sender's alone stops it.
	hole := func(i int, dev string) {
		nodes[i-1].Host.Sh(`nft add table inet hole; nft 'add chain inet hole c { type filter hook prerouting priority -150; }'; nft add rule inet hole c iifname ` + dev + ` meta mark set 0x5e`)
	}
	hole(2, "cw0")
	p, _, err = prove()
	require.ErrorContains(t, err, "ARRIVED")
	why := func() map[string]int {
		out := map[string]int{}
		for _, x := range p.Pairs {
			if x.Result == protocol.ProofArrived {
				require.Equal(t, "n2", x.Tried.ToNode)
				out[x.Why]++
			}
		}
		return out
	}
	require.Len(t, why(), 1)
	require.Positive(t, why()["only the sender's own wall stops it: what was sent past that arrived"])
	require.False(t, p.Summary.Proven)

	// The sender's, too.
	hole(1, "pods0")
	p, _, err = prove()
	require.ErrorContains(t, err, "ARRIVED")
	require.Positive(t, why()["it passed both walls"])
	for _, i := range []int{1, 2} {
		nodes[i-1].Host.Sh("nft delete table inet hole")
	}

	// A trial whose packets arrive nowhere shows nothing.
	nodes[1].Host.Sh(`nft add table inet hole; nft 'add chain inet hole c { type filter hook prerouting priority -150; }'; nft add rule inet hole c iifname cw0 ip saddr '{ 10.0.0.0/8, 198.18.0.2, 198.18.0.4 }' drop; nft add rule inet hole c iifname cw0 ip6 saddr '{ fd10::/16, fd63:7761:7900::2, fd63:7761:7900::4 }' drop`)
	p, _, err = prove()
	require.ErrorContains(t, err, "not proven")
	require.Zero(t, p.Summary.Arrived)
	require.Zero(t, p.Summary.Open)
	nodes[1].Host.Sh("nft delete table inet hole")

	// Broken off, it leaves nothing.
	trial := func() (there bool) {
		for _, n := range nodes {
			there = there || strings.Contains(n.Host.Sh("nft list tables"), "causeway-trial")
		}
		return there
	}
	run, err := s.Hub.Host.Start(lab.Program{Name: "prove", Args: []string{s.Bin.CLI, "--socket", s.Hub.Socket, "policy", "prove"}})
	require.NoError(t, err)
	require.NoError(t, Wait(t, func() error {
		if !trial() {
			return fmt.Errorf("no trial goes on")
		}
		return nil
	}))
	run.Signal(syscall.SIGINT)
	require.Error(t, run.Wait(step(t)))
	require.NoError(t, Wait(t, func() error {
		if out, err := s.CLI(step(t), "audit"); err != nil || !strings.Contains(out, "not proven") {
			return fmt.Errorf("it still goes on: %v", err)
		}
		if trial() {
			return fmt.Errorf("a table of the trial is there")
		}
		return nil
	}))

	// A pair with nobody there is not tried, and that is told.
	require.NoError(t, nodes[2].Node.Proc.Stop(step(t)))
	require.NoError(t, Wait(t, func() error {
		p, _, err = prove()
		if err == nil || p.Summary.NotTried == 0 {
			return fmt.Errorf("node n3 is still taken for connected")
		}
		for _, x := range p.Pairs {
			if x.Result == protocol.ProofNotTried && x.Why != "node n3 is not connected" { // it went away meanwhile
				return fmt.Errorf("pair not tried: %s", x.Why)
			}
		}
		return nil
	}))
	require.Zero(t, p.Summary.Arrived)
	require.Contains(t, strings.Join(p.Summary.Reasons, "; "), "could not be tried")
	require.NoError(t, Wait(t, func() error { // an agent tries its host's firewalls with such a table as well
		for _, n := range nodes[:2] {
			if l := n.Host.Sh("nft list tables; tc filter show dev cw0 ingress"); strings.Contains(l, "causeway-trial") || strings.Contains(l, "mirred") {
				return fmt.Errorf("something is left: %s", l)
			}
		}
		return nil
	}))
}
