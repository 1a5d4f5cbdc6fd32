package explain

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// asked is well, asked for by a service: b1's pod has 48 of 64 slots, a1's own the others.
func asked(t *testing.T) *Facts {
	f := well()
	here := protocol.ServiceEndpointView{ServiceEndpoint: protocol.ServiceEndpoint{Addr: netip.MustParseAddr("10.1.1.12"), Site: "s-a1"}, Reach: protocol.ReachLocal, Ready: "ready", Use: true, Slots: 16, Of: 64}
	there := protocol.ServiceEndpointView{ServiceEndpoint: protocol.ServiceEndpoint{Addr: addrB, Site: "s-b1"}, Node: "b1", Reach: "up", Ready: "ready", Use: true, Slots: 48, Of: 64, Answered: 120 * time.Millisecond}
	f.Service = &Service{Name: "web", Segment: "shop", VIP: netip.MustParseAddr("198.19.0.9"), Port: 80, Target: 443, Ports: "tcp/80", Told: true, View: &protocol.ServiceView{Name: "web", Endpoints: []protocol.ServiceEndpointView{here, there}}}
	f.AskedPort = 80
	x, ok := f.Service.Choice(false)
	require.True(t, ok)
	require.Equal(t, addrB, x.Addr)
	_, ok = f.Service.Choice(true)
	require.False(t, ok)
	f.Chosen = &api.ServiceChoice{Service: "web", VIP: f.Service.VIP, Port: 80, Addr: x.Addr, Target: 443, Site: x.Site, Node: x.Node, Slots: x.Slots, Of: x.Of}
	return f
}

// nobody has no backend take connections, as each of them is seen.
func nobody(f *Facts, see func(e *protocol.ServiceEndpointView)) {
	for i := range f.Service.View.Endpoints {
		e := &f.Service.View.Endpoints[i]
		e.Use, e.Slots = false, 0
		see(e)
	}
	f.Chosen.Slots = 0
}

func bare(f *Facts) {
	f.Chosen, f.To = nil, End{Asked: "web", Kind: KindService, Addr: f.Service.VIP}
}

func TestDecideService(t *testing.T) {
	f := asked(t)
	x := Decide(*f)
	require.Empty(t, x.Faults)
	require.Equal(t, f.Chosen, x.Service)
	i := slices.IndexFunc(x.Hops, func(h api.ExplainHop) bool { return h.Name == HopService })
	require.Equal(t, api.ExplainHop{Name: HopService, State: api.HopOK, Note: "198.19.0.9 port 80 to 10.2.1.11 port 443 at s-b1, as 48 of 64 slots"}, x.Hops[i])

	for _, c := range []struct {
		causes []string
		node   string
		seen   string
		breaks func(*Facts)
	}{
		{[]string{"service-no-port"}, "", "", func(f *Facts) { f.Service.Port, f.AskedPort = 0, 81; bare(f) }},
		{[]string{"service-agent-too-old"}, "a1", "", func(f *Facts) { f.Service.TooOld, f.Service.View = true, nil; bare(f) }},
		{[]string{"service-not-told"}, "a1", "", func(f *Facts) { f.Service.Told, f.Service.View = false, nil; bare(f) }},
		{[]string{"service-empty"}, "", "", func(f *Facts) { f.Service.View.Endpoints = nil; bare(f) }},
		{[]string{"service-not-ready"}, "", "10.2.1.11 at s-b1: node b1 is up and says: not ready (refused); it answered 120ms ago", func(f *Facts) {
			nobody(f, func(e *protocol.ServiceEndpointView) { e.Ready, e.Cause = "not ready", "refused" })
		}},
		{[]string{"service-unreached"}, "a1", "10.2.1.11 at s-b1: node b1 is suspect and says: ready; it answered 1.3s ago", func(f *Facts) {
			nobody(f, func(e *protocol.ServiceEndpointView) { e.Reach, e.Answered = "suspect", 1300*time.Millisecond })
		}},
		{[]string{"service-table"}, "a1", "write table: busy", func(f *Facts) {
			f.From.Evidence.Conditions = append(f.From.Evidence.Conditions, protocol.Condition{Name: "services", Cause: "write table: busy"})
		}},
		// What it follows from comes first.
		{[]string{"agent-killed", "service-unreached"}, "b1", "", func(f *Facts) {
			nobody(f, func(e *protocol.ServiceEndpointView) { e.Reach = "dead" })
			gone(&f.To)
			f.To.Connected, f.From.Evidence.Ways, f.From.Evidence.Underlay.PeerPort = false, nil, "closed"
		}},
		{[]string{"no-listener", "service-not-ready"}, "b1", "", func(f *Facts) {
			nobody(f, func(e *protocol.ServiceEndpointView) { e.Ready = "not ready" })
			f.From.Evidence.Connect.Result = protocol.ConnectRefused
			f.To.Evidence.Pod.Spaces[0].Listeners, f.To.Evidence.Pod.Connect.Result = nil, protocol.ConnectRefused
		}},
	} {
		f := asked(t)
		c.breaks(f)
		x := Decide(*f)
		var causes []string
		for _, y := range x.Faults {
			if y.Blocks {
				causes = append(causes, y.Cause)
			}
		}
		require.Equal(t, c.causes, causes, "%+v", x.Faults)
		require.Equal(t, c.node, x.Faults[0].Node, c.causes)
		require.NotEmpty(t, x.Faults[0].Mend)
		if c.seen != "" {
			require.Contains(t, x.Faults[0].Evidence, c.seen)
		}
	}

	f = asked(t)
	f.Service.View, f.Service.Error = nil, "it does not answer"
	bare(f)
	x = Decide(*f)
	require.Empty(t, x.Faults)
	require.Equal(t, api.HopUnknown, x.Hops[i].State)
}

// The threat: an agent that was taken over says what it likes of services. Nothing of it writes on a terminal.
func FuzzParseServices(f *testing.F) {
	f.Add([]byte(`{"services":[{"name":"web","endpoints":[{"addr":"10.1.0.1","site":"a\u001b","reach":"up","ready":"ready","cause":"x\ny"}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseServices(b)
		if err != nil {
			return
		}
		for _, e := range v.Endpoints {
			text := strings.Join([]string{e.Site, e.Name, e.Node, e.Reach, e.Ready, e.Cause, e.Why}, "")
			require.Equal(t, protocol.Printable(text), text)
			require.Empty(t, e.Addr.Zone())
		}
	})
}
