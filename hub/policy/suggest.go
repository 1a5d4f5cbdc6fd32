package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// Seen is a flow that somebody logged.
type Seen struct {
	Node            string // that logged it
	From, To        netip.Addr
	Proto           uint8
	Port            uint16
	Refused, Midway bool
	Count           uint64
}

// Bounds of a suggestion, which has to fit one object.
const (
	maxSuggested = 250 // rules
	maxTests     = 50
	maxPorts     = 32 // of one rule and protocol
)

// ErrNothingSeen says that there is nothing to make a policy of: one without rules closes everything.
var ErrNothingSeen = errors.New("no flow was logged that a rule could be made of; have nodes log them by a document of kind flowlog (causeway explain flowlog-file), and wait until what shall pass has passed")

// Suggest makes a policy that opens what was seen: one rule for two sides, with all ports between them. Sides are a node,
// a route of a site, a site all of whose addresses were seen, or the nodes that share a label when all of
// them were. It is pure.
func Suggest(name string, in Input, nodes []Node, seen []Seen, since, now time.Time) (api.PolicySuggestion, error) {
	s := &suggesting{nodes: nodes, places: NewPlaces(in, nodes), units: map[string]Place{}, pairs: map[walls]map[[2]string]portSet{}}
	s.take(seen)
	rules := s.rules()
	if len(rules) == 0 {
		return api.PolicySuggestion{}, ErrNothingSeen
	}
	out := api.PolicySuggestion{Document: api.PolicyDocument{Kind: "policy", Name: name}, Flows: s.flows, LeftOut: s.leftOut()}
	if more := len(rules) - maxSuggested; more > 0 {
		slices.SortStableFunc(rules, func(a, b *suggested) int { return cmp.Compare(b.count(), a.count()) })
		out.LeftOut = append(out.LeftOut, fmt.Sprintf("%d rules with the fewest flows: a policy takes no more; widen sides, and write several", more))
		rules = rules[:maxSuggested]
	}
	names := map[string]bool{}
	for _, r := range rules {
		r.rule(names)
		out.Document.Rules = append(out.Document.Rules, r.PolicyRule)
		if len(out.Document.Tests) < maxTests {
			out.Document.Tests = append(out.Document.Tests, api.PolicyTest{From: s.places.write(r.such.Node, r.such.From), To: s.places.write(r.such.Node, r.such.To), Port: allowOf(r.such), Want: "open"})
		}
	}
	out.YAML = suggestionText(out, rules, len(in.Policies) > 0, since, now)
	return out, nil
}

// walls are the segments of two sides.
type walls struct{ from, to string }

// portSet are ports that were seen, with a flow each and how many there are.
type portSet map[string]*port

type port struct {
	such  Seen
	flows int
}

func (p portSet) text() string { return strings.Join(slices.Sorted(maps.Keys(p)), " ") }

func (p portSet) add(q portSet) {
	for k, x := range q {
		if p[k] == nil {
			p[k] = &port{such: x.such}
		} else if cmp.Or(x.such.From.Compare(p[k].such.From), x.such.To.Compare(p[k].such.To)) < 0 {
			p[k].such = x.such
		}
		p[k].flows += x.flows
	}
}

type suggesting struct {
	nodes  []Node
	places *Places
	units  map[string]Place
	pairs  map[walls]map[[2]string]portSet // by the units of both sides
	flows  int

	refused, midway, unknown, apart int
	nobodys, walled                 Seen // one of unknown, of apart
}

// take sorts what was seen by the units of its ends.
func (s *suggesting) take(seen []Seen) {
	for _, f := range seen {
		from, ok1 := s.places.Of(f.Node, f.From)
		to, ok2 := s.places.Of(f.Node, f.To)
		w := walls{from.segment, to.segment}
		switch {
		case f.Refused:
			s.refused++
			continue
		case f.Midway:
			s.midway++
			continue
		case !ok1 || !ok2:
			s.unknown++
			s.nobodys = f
			continue
		case w.from == torn || w.to == torn || w.from != w.to && (w.from == Unassigned || w.to == Unassigned):
			s.apart++
			s.walled = f
			continue
		}
		s.flows++
		s.units[from.unit()], s.units[to.unit()] = from, to
		if s.pairs[w] == nil {
			s.pairs[w] = map[[2]string]portSet{}
		}
		k := [2]string{from.unit(), to.unit()}
		if s.pairs[w][k] == nil {
			s.pairs[w][k] = portSet{}
		}
		s.pairs[w][k].add(portSet{allowOf(f): {f, 1}})
	}
}

// leftOut says which flows are in no rule.
func (s *suggesting) leftOut() []string {
	out := []string{}
	for _, x := range []struct {
		n    int
		text string
	}{
		{s.refused, "refused"},
		{s.midway, "seen in their middle alone, so that it is not sure who began them"},
		{s.unknown, fmt.Sprintf("with an address that no node has now, such as %s to %s", s.nobodys.From, s.nobodys.To)},
		{s.apart, fmt.Sprintf("between a segment and what is in none, such as %s to %s: no rule opens that", s.walled.From, s.walled.To)},
	} {
		if x.n > 0 {
			out = append(out, fmt.Sprintf("%s %s", counted(x.n), x.text))
		}
	}
	return out
}

func counted(n int) string {
	if n == 1 {
		return "1 flow"
	}
	return fmt.Sprintf("%d flows", n)
}

// suggested is a rule with what it stands on.
type suggested struct {
	api.PolicyRule
	walls
	from, to end
	portSet  portSet
	such     Seen
}

func (r *suggested) count() (n int) {
	for _, p := range r.portSet {
		n += p.flows
	}
	return n
}

// end is a side, and what it is called in names.
type end struct {
	api.PolicyEndpoint
	name string
}

func (e end) text() string { return sideText(e.PolicyEndpoint) }

// rules puts units together to sides, first of who begins, and then of whom that reaches.
func (s *suggesting) rules() (out []*suggested) {
	for _, w := range slices.SortedFunc(maps.Keys(s.pairs), func(a, b walls) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) }) {
		type half struct {
			from end
			to   string
		}
		halves := map[[2]string]half{} // by text of from, and unit of to
		opened := map[[2]string]portSet{}
		byTo := map[string]map[string]portSet{}
		for k, p := range s.pairs[w] {
			if byTo[k[1]] == nil {
				byTo[k[1]] = map[string]portSet{}
			}
			byTo[k[1]][k[0]] = p
		}
		for to, of := range byTo {
			s.together(of, func(e end, p portSet) {
				k := [2]string{e.text(), to}
				if opened[k] == nil {
					halves[k], opened[k] = half{e, to}, portSet{}
				}
				opened[k].add(p)
			})
		}
		byFrom := map[string]map[string]portSet{}
		froms := map[string]end{}
		for k, h := range halves {
			if byFrom[k[0]] == nil {
				byFrom[k[0]] = map[string]portSet{}
			}
			byFrom[k[0]][h.to], froms[k[0]] = opened[k], h.from
		}
		for _, from := range slices.Sorted(maps.Keys(byFrom)) {
			rules := map[string]*suggested{}
			s.together(byFrom[from], func(e end, p portSet) {
				if rules[e.text()] == nil {
					rules[e.text()] = &suggested{walls: w, from: froms[from], to: e, portSet: portSet{}}
				}
				rules[e.text()].portSet.add(p)
			})
			for _, to := range slices.Sorted(maps.Keys(rules)) {
				out = append(out, rules[to])
			}
		}
	}
	return out
}

// together makes ends of units that have the same ports.
func (s *suggesting) together(of map[string]portSet, each func(end, portSet)) {
	same := map[string][]string{}
	for unit, p := range of {
		same[p.text()] = append(same[p.text()], unit)
	}
	for _, text := range slices.Sorted(maps.Keys(same)) {
		units := same[text]
		slices.Sort(units)
		for e, l := range s.cover(units) {
			p := portSet{}
			for _, u := range l {
				p.add(of[u])
			}
			each(e.end, p)
		}
	}
}

// covered is an end as a key.
type covered struct {
	text string
	end
}

// cover finds as few ends as mean the units.
func (s *suggesting) cover(units []string) map[*covered][]string {
	out := map[*covered][]string{}
	take := func(e end, l []string) {
		out[&covered{e.text(), e}] = l
		units = slices.DeleteFunc(units, func(u string) bool { return slices.Contains(l, u) })
	}
	for _, c := range s.wide(units) {
		l := slices.DeleteFunc(slices.Clone(units), func(u string) bool { return !c.has(s.units[u]) })
		if len(l) > 1 {
			take(c.end, l)
		}
	}
	for _, u := range slices.Clone(units) {
		p := s.units[u]
		e := end{api.PolicyEndpoint{Node: p.Node}, p.Node}
		if p.Node == "" {
			e = end{api.PolicyEndpoint{Site: p.Site, CIDR: p.Prefix}, p.Site}
		}
		take(e, []string{u})
	}
	return out
}

// wider is an end that means several units.
type wider struct {
	end
	has func(Place) bool
}

// wide are the ends of which all is among the units: sites, of which each address, and labels, of which each node.
func (s *suggesting) wide(units []string) (out []wider) {
	there := map[string]bool{}
	nodes := map[string]bool{}
	for _, u := range units {
		there[u] = true
		for _, n := range s.units[u].nodes {
			nodes[n.Name] = true
		}
	}
	sites, labels := map[string]bool{}, map[[2]string][]string{}
	for _, n := range s.nodes {
		if _, ok := sites[n.Site]; !ok {
			sites[n.Site] = true
		}
		sites[n.Site] = sites[n.Site] && there["node "+n.Name]
		for _, p := range n.Carries {
			sites[n.Site] = sites[n.Site] && there[routeUnit(s.places.realms[n.Name], p)]
		}
		for k, v := range n.Labels {
			labels[[2]string{k, v}] = append(labels[[2]string{k, v}], n.Name)
		}
	}
	for _, site := range slices.Sorted(maps.Keys(sites)) {
		if sites[site] {
			out = append(out, wider{end{api.PolicyEndpoint{Site: site}, site}, func(p Place) bool { return p.Site == site }})
		}
	}
	byText := func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(len(labels[b]), len(labels[a])), cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1]))
	}
	for _, l := range slices.SortedFunc(maps.Keys(labels), byText) {
		all := labels[l]
		if len(all) < 2 || slices.ContainsFunc(all, func(n string) bool { return !nodes[n] }) {
			continue
		}
		out = append(out, wider{end{api.PolicyEndpoint{Labels: map[string]string{l[0]: l[1]}}, l[1]}, func(p Place) bool {
			return !slices.ContainsFunc(p.nodes, func(n *Node) bool { return !slices.Contains(all, n.Name) })
		}})
	}
	return out
}

// rule writes the rule, under a name that none has yet.
func (r *suggested) rule(names map[string]bool) {
	base := nameOf(r.from.name) + "-to-" + nameOf(r.to.name)
	name := base
	for i := 2; names[name]; i++ {
		name = fmt.Sprintf("%s-%d", base, i)
	}
	names[name] = true
	r.PolicyRule = api.PolicyRule{Name: name, From: r.from.PolicyEndpoint, To: r.to.PolicyEndpoint, Allow: r.allow()}
	if r.walls.from != r.walls.to {
		r.Across = []string{r.walls.from, r.walls.to}
		slices.Sort(r.Across)
	}
	r.such = r.portSet[slices.Sorted(maps.Keys(r.portSet))[0]].such
}

// nameOf is text as names have it.
func nameOf(s string) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			return c
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		}
		return '-'
	}, s)
	s = strings.Trim(s[:min(len(s), 26)], "-")
	return cmp.Or(s, "x")
}

// allowOf is what opens a flow.
func allowOf(f Seen) string {
	switch text := protocol.PortText(f.Proto, f.Port); {
	case text == "icmp":
		return text
	case f.Port == 0 || f.Proto != uint8(protocol.ProtoTCP) && f.Proto != uint8(protocol.ProtoUDP):
		return "any"
	default:
		return text
	}
}

// allow are the ports, neighbours together, and all of a protocol where they are too many.
func (r *suggested) allow() (out []string) {
	var l []protocol.Ports
	for text := range r.portSet {
		if p, err := protocol.ParsePorts(text); err == nil {
			l = append(l, p)
		}
	}
	l = protocol.JoinPorts(l)
	for _, proto := range []protocol.Proto{protocol.ProtoAny, protocol.ProtoTCP, protocol.ProtoUDP, protocol.ProtoICMP} {
		of := slices.DeleteFunc(slices.Clone(l), func(p protocol.Ports) bool { return p.Proto != proto })
		if len(of) > maxPorts {
			of = []protocol.Ports{{Proto: proto, First: 1, Last: 65535}}
		}
		for _, p := range of {
			out = append(out, p.String())
		}
	}
	return out
}
