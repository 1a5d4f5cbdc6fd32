package object

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"causeway/hub/api"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

// Kinds of who may talk to whom.
const (
	SegmentKind = "segment"
	PolicyKind  = "policy"
)

// talk checks segments and policies: together they say who may talk to whom.
var talk = &state.Together{Check: checkPolicies, Gone: checkTests}

type segments struct{}

func (segments) Kind() string    { return SegmentKind }
func (segments) Shape() uint32   { return 1 }
func (segments) Essential() bool { return true }

func (segments) Canonical(spec json.RawMessage) (json.RawMessage, error) {
	var s api.SegmentSpec
	if err := state.ReadStrictly(spec, &s); err != nil {
		return nil, err
	}
	if len(s.Sites) == 0 && len(s.Labels) == 0 {
		return nil, errors.New("say which nodes belong to it, by sites or labels")
	}
	for _, site := range s.Sites {
		if !protocol.ValidName(site) {
			return nil, fmt.Errorf("sites: %.80q cannot name a site", site)
		}
	}
	if err := protocol.CheckLabels(s.Labels); err != nil {
		return nil, fmt.Errorf("labels: %w", err)
	}
	slices.Sort(s.Sites)
	s.Sites = slices.Compact(s.Sites)
	return json.Marshal(s)
}

func (segments) Check(st *state.State, o state.Object) error {
	if o.Name == policy.UnassignedItem {
		return state.Errorf(state.Invalid, "%s is what nodes are in that no segment has; choose another name", o.Name)
	}
	return state.Found(st, segments{}.Names(o))
}

func (segments) Names(o state.Object) (out []state.ObjectKey) {
	s, err := specOf[api.SegmentSpec](o)
	if err != nil {
		return nil
	}
	for _, site := range s.Sites {
		out = append(out, state.ObjectKey{Kind: state.KindSite, Name: site})
	}
	return out
}

func (segments) Guard(st *state.State) error { return guardTalk(st) }
func (policies) Guard(st *state.State) error { return guardTalk(st) }

func (segments) Together() *state.Together { return talk }

func (segments) Realms(st *state.State) []state.Realms { return realms(st) }

// realms are those of what is declared, and those that it may go back to. Where something of it is not known all are one,
// as nothing may be planned then.
func realms(st *state.State) (out []state.Realms) {
	for _, kind := range []string{SegmentKind, PolicyKind} {
		if slices.ContainsFunc(st.ObjectsOf(kind), func(o state.Object) bool { return !o.Known() }) {
			return nil
		}
	}
	in := policy.Input{}
	declared(Talk(st), &in)
	out = append(out, policy.NewRealms(in.Segments, in.Policies))
	if p := Confirming(st); p != nil {
		in = policy.Input{}
		declared(p.goesBackTo(st), &in)
		out = append(out, policy.NewRealms(in.Segments, in.Policies))
	}
	return out
}

type policies struct{}

func (policies) Kind() string    { return PolicyKind }
func (policies) Shape() uint32   { return 1 }
func (policies) Essential() bool { return true }

func (policies) Canonical(spec json.RawMessage) (json.RawMessage, error) {
	var p api.PolicySpec
	if err := state.ReadStrictly(spec, &p); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, w := range p.Rules {
		if _, err := policy.ReadRule("", w); err != nil {
			return nil, err
		}
		if seen[w.Name] {
			return nil, fmt.Errorf("there are two rules %s", w.Name)
		}
		seen[w.Name] = true
	}
	return json.Marshal(p)
}

// Check: what a policy names may be declared after it, by the same apply.
func (policies) Check(*state.State, state.Object) error { return nil }

func (policies) Names(o state.Object) (out []state.ObjectKey) {
	p, err := specOf[api.PolicySpec](o)
	if err != nil {
		return nil
	}
	seen := map[state.ObjectKey]bool{}
	add := func(kind, name string) {
		if k := (state.ObjectKey{Kind: kind, Name: name}); name != "" && !seen[k] {
			seen[k] = true
			out = append(out, k)
		}
	}
	for _, r := range p.Rules {
		for _, s := range r.Across {
			add(SegmentKind, s)
		}
		for _, e := range []api.PolicyEndpoint{r.From, r.To} {
			add(SegmentKind, e.Segment)
			add(state.KindSite, e.Site)
			add(state.KindNode, e.Node)
		}
	}
	return out
}

func (policies) Together() *state.Together { return talk }

func (policies) Realms(st *state.State) []state.Realms { return realms(st) }

// Hear: each node is told what of a policy concerns it, and be it nothing.
func (policies) Hear(st *state.State, _ state.Object) (out []protocol.NodeNumber) {
	for _, n := range st.LiveNodes() {
		out = append(out, n.Number)
	}
	return out
}

// checkPolicies holds all segments and policies together to what they say of themselves.
func checkPolicies(st *state.State, now time.Time) error {
	in := PolicyInput(st, nil, now)
	for _, o := range st.ObjectsOf(PolicyKind) {
		if err := state.Found(st, policies{}.Names(o)); err != nil {
			return state.Errorf(state.Invalid, "%s: %s", o.Key(), err)
		}
	}
	c, err := policy.Compile(in, nil)
	if err != nil {
		return state.Errorf(state.Invalid, "%s", err)
	}
	if len(c.Doubts) > 0 {
		return state.Errorf(state.Conflict, "%s; one alone may have it", c.Doubts[0])
	}
	if err := cmp.Or(c.Over(st.Seq+1), c.Met(st.Seq+1)); err != nil {
		return state.Errorf(state.Invalid, "%s", err)
	}
	if err := c.Enforce().Check(); err != nil {
		return state.Errorf(state.Full, "%s", err)
	}
	return testPolicies(st, c, in)
}

func testPolicies(st *state.State, c *policy.Compiled, in policy.Input) error {
	for _, p := range in.Policies {
		if err := c.Test(p.Tests, p.Generation <= st.Seq); err != nil {
			return state.Errorf(state.Invalid, "policy %s: %s", p.Name, err)
		}
	}
	return nil
}

// checkTests holds what is left of segments and policies to their tests alone: whoever mends a doubt may have to take away one
// thing after the other.
func checkTests(st *state.State, now time.Time) error {
	in := PolicyInput(st, nil, now)
	c, err := policy.Compile(in, nil)
	if err != nil {
		return nil // it was no better before
	}
	return testPolicies(st, c, in)
}

// PolicyInput is what policies are compiled from: of a state, and of the pods that nodes have now.
func PolicyInput(st *state.State, pods []policy.Pod, now time.Time) policy.Input {
	in := policy.Input{Now: now, Pods: pods}
	declared(Talk(st), &in)
	if len(in.Segments)+len(in.Policies) > 0 {
		in.Nodes = PolicyNodes(st)
	}
	return in
}

// PolicyNodes are the nodes of a state with what policies may ask of them, by number.
func PolicyNodes(st *state.State) (out []policy.Node) {
	carries := map[protocol.NodeNumber][]netip.Prefix{}
	for _, r := range st.Routes.All() {
		if r.Carried() {
			carries[r.Node] = append(carries[r.Node], r.Prefix)
		}
	}
	for _, n := range st.LiveNodes() {
		overlay, err := st.OverlayOf(n.Number)
		if err != nil {
			continue
		}
		x := policy.Node{Number: n.Number, Name: n.Name, Site: n.Site, Labels: n.Labels, Carries: carries[n.Number]}
		for _, a := range overlay {
			x.Own = append(x.Own, netip.PrefixFrom(a, a.BitLen()))
		}
		out = append(out, x)
	}
	return out
}

// declared adds segments and policies.
func declared(l []state.Object, in *policy.Input) {
	for _, o := range l {
		switch o.Kind {
		case SegmentKind:
			if s, err := specOf[api.SegmentSpec](o); err == nil {
				in.Segments = append(in.Segments, policy.Segment{Name: o.Name, Generation: o.Generation, SegmentSpec: s})
			}
		case PolicyKind:
			if p, err := specOf[api.PolicySpec](o); err == nil {
				in.Policies = append(in.Policies, policy.Policy{Name: o.Name, Generation: o.Generation, PolicySpec: p})
			}
		}
	}
}
