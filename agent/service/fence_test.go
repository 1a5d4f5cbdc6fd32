package service

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/agent/items"
	svc "causeway/netns/service"
	"causeway/protocol"
)

func TestOverdue(t *testing.T) {
	s := protocol.Service{Mode: protocol.ServiceSingleWriter, Writer: "a", Lease: protocol.Duration(15 * time.Second)}
	for _, c := range []struct {
		what string
		site string
		c    contact
		want bool
	}{
		{"heard just now", "a", contact{heard: true}, false},
		{"to the end", "a", contact{ago: 15 * time.Second, heard: true}, false},
		{"over", "a", contact{ago: 15*time.Second + 1, heard: true}, true},
		{"of another site", "b", contact{ago: time.Hour, heard: true}, false},
		{"just started, and an earlier agent's table stands", "a", contact{runs: settleTime}, false},
		{"started, and no hub for some time", "a", contact{runs: settleTime + 1}, true},
		{"just started, and nothing stands", "a", contact{bare: true}, true},
	} {
		require.Equal(t, c.want, overdue(s, c.site, c.c), c.what)
	}
	s.Lease = 0
	require.False(t, overdue(s, "a", contact{ago: time.Hour, heard: true}), "no lease")
}

// single is a single-writer with a backend at site a and one at site b; this node has the former.
func single(change func(*protocol.ServiceItem)) []*placed {
	i := protocol.ServiceItem{Service: protocol.Service{Mode: protocol.ServiceSingleWriter, Writer: "a", Ports: []protocol.ServicePort{{Port: 80, Target: 8080}}, VIP4: netip.MustParseAddr("198.19.0.1")},
		Epoch: 7, Endpoints: []protocol.ServiceEndpoint{{Addr: netip.MustParseAddr("10.1.0.1"), Site: "a"}, {Addr: netip.MustParseAddr("10.2.0.1"), Site: "b"}}}
	change(&i)
	s, err := i.Normal()
	if err != nil {
		panic(err)
	}
	i.Service = s
	l := place(time.Now(), View{Services: []items.Service{{Name: "db", ServiceItem: i}}, Local: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}, nil)
	return l
}

func TestFenceOf(t *testing.T) {
	here := svc.Backend{Proto: 6, Addr: netip.MustParseAddrPort("10.1.0.1:8080")}
	left := func(a string) svc.Left {
		return svc.Left{VIP: netip.MustParseAddr("198.19.0.1"), Proto: 6, Port: 80, Backend: netip.MustParseAddr(a)}
	}
	said := []protocol.ServiceFence{{Service: "db", Epoch: 7}}
	for _, c := range []struct {
		what    string
		site    string
		change  func(*protocol.ServiceItem)
		stopped bool
		blocked bool
		left    []svc.Left
		said    []protocol.ServiceFence
		serves  bool
	}{
		{what: "it serves", site: "a", change: func(*protocol.ServiceItem) {}, left: []svc.Left{left("10.2.0.1")}, serves: true},
		{what: "leaving", site: "a", change: func(i *protocol.ServiceItem) { i.To, i.Fenced = "b", []string{"a"} }, blocked: true, left: []svc.Left{left("10.1.0.1"), left("10.2.0.1")}, said: said},
		{what: "leaving, seen from elsewhere", site: "c", change: func(i *protocol.ServiceItem) { i.To, i.Fenced = "b", []string{"a"} }, left: []svc.Left{left("10.1.0.1"), left("10.2.0.1")}, said: said},
		{what: "left", site: "a", change: func(i *protocol.ServiceItem) { i.Writer, i.Fenced = "b", []string{"a"} }, blocked: true, left: []svc.Left{left("10.1.0.1")}, said: said, serves: true},
		{what: "left, and all know", site: "a", change: func(i *protocol.ServiceItem) { i.Writer = "b" }, left: []svc.Left{left("10.1.0.1")}, serves: true},
		{what: "its lease is over", site: "a", change: func(*protocol.ServiceItem) {}, stopped: true, blocked: true, left: []svc.Left{left("10.1.0.1"), left("10.2.0.1")}},
		{what: "of another mode", site: "a", change: func(i *protocol.ServiceItem) { i.Mode, i.Writer = protocol.ServiceSpread, "" }, serves: true},
	} {
		t.Run(c.what, func(t *testing.T) {
			l := single(c.change)
			l[0].stopped = c.stopped
			f := fenceOf(l, c.site)
			require.Equal(t, c.blocked, f.backends[here])
			require.Equal(t, c.blocked, f.targets[target{"db", here.Addr.Addr()}])
			require.Len(t, f.left, len(c.left))
			for _, x := range c.left {
				require.True(t, f.left[x], x)
			}
			require.Equal(t, c.said, f.said)
			require.Len(t, f.news(&fence{}), len(c.left))
			require.Empty(t, f.news(f))

			// Nobody serves at a moment at which both might, whatever else is known; not even where a node doubts itself.
			sight := sight{now: time.Now(), site: c.site, frozen: true, ready: func(string, *endpoint) protocol.Readiness { return protocol.Ready },
				reach: func(protocol.NodeNumber) (ReachState, bool) { return Up, false }}
			l[0].endpoints[1].node = 3
			l[0].families[0].slots = []int{0} // of before
			l[0].judge(sight)
			l[0].slotsOf(&l[0].families[0], sight)
			require.Equal(t, c.serves, l[0].families[0].slots != nil)
		})
	}
}

// standing is a table of which the test says what becomes of it.
type standing struct {
	Table
	fenced bool
	ended  error
	ends   int
	order  []string
}

func (s *standing) Fence([]svc.Backend, []svc.Left) error {
	s.order = append(s.order, "fence")
	return nil
}
func (s *standing) Switch([]svc.Service, []svc.Backend) error {
	s.order = append(s.order, "switch")
	return nil
}
func (s *standing) Release(context.Context, []svc.Backend) (int, error) { return 0, nil }
func (s *standing) Fenced() bool                                        { return s.fenced }
func (s *standing) Lacks() []string                                     { return nil }
func (s *standing) End(_ context.Context, l []svc.Left) (int, error) {
	s.ends += len(l)
	s.order = append(s.order, "end")
	return 0, s.ended
}

// An agent says that it fenced when the kernel does so and what was open has ended, and not before.
func TestSaysFenced(t *testing.T) {
	table := &standing{ended: errors.New("no room")}
	told := 0
	e := New(Config{Table: table, Told: func() { told++ }, Moved: func() {}, Fault: func(string) {}, Path: func(protocol.NodeNumber) bool { return false }, Log: zerolog.Nop()})
	e.view, e.fresh = &View{Site: "a"}, true
	e.placed = single(func(i *protocol.ServiceItem) { i.To, i.Fenced = "b", []string{"a"} })
	decide := func() []protocol.ServiceFence {
		table.order = nil
		e.decide(t.Context(), time.Now())
		return e.Fences()
	}
	require.Empty(t, decide())
	require.Equal(t, []string{"fence", "switch", "end"}, table.order, "what is written anew is fenced before it is asked")
	require.True(t, e.fresh, "it tries again")
	table.ended = nil
	require.Empty(t, decide())
	require.True(t, e.fresh)
	before := told
	table.fenced = true
	require.Equal(t, []protocol.ServiceFence{{Service: "db", Epoch: 7}}, decide())
	require.Equal(t, 4, table.ends, "twice two")
	require.Equal(t, before+1, told)
	decide()
	require.Equal(t, before+1, told)
}
