package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Meant is who a side of a rule means now.
type Meant struct {
	Classes  int
	Segments []string       // that they are in, by name; Unassigned is none
	Nodes    []string       // that have or carry some, by name
	Prefixes []netip.Prefix // in order
}

// Meaning is what a rule means now.
type Meaning struct {
	*Rule
	From, To Meant
	Ended    bool
	Why      string // it opens nothing; empty: it does, or says that it may be so
}

// Rules are all rules with who they mean, in the order of policies. Nobody changes them.
func (c *Compiled) Rules() []Meaning {
	c.once.meanings.Do(func() { c.mean = c.meanings() })
	return c.mean
}

func (c *Compiled) meanings() []Meaning {
	if !c.policies {
		return nil
	}
	of := map[string]*Meant{}
	nodes := map[string]map[string]bool{}
	for _, r := range c.rules {
		for _, s := range []string{r.From, r.To} {
			of[s], nodes[s] = &Meant{}, map[string]bool{}
		}
	}
	for _, k := range c.Classes {
		for _, s := range k.Sides {
			m := of[s]
			if m.Classes++; !slices.Contains(m.Segments, k.Segment) {
				m.Segments = append(m.Segments, k.Segment)
			}
		}
	}
	byNumber := c.byNumber()
	for _, u := range c.Units {
		for _, s := range c.byID[u.Class].Sides {
			of[s].Prefixes = append(of[s].Prefixes, u.Prefix)
			for _, n := range u.At {
				if name := byNumber[n].Name; !nodes[s][name] {
					nodes[s][name] = true
					of[s].Nodes = append(of[s].Nodes, name)
				}
			}
		}
	}
	for _, m := range of {
		slices.Sort(m.Nodes)
		slices.Sort(m.Segments)
	}
	out := make([]Meaning, len(c.rules))
	for i, r := range c.rules {
		out[i] = Meaning{Rule: r, From: *of[r.From], To: *of[r.To], Ended: !r.holds(c.now)}
		out[i].Why = c.whyNothing(out[i])
	}
	return out
}

// whyNothing says why a rule opens nothing, where that is not as it says itself.
func (c *Compiled) whyNothing(m Meaning) string {
	switch {
	case m.Ended:
		return "it ended with " + m.LastDay()
	case m.Empty:
		return ""
	case m.From.Classes == 0:
		return "from: " + c.nobody(m.from)
	case m.To.Classes == 0:
		return "to: " + c.nobody(m.to)
	}
	for _, a := range m.From.Segments {
		for _, b := range m.To.Segments {
			if m.joins(a, b) && a != torn && b != torn {
				return ""
			}
		}
	}
	return "no segment of its from and its to are joined by it: a wall is between them"
}

// nobody says why a side means nobody.
func (c *Compiled) nobody(s *side) string {
	if s.Node != "" && c.names[s.Node] == nil {
		return fmt.Sprintf("node %s is gone", s.Node)
	}
	return fmt.Sprintf("%s: no address of any node is meant", s.text)
}

// LastDay is the last day on which the rule holds; empty: for ever.
func (r *Rule) LastDay() string {
	if r.Until.IsZero() {
		return ""
	}
	return r.Until.AddDate(0, 0, -1).Format(lastDay)
}

// Rule finds what a rule means by POLICY/RULE, or by RULE if one alone is called so.
func (c *Compiled) Rule(name string) (Meaning, error) {
	var found []Meaning
	for _, m := range c.Rules() {
		_, rule := m.split()
		if m.Name == name {
			return m, nil
		}
		if rule == name {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 0:
		return Meaning{}, fmt.Errorf("there is no rule %.130q; see 'causeway policy show'", name)
	case 1:
		return found[0], nil
	}
	return Meaning{}, fmt.Errorf("%d policies have a rule %s; write POLICY/RULE, such as %s", len(found), name, found[0].Name)
}

// Tested counts the tests that want something open by a rule, by POLICY/RULE.
func (c *Compiled) Tested() map[string]int {
	out := map[string]int{}
	for _, p := range c.declared.Policies {
		for _, t := range p.Tests {
			switch {
			case t.By == "":
			case strings.Contains(t.By, "/"):
				out[t.By]++
			default:
				out[p.Name+"/"+t.By]++
			}
		}
	}
	return out
}

// End is one end of connections: addresses of one class.
type End struct {
	Prefix  netip.Prefix
	Segment string
	Sites   []string
	Nodes   []string
	Sides   []string // of rules that mean it
	class   *Class
}

// End finds what an address or a node's name means, in the family of an address of the other end, if that is one.
func (c *Compiled) End(name, other string) (End, error) {
	if c.Open {
		return End{}, nil
	}
	if strings.HasSuffix(name, "/*") {
		return End{}, fmt.Errorf("%.80q may be many; name an address or a node, or ask 'causeway policy test'", name)
	}
	u, found, err := c.place(name)
	if err != nil {
		return End{}, err
	}
	if n := c.names[name]; n != nil && !found {
		o, err := netip.ParseAddr(other)
		v6 := err == nil && o.Is6()
		for _, p := range n.Own {
			if x, ok := c.UnitAt(n.Number, p.Addr()); ok && (!found || p.Addr().Is6() == v6) {
				u, found = x, true
			}
		}
	}
	if !found {
		return End{}, fmt.Errorf("%.80q has no address", name)
	}
	k, byNumber := c.byID[u.Class], c.byNumber()
	e := End{Segment: k.Segment, Sides: k.Sides, class: k}
	e.Prefix = u.Prefix
	for _, n := range u.At {
		x := byNumber[n]
		if e.Nodes = append(e.Nodes, x.Name); !slices.Contains(e.Sites, x.Site) {
			e.Sites = append(e.Sites, x.Site)
		}
	}
	return e, nil
}

// Opened lists what is open from one end to another.
func (c *Compiled) Opened(a, b End) []Allow { return c.allows(c.opening(nil, a.class, b.class)) }

// Failing says which tests of the policies do not hold, or name what is not there any more.
func (c *Compiled) Failing() (out []string) {
	for _, p := range c.declared.Policies {
		for i := range p.Tests {
			if err := c.Test(p.Tests[i:i+1], false); err != nil {
				out = append(out, fmt.Sprintf("policy %s: %s", p.Name, err))
			}
		}
	}
	return out
}
