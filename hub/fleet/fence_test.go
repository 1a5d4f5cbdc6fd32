package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/service"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// Who has to have blocked the old site of a switch, by what is known of a node there.
func TestUnfenced(t *testing.T) {
	d := statetest.Cluster(t, 3)
	d.Epoch = 3
	n, other := d.Nodes.Get(2), d.Nodes.Get(3)
	require.NotNil(t, n.Statement)
	started := time.Unix(1e9, 0)
	now := started.Add(10 * time.Minute)
	o := state.Object{Kind: protocol.ItemService, Name: "db", Generation: 20}
	told := &service.Told{Nodes: map[protocol.NodeNumber]*service.Set{2: {Items: []*protocol.Item{{Kind: protocol.ItemService, Name: "db"}}}}, Services: map[string]*service.Result{}}
	declared := service.Declared{Name: "db", Epoch: 20, Service: protocol.Service{Mode: protocol.ServiceSingleWriter, Writer: n.Site, To: "elsewhere", Fenced: []string{n.Site}}}
	away := func(x Node) Node { x.Session = nil; return x }
	acked := Node{Session: NewSession(2, true), LastWord: now, Hello: protocol.Hello{AgentVersion: "v9", Features: []string{protocol.FeatureServiceFence}}, Acked: protocol.NetmapVersion{Epoch: 3, Version: 20},
		Status: protocol.Status{Fences: []protocol.ServiceFence{{Service: "db", Epoch: 20}}}}
	change := func(f func(*Node)) Node { x := acked; f(&x); return x }
	lease := protocol.Duration(time.Minute)
	after := func(d time.Duration) Node {
		return away(change(func(x *Node) { x.Status.Fences, x.LastWord = nil, now.Add(-d) }))
	}
	for _, c := range []struct {
		what   string
		x      Node
		lease  protocol.Duration
		before Remembered
		told   *service.Told
		waits  string // empty: it does not
		until  time.Duration
	}{
		{what: "it said so, and went", x: away(acked)},
		{what: "of another switch", x: away(change(func(x *Node) { x.Status.Fences = []protocol.ServiceFence{{Service: "db", Epoch: 19}} })), waits: "it is not connected, and has not said that it blocks"},
		{what: "of another service", x: away(change(func(x *Node) { x.Status.Fences = []protocol.ServiceFence{{Service: "web", Epoch: 20}} })), waits: "it is not connected"},
		{what: "of another log", x: away(change(func(x *Node) { x.Acked.Epoch = 2 })), waits: "it is not connected"},
		{what: "it has an older netmap", x: away(change(func(x *Node) { x.Acked.Version = 19 })), waits: "it is not connected"},
		{what: "its netmap is not known to have the service as it is", x: acked, waits: "it has not taken its netmap yet"},
		{what: "it cannot store it", x: away(change(func(x *Node) { x.Status.Conditions = []protocol.Condition{{Name: "state"}} })), waits: "it is not connected"},
		{what: "never seen", x: Node{}, waits: "it is not connected, and was not since the hub's start"},
		{what: "not told", x: away(acked), told: &service.Told{}},
		{what: "not told, but it carries a backend", x: away(acked), told: &service.Told{Services: map[string]*service.Result{"db": {Endpoints: []service.Endpoint{{Nodes: []protocol.NodeNumber{2}}}}}}, waits: "it is not connected"},
		{what: "its lease runs", x: after(time.Minute), lease: lease, waits: "it is not connected", until: 5 * time.Second},
		{what: "its lease is over", x: after(65 * time.Second), lease: lease},
		{what: "no lease", x: after(time.Hour), waits: "it is not connected"},
		{what: "an agent that keeps none", x: func() Node { x := after(time.Hour); x.Hello.Features = nil; return x }(), lease: lease, waits: "it is not connected"},
		{what: "one that kept it in the run before", x: Node{}, lease: lease, before: Remembered{Fences: true}},
		{what: "of which nothing is known since the hub's start", x: Node{}, lease: lease, waits: "it is not connected, and was not since the hub's start"},
		{what: "longer than the hub runs", x: Node{}, lease: protocol.Duration(10 * time.Minute), before: Remembered{Fences: true}, waits: "it is not connected", until: 5 * time.Second},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := Snapshot{Started: started}
			s.Nodes.Set(2, &c.x)
			s.Nodes.Set(3, &Node{})
			s.Before.Set(2, c.before)
			dd, tt := declared, told
			if dd.Lease = c.lease; c.told != nil {
				tt = c.told
			}
			if other.Site != n.Site {
				s.Nodes.Delete(3)
			}
			l := s.Unfenced(d.State, o, dd, tt, now)
			var of *Unfenced
			for i := range l {
				if l[i].Node == 2 {
					of = &l[i]
				}
			}
			if c.waits == "" {
				require.Nil(t, of, "%+v", l)
				return
			}
			require.NotNil(t, of)
			require.Contains(t, of.Why, c.waits)
			if c.until == 0 {
				require.Zero(t, of.Until)
			} else {
				require.Equal(t, c.until, of.Until.Sub(now), fmt.Sprint(of.Until))
			}
		})
	}

	// The fence is lifted when nobody is left that may use the old site, whoever said so when.
	s := Snapshot{Started: started}
	x := away(acked)
	s.Nodes.Set(2, &x)
	unaware := s.Unaware(d.State, o, declared, told)
	require.NotContains(t, unaware, protocol.NodeNumber(2))
	require.Contains(t, unaware, protocol.NodeNumber(3))
	x.Status.Fences = nil
	require.Contains(t, s.Unaware(d.State, o, declared, told), protocol.NodeNumber(2), "what was open there may be open still")
}
