package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"causeway/protocol"
)

// MaxPodClasses bounds the classes that the labels of one node's pods tell apart beside all others: no node takes them from
// others by what it says of its pods.
const MaxPodClasses = 64

// Pods are the pods that were taken into account.
func (c *Compiled) Pods() []Pod { return c.declared.Pods }

// AsksPods reports whether rules of policies mean pods by their labels.
func AsksPods(policies []Policy) bool {
	for _, p := range policies {
		for _, r := range p.Rules {
			if len(r.From.Pods)+len(r.To.Pods) > 0 {
				return true
			}
		}
	}
	return false
}

// said is what nodes say of the pod at an address.
type said struct {
	node    *Node
	labels  map[string]string
	around  *piece // whose address it would be without
	twice   bool   // by two nodes
	unclear map[string]bool
}

// addPods makes pieces of pods' addresses that a side means by labels. What a node says of a pod counts within what it
// carries itself, and not where another node says that it has that address. Containers that share an address have the labels of each, but for those in which
// they differ.
func (m *matcher) addPods(all pieces, around func(netip.Prefix) []*piece) {
	nodes := map[protocol.NodeNumber]*Node{}
	for i := range m.in.Nodes {
		nodes[m.in.Nodes[i].Number] = &m.in.Nodes[i]
	}
	type key struct {
		prefix netip.Prefix
		realm  string
	}
	pods := map[key]*said{}
	for _, pod := range m.in.Pods {
		n := nodes[pod.Node]
		if n == nil {
			continue
		}
		realm := m.realm(n)
		for _, a := range pod.Addrs {
			p := netip.PrefixFrom(a, a.BitLen())
			q := all.of(p, realm)
			if l := around(p); q == nil {
				if i := slices.IndexFunc(l, func(o *piece) bool { return o.realm == realm }); i >= 0 {
					q = l[i]
				}
			}
			if q == nil || q.own || !slices.Contains(q.at, n) {
				continue
			}
			switch had := pods[key{p, realm}]; {
			case had == nil:
				pods[key{p, realm}] = &said{node: n, labels: maps.Clone(pod.Labels), around: q, unclear: map[string]bool{}}
			case had.node != n:
				had.twice = true
			default:
				had.add(pod.Labels)
			}
		}
	}
	for k, s := range pods {
		switch {
		case s.twice:
			m.doubts = append(m.doubts, fmt.Sprintf("%s is said to be of pods at two nodes", k.prefix.Addr()))
		case slices.ContainsFunc(m.sides, func(x *side) bool { return len(x.Pods) > 0 && hasAll(s.labels, x.Pods) }):
			others := slices.DeleteFunc(all[k.prefix], func(o *piece) bool { return o.realm == k.realm })
			all[k.prefix] = append(others, &piece{prefix: k.prefix, realm: k.realm, at: []*Node{s.node}, pod: s.labels, around: s.around})
		}
	}
}

func (s *said) add(labels map[string]string) {
	if s.labels == nil {
		s.labels = map[string]string{}
	}
	for k, v := range labels {
		if had, ok := s.labels[k]; ok && had != v {
			s.unclear[k] = true
		}
		s.labels[k] = v
	}
	for k := range s.unclear {
		delete(s.labels, k)
	}
}

// plain has a pod's address count as any other of what it is in.
func (p *piece) plain() { p.at, p.own, p.pod = p.around.at, p.around.own, nil }

// budgetPods has pods beyond what labels may tell apart count as ones without labels, which opens nothing: those of a node
// beyond MaxPodClasses, and all of the nodes that tell most apart, until there are no more than MaxClasses. keys are those of
// the units' classes, which it keeps right.
func (m *matcher) budgetPods(units []*piece, keys []string, keyOf func(*piece) string) {
	base := map[string]bool{}
	for i, u := range units {
		if u.pod == nil {
			base[keys[i]] = true
		}
	}
	plain := func(i int) {
		units[i].plain()
		keys[i] = keyOf(units[i])
		base[keys[i]] = true
	}
	extra := map[*Node]map[string][]int{} // units, by the class that they alone have
	surplus := map[*Node]int{}
	for i, u := range units {
		if u.pod == nil || base[keys[i]] {
			continue
		}
		n := u.at[0]
		if extra[n] == nil {
			extra[n] = map[string][]int{}
		}
		if extra[n][keys[i]] == nil && len(extra[n]) == MaxPodClasses {
			surplus[n]++
			plain(i)
			continue
		}
		extra[n][keys[i]] = append(extra[n][keys[i]], i)
	}
	for n, k := range surplus {
		m.doubts = append(m.doubts, fmt.Sprintf("the labels of pods at node %s tell more than %d classes apart; %d pods count as ones without labels", n.Name, MaxPodClasses, k))
	}
	nodes := slices.SortedFunc(maps.Keys(extra), func(a, b *Node) int {
		return cmp.Or(cmp.Compare(len(extra[b]), len(extra[a])), cmp.Compare(b.Number, a.Number))
	})
	for _, n := range nodes {
		total := maps.Clone(base)
		for _, l := range extra {
			for k := range l {
				total[k] = true
			}
		}
		if len(total) <= MaxClasses {
			return
		}
		for _, l := range extra[n] {
			for _, i := range l {
				plain(i)
			}
		}
		delete(extra, n)
		m.doubts = append(m.doubts, fmt.Sprintf("there are more than %d classes of addresses; pods at node %s, which tell most apart, count as ones without labels", MaxClasses, n.Name))
	}
}
