package reconcile

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/fleet"
	"causeway/hub/plan"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// ordered is a world of nodes 2, 3 and 4 with sessions and a policy.
type ordered struct {
	*world
	sessions map[number]*fleet.Session
	stop     func()
}

func newOrdered(t *testing.T, rules ...string) *ordered {
	w := &ordered{newWorld(t, 3, nil), map[number]*fleet.Session{}, nil}
	w.declare(rules...)
	for n := number(2); n <= 4; n++ {
		w.sessions[n] = w.up(n, protocol.Hello{})
	}
	w.stop = w.run()
	w.eventually(func() bool { return w.fleet.Netmaps() != nil }, "netmaps")
	for n := range w.sessions {
		w.take(n)
	}
	return w
}

// declare declares a policy of rules such as "2 3 tcp/80,icmp".
func (w *ordered) declare(rules ...string) {
	var l []string
	for _, r := range rules {
		f := strings.Fields(r)
		l = append(l, fmt.Sprintf(`{"name":"r%s-%s","from":{"node":"n%s"},"to":{"node":"n%s"},"allow":["%s"]}`, f[0], f[1], f[0], f[1], strings.ReplaceAll(f[2], ",", `","`)))
	}
	w.update("declare", func(d *state.Draft) error {
		return state.PutObject(d, protocol.ItemPolicy, "main", []byte(`{"rules":[`+strings.Join(l, ",")+`]}`))
	})
}

// take has a node take the newest netmaps.
func (w *ordered) take(n number) { w.fleet.Holds(w.sessions[n], w.fleet.Netmaps()) }

// told are the openings of a node by the newest netmaps: the rule, and whether it is for what arrives alone.
func (w *ordered) told(n number) (out []string) {
	m, ok := w.fleet.Netmaps().For(n)
	require.True(w.t, ok)
	for _, i := range m.Items {
		var o protocol.Openings
		require.NoError(w.t, json.Unmarshal(i.Body, &o))
		for _, r := range o.Rules {
			text := r.Rule + " " + strings.Join(r.Allow, ",")
			if r.Arrives {
				text += " arrives"
			}
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return out
}

// relays reports whether the relay forwards between two nodes.
func (w *ordered) relays(a, b number) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.nodes, func(n tunnel.HubNode) bool { return n.Number == a })
	j := slices.IndexFunc(w.nodes, func(n tunnel.HubNode) bool { return n.Number == b })
	return w.nodes[i].Class.Allows(w.nodes[j].Class)
}

func (w *ordered) reaches(s policy.Stage, with func(*plan.Netmaps) bool) {
	w.t.Helper()
	w.eventually(func() bool { return w.Stage() == s && with(w.fleet.Netmaps()) }, s.String())
}

// What opens is open where it arrives before where it begins, and what closes closes before both.
func TestOrderOfAChange(t *testing.T) {
	w := newOrdered(t, "2 3 tcp/80")
	require.Equal(t, policy.Whole, w.Stage(), "a start has no before")
	require.Equal(t, []string{"r2-3 tcp/80"}, w.told(2))

	w.declare("2 3 tcp/80,tcp/81")
	w.reaches(policy.Receiving, func(*plan.Netmaps) bool { return slices.Equal(w.told(3), []string{"r2-3 tcp/80,tcp/81 arrives"}) })
	require.Equal(t, []string{"r2-3 tcp/80"}, w.told(2))
	w.take(3)
	w.take(2)
	require.Equal(t, policy.Receiving, w.Stage(), "node 4 is told of the policy, too")
	w.take(4)
	w.reaches(policy.Whole, func(*plan.Netmaps) bool { return slices.Equal(w.told(2), []string{"r2-3 tcp/80,tcp/81"}) })
	for n := range w.sessions {
		w.take(n)
	}

	// Another pair in place of it: the relay closes before netmaps do, and opens when those who receive are told.
	before := w.fleet.Netmaps()
	w.declare("2 4 tcp/80")
	w.eventually(func() bool { return !w.relays(2, 3) }, "the relay closes")
	require.False(t, w.relays(2, 4))
	w.reaches(policy.Closing, func(v *plan.Netmaps) bool { return v != before })
	require.False(t, w.fleet.Netmaps().Knows(2, 3))
	require.False(t, w.fleet.Netmaps().Knows(4, 2))
	for n := range w.sessions {
		w.take(n)
	}
	w.reaches(policy.Receiving, func(v *plan.Netmaps) bool { return v.Knows(4, 2) && v.Knows(2, 4) })
	require.True(t, w.relays(2, 4))
	require.Equal(t, []string{"r2-4 tcp/80 arrives"}, w.told(4))
	require.Empty(t, w.told(2))

	// What is late stays so by a change that comes meanwhile.
	w.declare("2 4 tcp/80", "4 2 icmp")
	w.reaches(policy.Receiving, func(*plan.Netmaps) bool { return len(w.told(2)) == 1 })
	require.Equal(t, []string{"r4-2 icmp arrives"}, w.told(2))
	require.Equal(t, []string{"r2-4 tcp/80 arrives"}, w.told(4))
	for n := range w.sessions {
		w.take(n)
	}
	w.reaches(policy.Whole, func(*plan.Netmaps) bool { return len(w.told(4)) == 2 })
	require.Empty(t, w.fleet.Passed())
}

// Who does not answer holds nothing up beyond a bound, and is told; nor does who is away.
func TestOrderPassesWhoIsSilent(t *testing.T) {
	w := newOrdered(t, "2 3 tcp/80")
	w.fleet.Gone(w.sessions[4], false)
	w.declare("2 3 tcp/81")
	w.reaches(policy.Closing, func(*plan.Netmaps) bool { return len(w.told(2)) == 0 })
	start := time.Now()
	w.take(2) // and node 3 is silent
	w.reaches(policy.Receiving, func(*plan.Netmaps) bool { return len(w.told(3)) == 1 })
	require.InDelta(t, stageBound.Seconds(), time.Since(start).Seconds(), 2)
	require.Equal(t, []number{3}, w.fleet.Passed())
	w.take(2)
	w.reaches(policy.Whole, func(*plan.Netmaps) bool { return len(w.told(2)) == 1 })
	require.Equal(t, []number{3}, w.fleet.Passed(), "it is not waited for twice")
	w.take(3)
	require.Empty(t, w.fleet.Passed())
	w.stop()
	require.Equal(t, 1, strings.Count(w.log.String(), `"node":"n3"`))
}
