package policy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// podRules has rules by n labels of pods.
func podRules(n int) Input {
	in := bank()
	for i := range n {
		in.Policies[0].Rules = append(in.Policies[0].Rules, api.PolicyRule{Name: fmt.Sprintf("pod-%d", i), From: api.PolicyEndpoint{Segment: "prod", Pods: map[string]string{fmt.Sprintf("l%d", i): "x"}},
			To: api.PolicyEndpoint{Site: "eu"}, Allow: []string{"tcp/22"}})
	}
	return in
}

func pod(node int, last byte, labels ...string) Pod {
	net := map[int]byte{2: 1, 3: 2}[node]
	p := Pod{Node: bank().Nodes[node-2].Number, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, net, last})}, Labels: map[string]string{}}
	for _, l := range labels {
		p.Labels[l] = "x"
	}
	return p
}

// Containers that share an address have the labels of each; where they differ, and where two nodes say that they have it, it is closed.
func TestSharedAddresses(t *testing.T) {
	in := podRules(2)
	in.Pods = []Pod{pod(2, 9, "l0"), pod(2, 9, "other"), pod(2, 8, "l1"), {Node: 2, Addrs: []netip.Addr{addr("10.1.1.8")}, Labels: map[string]string{"l1": "y"}},
		{Node: 3, Addrs: []netip.Addr{addr("192.168.7.9")}, Labels: map[string]string{"l0": "x"}}, {Node: 4, Addrs: []netip.Addr{addr("192.168.7.9")}, Labels: map[string]string{"l0": "x"}}}
	c := compile(t, in, nil)
	for from, open := range map[string]bool{"10.1.1.9": true, "10.1.1.8": false, "192.168.7.9": false} {
		v, err := c.Decide(addr(from), addr("10.2.1.9"), ports("tcp/22"))
		require.NoError(t, err)
		require.Equal(t, open, v.Open, from)
	}
	require.Equal(t, []string{"192.168.7.9 is said to be of pods at two nodes"}, c.Doubts)
}

// A node whose pods' labels tell too much apart takes nothing from others: what is beyond its share counts as without labels.
func TestPodBudget(t *testing.T) {
	in := podRules(200)
	for i := range 200 {
		in.Pods = append(in.Pods, pod(2, byte(i+10), fmt.Sprintf("l%d", i)))
	}
	in.Pods = append(in.Pods, pod(3, 9, "l199"))
	c := compile(t, in, nil)
	require.Equal(t, []string{"the labels of pods at node web-1 tell more than 64 classes apart; 136 pods count as ones without labels"}, c.Doubts)
	open := func(from string) bool {
		v, err := c.Decide(addr(from), addr("10.2.1.9"), ports("tcp/22"))
		require.NoError(t, err)
		return v.Open
	}
	require.True(t, open("10.1.1.10"))
	require.False(t, open("10.1.1.209"))
	require.True(t, open("10.1.2.9"), "another node's pod")
	of := func(c *Compiled, a string) ClassID {
		u := c.UnitsOf(addr(a))
		require.Len(t, u, 1)
		return u[0].Class
	}
	require.Equal(t, of(c, "10.1.1.3"), of(c, "10.1.1.209"))

	// All nodes together: those that tell most apart lose theirs, and the others' changes take effect.
	in = podRules(64)
	for i := range 40 {
		n := bank().Nodes[0]
		n.Number, n.Name = protocol.NodeNumber(100+i), fmt.Sprintf("n%d", i)
		n.Own, n.Carries = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 9, byte(i)}), 32)}, []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 50, byte(i), 0}), 24)}
		n.Labels = map[string]string{"own": fmt.Sprint(i)}
		in.Nodes = append(in.Nodes, n)
		in.Policies[0].Rules = append(in.Policies[0].Rules, api.PolicyRule{Name: fmt.Sprintf("own-%d", i), From: api.PolicyEndpoint{Labels: map[string]string{"own": fmt.Sprint(i)}}, To: api.PolicyEndpoint{Site: "eu"}, Allow: []string{"tcp/23"}})
		for j := range 64 {
			in.Pods = append(in.Pods, Pod{Node: n.Number, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 50, byte(i), byte(j + 5)})}, Labels: map[string]string{fmt.Sprintf("l%d", j): "x"}})
		}
	}
	in.Pods = append(in.Pods, pod(3, 9, "l3"))
	c = compile(t, in, nil)
	require.LessOrEqual(t, len(c.Classes), MaxClasses)
	require.NotEmpty(t, c.Doubts)
	require.Contains(t, c.Doubts[0], "there are more than 2000 classes of addresses; pods at node n")
	require.True(t, open("10.1.2.9"), "a node that tells little apart keeps it")
	require.NotEmpty(t, c.Pods())
}
