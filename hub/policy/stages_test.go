package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/api"
	"causeway/protocol"
)

// judged says what a node is told of connections from one address to another, where they begin or arrive.
func judged(t require.TestingT, e *Enforced, told *Enforcement, n protocol.NodeNumber, from, to netip.Addr, p protocol.Ports, arrives bool) bool {
	if told == nil {
		return true
	}
	a, known := e.UnitAt(n, from)
	b, known2 := e.UnitAt(n, to)
	g, has := told.Nodes[n]
	if !known || !known2 || !has {
		return false
	}
	for _, i := range told.Items[g] {
		var o protocol.Openings
		require.NoError(t, json.Unmarshal(i.Body, &o))
		require.NoError(t, o.Check())
		for _, r := range o.Rules {
			if !slices.Contains(r.From, uint32(a.Class)) || !slices.Contains(r.To, uint32(b.Class)) || r.Arrives && !arrives {
				continue
			}
			for _, text := range r.Allow {
				if ports(text).Has(p) {
					return true
				}
			}
		}
	}
	return false
}

// holdStages holds the stages of a change to what they promise, for each pair of addresses at each node.
func holdStages(t *rapid.T, before *Enforced, after *Compiled) []*Enforced {
	c := NewChange(before, after)
	stages := c.Stages()
	require.Equal(t, Whole, stages[len(stages)-1].Stage)
	var told []*Enforcement
	for _, s := range stages {
		e := s.Enforce()
		require.NoError(t, e.Check())
		told = append(told, e)
	}
	x := staged{t, c, stages, told, before.Enforce()}
	var addrs []netip.Addr
	for i := range 6 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, byte(i), 0, 1}), netip.AddrFrom4([4]byte{10, byte(i), 0, 130}), netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 2)}))
	}
	for _, from := range addrs {
		for _, to := range addrs {
			if from == to || after.Open {
				continue
			}
			for _, a := range after.UnitsOf(from) {
				for _, b := range after.UnitsOf(to) {
					if a.Realm == b.Realm {
						x.holds(from, to, a, b)
					}
				}
			}
		}
	}
	return stages
}

// staged are the stages of a change, and what nodes are told at each and before.
type staged struct {
	*rapid.T
	*Change
	stages []*Enforced
	told   []*Enforcement
	was    *Enforcement
}

// holds holds the stages to what they promise of connections from an address to another, in units of one realm.
func (x staged) holds(from, to netip.Addr, a, b Unit) {
	t, before := x.T, x.Before
	n, m := a.At[0], b.At[len(b.At)-1]
	// Who has another segment than before may open a moment early: order gives way to not cutting.
	old, _ := before.UnitAt(n, from)
	old2, _ := before.UnitAt(m, to)
	stayed := slices.Equal(old.At, a.At) && slices.Equal(old2.At, b.At)
	met := before.Open || before.RealmOf(n) == before.RealmOf(m) // or each may know another's address for the other's
	for _, text := range []string{"tcp/80", "tcp/75", "udp/80", "icmp"} {
		p := ports(text)
		want := slices.ContainsFunc(x.After.Allows(Pair{a.Class, b.Class}), func(x Allow) bool { return x.Has(p) })
		open := met && judged(t, before, x.was, n, from, to, p, false) && judged(t, before, x.was, m, from, to, p, true)
		if x.stages[0].Stage == Receiving && open {
			require.True(t, want, "%s to %s: it closes something", from, to)
		}
		for i, s := range x.stages {
			begins, arrives := judged(t, s, x.told[i], n, from, to, p, false), judged(t, s, x.told[i], m, from, to, p, true)
			what := fmt.Sprintf("%s: %s to %s, %s", s.Stage, from, to, text)
			require.False(t, (begins || arrives) && !want, "open in the end: %s", what)
			require.False(t, open && want && (!begins || !arrives), "a flow is cut: %s", what)
			require.False(t, begins && !arrives, "open where it begins first: %s", what)
			require.False(t, s.Stage >= Receiving && arrives != want || s.Stage == Whole && begins != want, what)
			if met && stayed && len(x.Was(a.Class)) == 1 && len(x.Was(b.Class)) == 1 && s.Stage == Closing && !before.Open {
				require.Equal(t, open && want, arrives, "late: %s", what)
			}
			if arrives && x.told[i] != nil {
				require.True(t, x.told[i].Talk(x.told[i].Nodes[n], x.told[i].Nodes[m]), "no peers: %s", what)
			}
		}
	}
}

// Each stage of a change opens what the whole opens and nothing else, cuts nothing that stays open, and opens nothing where it
// begins before where it arrives; so do those of a change that comes while another is under way.
func TestStages(t *testing.T) {
	allow := rapid.SliceOfN(rapid.SampledFrom([]string{"tcp/80", "tcp", "udp/80", "any", "tcp/81-90", "tcp/70-80", "icmp"}), 1, 2)
	rapid.Check(t, func(t *rapid.T) {
		in := generated(t)
		c, err := Compile(in, nil)
		require.NoError(t, err)
		before := c.All()
		for range 3 {
			if rapid.Bool().Draw(t, "another") {
				in = generated(t)
			} else if len(in.Policies) > 0 {
				rules := slices.Clone(in.Policies[0].Rules)
				for i := range rules {
					switch rapid.IntRange(0, 3).Draw(t, "what") {
					case 0:
						rules[i].Allow = allow.Draw(t, "allow")
					case 1:
						rules[i].From, rules[i].To = rules[i].To, rules[i].From
					}
				}
				in.Policies = []Policy{{"p", 0, api.PolicySpec{Rules: rules}}}
			}
			after, err := Compile(in, before.Compiled)
			require.NoError(t, err)
			stages := holdStages(t, before, after)
			before = stages[rapid.IntRange(0, len(stages)-1).Draw(t, "as far as")]
		}
	})
}

// A port more begins where it arrives, one less closes, and one for another does both; of what is no change there is one stage.
func TestStagesOfAPort(t *testing.T) {
	in := bank()
	with := func(allow ...string) Input {
		in := in
		in.Policies = slices.Clone(in.Policies)
		in.Policies[0].Rules = slices.Clone(in.Policies[0].Rules)
		in.Policies[0].Rules[0].Allow = allow
		return in
	}
	before := compile(t, with("tcp/5432"), nil)
	stages := func(before *Enforced, after Input) (out []Stage) {
		for _, s := range NewChange(before, compile(t, after, before.Compiled)).Stages() {
			out = append(out, s.Stage)
		}
		return out
	}
	require.Equal(t, []Stage{Whole}, stages(before.All(), with("tcp/5432")))
	require.Equal(t, []Stage{Receiving, Whole}, stages(before.All(), with("tcp/5432", "tcp/22")))
	require.Equal(t, []Stage{Closing, Receiving, Whole}, stages(before.All(), with("tcp/22")))
	require.Equal(t, []Stage{Whole}, stages(before.All(), Input{Now: today}))
	require.Equal(t, []Stage{Whole}, stages(compile(t, Input{Now: today}, nil).All(), in))
	none := with("tcp/5432")
	none.Policies[0].Rules = nil
	require.Equal(t, []Stage{Whole}, stages(before.All(), none))
	// What was late and did not open yet stays late.
	more := NewChange(before.All(), compile(t, with("tcp/5432", "tcp/22"), before)).Stages()
	require.Equal(t, []Stage{Receiving, Whole}, stages(more[0], with("tcp/5432", "tcp/22")))
	require.Equal(t, []Stage{Whole}, stages(more[1], with("tcp/5432", "tcp/22")))
}
