package main

import (
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func seenAt(at time.Time, l ...protocol.ServiceEndpointView) *protocol.ServicesView {
	return &protocol.ServicesView{Services: []protocol.ServiceView{{Name: "web", Endpoints: l}}, Counted: at}
}

func countedAt(addr, site string, slots, open int, begun, bytes uint64) protocol.ServiceEndpointView {
	return protocol.ServiceEndpointView{ServiceEndpoint: protocol.ServiceEndpoint{Addr: netip.MustParseAddr(addr), Site: site}, Slots: slots, Of: 64, Open: open, Half: 1, Begun: begun, Bytes: bytes, Counted: bytes > 0,
		RTT: time.Duration(slots) * time.Millisecond}
}

// Rates are of what lies between two answers of a node, by its own clock; a node that started anew has none, and one whose kernel
// counts no bytes is left out of their sum.
func TestServiceLoads(t *testing.T) {
	at := time.Unix(1000, 0)
	before := loads{views: map[string]*protocol.ServicesView{
		"a": seenAt(at, countedAt("10.1.0.1", "sh", 48, 5, 100, 1000), countedAt("10.2.0.1", "eu", 16, 1, 10, 0)),
		"b": seenAt(at, countedAt("10.1.0.1", "sh", 64, 1, 50, 0))}}
	now := loads{views: map[string]*protocol.ServicesView{
		"a": seenAt(at.Add(2*time.Second), countedAt("10.1.0.1", "sh", 48, 7, 120, 5000), countedAt("10.2.0.1", "eu", 16, 2, 13, 0)),
		"b": seenAt(at.Add(4*time.Second), countedAt("10.1.0.1", "sh", 64, 3, 7, 0)),
		"c": {Services: []protocol.ServiceView{{Name: "db"}}}}}
	l := serviceLoads(before, now)
	require.Len(t, l, 3)
	require.Equal(t, serviceLoad{Service: "db", Nodes: 1}, l[0], "nobody takes its connections")
	sh, eu := l[1], l[2]
	require.Equal(t, "sh", sh.Site)
	require.InDelta(t, 87.5, sh.Share, 0.01)
	require.Equal(t, 10, sh.Open)
	require.Equal(t, 2, sh.Half)
	require.InDelta(t, 10, *sh.New, 0.01, "b started anew")
	require.InDelta(t, 2000, *sh.Bytes, 0.01)
	require.InDelta(t, 0.048, sh.RTT, 0.0001)
	require.InDelta(t, 1.5, *eu.New, 0.01)
	require.Nil(t, eu.Bytes)
	require.Equal(t, 2, eu.Nodes)
	for _, x := range serviceLoads(loads{}, now) {
		require.Nil(t, x.New)
	}
}

// The screen draws what nodes say, and q ends it.
func TestServiceTopDrawsAndQuits(t *testing.T) {
	w := newTestWorld(t)
	n := w.nodes["sh-1"]
	n.mu.Lock()
	n.answers[protocol.DebugServices] = []byte(`{"services": [{"name": "web", "endpoints": [{"addr": "10.201.1.2", "site": "idc-sh", "slots": 48, "of": 64, "connections": 7}, {"addr": "10.202.1.2", "site": "cloud-eu", "slots": 16, "of": 64}]}]}`)
	n.mu.Unlock()
	keys, press := io.Pipe()
	var out screenBuffer
	done := make(chan error, 1)
	go func() {
		done <- runServiceTop(t.Context(), loadReader{hub: w.Client, service: protocol.ServicesCounted}, time.Second, false, tea.WithInput(keys), tea.WithOutput(&out), tea.WithWindowSize(80, 24), tea.WithEnvironment([]string{"TERM=xterm"}))
	}()
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "idc-sh") && strings.Contains(out.String(), "75 %") }, 10*time.Second, 10*time.Millisecond)
	_, err := press.Write([]byte("q"))
	require.NoError(t, err)
	require.NoError(t, <-done)
}
