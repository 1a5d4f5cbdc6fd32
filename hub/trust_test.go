package hub

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// Two agents with one identity are shut off until an admin decides.
func TestQuarantine(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir)
	w.site("a", "10.0.0.0/8")
	one, two := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"})
	a := w.dial(one, func(h *protocol.Hello) { h.Routes = prefixes("10.1.0.0/16") })
	b := w.dial(two, nil)
	b.until("one", func(n protocol.Netmap) bool { return len(routesOf(n, "one")) == 1 })
	n := one.answer.Number
	show := func() (node api.Node) { w.must("GET", "/v1/nodes/one", nil, &node); return node }
	for i := range 20 { // restarts
		w.booted(n, protocol.BootID{byte(i), 1})
	}
	b.until("one", func(n protocol.Netmap) bool { return len(n.Peers) == 1 })
	require.NotEqual(t, api.NodeQuarantined, show().State)
	for i := range 4 {
		w.booted(n, protocol.BootID{byte(i % 2), 2})
	}
	require.Eventually(t, func() bool { return show().State == api.NodeQuarantined }, patience, time.Millisecond)
	require.Contains(t, show().Reasons[0], "two hosts")
	b.until("one gone", func(n protocol.Netmap) bool { return len(n.Peers) == 0 })
	a.until("alone", func(n protocol.Netmap) bool { return len(n.Peers) == 0 })
	require.True(t, w.tun.Alone(n), "the relay forwards nothing for it")

	w.stop() // it outlives the hub's process
	w = start(t, dir)
	require.Equal(t, api.NodeQuarantined, show().State)
	b = w.dial(two, nil)
	var node api.Node
	w.must("POST", "/v1/nodes/one/release", nil, &node)
	require.NotEqual(t, api.NodeQuarantined, node.State)
	b.until("one again", func(n protocol.Netmap) bool { return len(routesOf(n, "one")) == 1 })
	require.Eventually(t, func() bool { return !w.tun.Alone(n) }, patience, time.Millisecond)
	code, detail := w.call("POST", "/v1/nodes/one/release", nil, nil)
	require.Equal(t, 409, code)
	require.Contains(t, detail, "not in quarantine")
	w.must("DELETE", "/v1/nodes/one", nil, nil)
	code, _ = w.call("POST", "/v1/nodes/one/release", nil, nil)
	require.Equal(t, 404, code)
}

// Who has dropped a revoked node is known, and who has not said so.
func TestRevocationIsConfirmed(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	one, two, three := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"}), joined(t, w, "three", api.TokenSpec{Site: "a"})
	joined(t, w, "four", api.TokenSpec{Site: "a"}) // away
	w.dial(one, nil)
	b, c := w.dial(two, nil), w.dial(three, nil)
	for _, x := range []*agent{b, c} {
		x.until("all", func(n protocol.Netmap) bool { return len(n.Peers) == 2 })
	}
	c.mu.Lock()
	c.mute = true
	c.mu.Unlock()
	code, _ := w.call("GET", "/v1/nodes/one/revocation", nil, nil)
	require.Equal(t, 404, code)
	w.must("DELETE", "/v1/nodes/one", nil, nil)
	var r api.Revocation
	require.Eventually(t, func() bool {
		w.must("GET", "/v1/nodes/one/revocation", nil, &r)
		return r.Cut && len(r.Confirmed) == 1
	}, patience, time.Millisecond)
	require.Equal(t, "two", r.Confirmed[0].Node)
	require.Len(t, r.Waiting, 2)
	require.False(t, r.Done())
	require.Equal(t, "three", r.Waiting[0].Node)
	require.Contains(t, r.Waiting[0].Why, "not acknowledged")
	require.Contains(t, r.Waiting[1].Why, "not connected")
	// What comes later counts, too.
	c.mu.Lock()
	c.mute = false
	c.mu.Unlock()
	c.m.Close()
	w.dial(three, nil)
	require.Eventually(t, func() bool {
		w.must("GET", "/v1/nodes/one/revocation", nil, &r)
		return len(r.Confirmed) == 2
	}, patience, time.Millisecond)
}

// A hub that was taken over substitutes a node's key: agents that know the node
// refuse it, and say so to the hub, where everybody who looks sees the incident.
func TestSubstitutedKeyIsAnIncident(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	one, two := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"})
	a := w.dial(one, nil)
	w.dial(two, nil)
	a.until("two", func(n protocol.Netmap) bool { return len(n.Peers) == 1 })
	const why = "its identity key is not the one that was seen first for this node"
	cause := "node 3 was refused: " + why
	a.mu.Lock() // an acknowledgement of what comes later says it, too
	a.refuses = []protocol.RefusedPart{{Peer: two.answer.Number, Reason: why}}
	a.mu.Unlock()
	a.send(protocol.KindNetmapAck, protocol.NetmapAck{NetmapVersion: protocol.NetmapVersion{Epoch: 1, Version: 99}, Refused: []protocol.RefusedPart{{Peer: two.answer.Number, Reason: why}}})
	a.send(protocol.KindStatus, protocol.Status{Conditions: []protocol.Condition{{Name: "netmap", Cause: cause}}})
	var node api.Node
	require.Eventually(t, func() bool {
		w.must("GET", "/v1/nodes/one", nil, &node)
		return len(node.Refused) == 1 && node.State == api.NodeDegraded && len(node.Conditions) == 1
	}, patience, 5*time.Millisecond)
	require.Equal(t, []protocol.RefusedPart{{Peer: two.answer.Number, Reason: why}}, node.Refused)
	require.Contains(t, node.Reasons, "netmap: "+cause)
	var events []api.Event
	w.must("GET", "/v1/events?limit=10", nil, &events)
	found := false
	for _, e := range events {
		found = found || e.Kind == "netmap_refused" && e.Node == "one" && strings.Contains(e.Message, "peer two") && strings.Contains(e.Message, why)
	}
	require.True(t, found, events)
}
