package service

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// What weighs most is said: a site that is lost before one that came in its place.
func TestReason(t *testing.T) {
	up, ready := "up", protocol.Ready
	for name, c := range map[string]struct {
		told, sites []string
		news        protocol.SwitchWhy
		a, b, c     Endpoint           // at sites a (here), b (n3) and c (n4)
		turn        protocol.SwitchWhy // of b
		stopped     bool
		want        string
	}{
		"b is silent":               {told: []string{"b"}, sites: []string{"c"}, b: Endpoint{Reach: "suspect", Readiness: ready}, c: Endpoint{Reach: up, Readiness: ready, Use: true}, want: "suspect b 10.2.0.1"},
		"b is dead":                 {told: []string{"b"}, sites: nil, b: Endpoint{Reach: "dead", Readiness: ready}, want: "dead b 10.2.0.1"},
		"b says no":                 {told: []string{"b"}, sites: []string{"c"}, b: Endpoint{Reach: up, Readiness: protocol.NotReady}, c: Endpoint{Reach: up, Readiness: ready, Use: true}, want: "not-ready b 10.2.0.1"},
		"here says no":              {told: []string{"a"}, sites: []string{"c"}, a: Endpoint{Reach: protocol.ReachLocal, Readiness: protocol.NotReady}, want: "not-ready a 10.1.0.1"},
		"b refused":                 {told: []string{"b"}, sites: []string{"c"}, b: Endpoint{Reach: up, Readiness: ready, Out: true}, c: Endpoint{Reach: up, Readiness: ready, Use: true}, want: "ejected b 10.2.0.1"},
		"its lease is over":         {told: []string{"b"}, sites: nil, stopped: true, b: Endpoint{Reach: up, Readiness: ready}, want: "lease b"},
		"silent, whatever was said": {told: []string{"b"}, sites: []string{"c"}, b: Endpoint{Reach: "suspect", Readiness: protocol.NotReady}, want: "suspect b 10.2.0.1"},
		"silent beside a change":    {told: []string{"b"}, sites: []string{"c"}, news: protocol.SwitchDeclared, b: Endpoint{Reach: "suspect"}, want: "suspect b 10.2.0.1"},
		"excluded":                  {told: []string{"b"}, sites: []string{"c"}, news: protocol.SwitchDeclared, b: Endpoint{Reach: up, Use: true}, want: "declared b"},
		"its container went":        {told: []string{"d"}, sites: []string{"c"}, news: protocol.SwitchEndpoints, want: "endpoints d"},
		"b is back":                 {told: []string{"c"}, sites: []string{"b", "c"}, b: Endpoint{Reach: up, Readiness: ready, Use: true}, turn: protocol.SwitchBack, want: "back b 10.2.0.1"},
		"b has all again":           {told: []string{"b", "c"}, sites: []string{"b"}, b: Endpoint{Reach: up, Readiness: ready, Use: true}, c: Endpoint{Reach: up, Readiness: ready, Use: true}, turn: protocol.SwitchBack, want: "share c"},
	} {
		p := here(t, protocol.Service{})[0]
		p.told, p.news, p.stopped = c.told, c.news, c.stopped
		p.endpoints[0].state, p.endpoints[1].state, p.endpoints[2].state = c.a, c.b, c.c
		p.endpoints[1].turn = c.turn
		why, site, x := p.reason(c.sites, func(*endpoint) time.Time { return time.Time{} })
		got := string(why) + " " + site
		if x != nil {
			got += " " + x.Addr.String()
		}
		require.Equal(t, c.want, got, name)
	}
}

// Of a site with several nodes the one that answered last says since when it is silent.
func TestReasonByTheLastAnswer(t *testing.T) {
	p := here(t, protocol.Service{})[0]
	p.endpoints[2].Site = "b"
	p.told = []string{"b"}
	at := time.Unix(1000, 0)
	_, _, x := p.reason(nil, func(x *endpoint) time.Time {
		x.state.Reach = Suspect.String()
		if x.node == 4 {
			return at.Add(time.Second)
		}
		return at
	})
	require.EqualValues(t, 4, x.node)
}

// The ring is bounded, counts what it lost, and gives up what a hub has.
func TestSwitchesRing(t *testing.T) {
	s := newSwitches()
	_, ok := s.Next()
	require.False(t, ok)
	for range maxKeptSwitches + 10 {
		s.add(protocol.ServiceSwitch{Service: "web"})
	}
	require.Len(t, s.changed, 1)
	n, next, left := 0, uint64(11), uint64(0)
	for {
		r, ok := s.Next()
		if !ok {
			break
		}
		require.Equal(t, next, r.Switches[0].Number)
		if n == 0 {
			s.add(protocol.ServiceSwitch{Service: "db"}) // while it is sent: the oldest goes, which is told all the same
		}
		s.Sent(r)
		left += r.LeftOut
		next = r.Switches[len(r.Switches)-1].Number + 1
		n += len(r.Switches)
	}
	require.Equal(t, maxKeptSwitches+1, n)
	require.EqualValues(t, 11, left)
	require.EqualValues(t, map[string]uint64{"web": maxKeptSwitches + 10, "db": 1, "none": 0}, s.count([]protocol.ServiceView{{Name: "web"}, {Name: "db"}, {Name: "none"}}))
}

// A report with the longest of everything is taken by a hub.
func TestReportFits(t *testing.T) {
	s := newSwitches()
	long := strings.Repeat("a", 63)
	sites := make([]string, 2*protocol.MaxSwitchSites)
	for i := range sites {
		sites[i] = long
	}
	for range protocol.MaxSwitches {
		s.add(protocol.ServiceSwitch{Service: long, Time: time.Now().UTC(), From: fewSites(sites), To: fewSites(sites), Site: long, Why: protocol.SwitchEndpoints, By: "node " + long, Addr: netip.MustParseAddr("fd00:1111:2222:3333:4444:5555:6666:7777"),
			Answered: time.Now().UTC(), Gap: gap(time.Unix(0, 0), time.Now()), Released: gap(time.Unix(0, 0), time.Now()), Flows: 1 << 30, Reset: 1 << 30, Doubts: true})
	}
	r, ok := s.Next()
	require.True(t, ok)
	require.NoError(t, r.Clean())
	b, err := json.Marshal(r)
	require.NoError(t, err)
	require.Less(t, len(b), protocol.MaxSwitchReport)
	require.Len(t, r.Switches, protocol.MaxSwitches)
}
