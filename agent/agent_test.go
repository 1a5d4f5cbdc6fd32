package agent

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/agent/clock"
	"causeway/agent/config"
	"causeway/agent/debug"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/internal/docpage"
	"causeway/netns"
	"causeway/protocol"
	"causeway/tunnel"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("causeway/netns/lab.register.func1.1")) // it waits for signals
}

func TestWithoutHub(t *testing.T) {
	w := newWorld(t)
	w.start()
	require.True(t, w.host.routed("198.18.0.0/15"), "the overlay is routed before any hub is there")
	w.eventually(func() bool {
		w.tunnel.mu.Lock()
		defer w.tunnel.mu.Unlock()
		return len(w.tunnel.hubs) == 1 && len(w.tunnel.hubs[0].UDP) == 2
	}, "hubs, with names looked up")
	h := w.tunnel.hubs[0]
	require.Equal(t, []netip.Addr{netip.MustParseAddr("198.18.0.1")}, h.Overlay)
	require.Equal(t, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820"), netip.MustParseAddrPort("192.0.2.9:51820")}, h.UDP, "names and addresses, each once")

	c := debug.NewClient(w.socket)
	var answer debug.Health
	w.eventually(func() bool {
		require.NoError(t, c.Get(context.Background(), "/v1/health", &answer))
		for _, x := range answer.Conditions {
			if x.Name == health.Hub {
				return x.Cause == "no hub answers at hub.example:51820, 192.0.2.1:51820 (UDP) or 192.0.2.1:443 (TCP); check that it runs and that one of them may leave this host; "+
					"if the hub moved, hand its list over: 'causeway hubs list -o json >hubs.json' on its host, then here 'causeway-agent hubs set @hubs.json'"
			}
		}
		return false
	}, "the hub condition says where")
	require.False(t, answer.OK)
	require.True(t, w.agent.board.OK(health.Tunnel))
	require.True(t, w.agent.board.OK(health.Routes))
}

func TestNetmapFlow(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	require.True(t, h.hello.Statement.Valid())
	require.Equal(t, protocol.NodeNumber(2), h.hello.Statement.Number)
	require.Equal(t, protocol.BootID{7}, h.hello.BootID)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}, h.hello.Routes)
	require.Zero(t, h.hello.Have)

	ack := h.give(testNetmap(5, testPeer(3, "10.3.0.0/24", "0.0.0.0/0"), testPeer(4)))
	require.Equal(t, uint64(5), ack.Version)
	require.Len(t, ack.Refused, 1)
	require.Empty(t, ack.Errors)
	require.Equal(t, []protocol.NodeNumber{3, 4}, w.tunnel.peerNumbers())
	require.True(t, w.host.routed("10.3.0.0/24"))
	require.False(t, w.host.routed("0.0.0.0/0"))
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}, w.host.plan.Local)
	overlay := w.agent.own.Now().Overlay
	require.Equal(t, netns.OwnDestinations(overlay, w.host.plan.Local), w.tunnel.destinations(), "the engine takes what the host takes")

	// A change on top of it.
	n := testNetmap(6, testPeer(5, "10.5.0.0/24"))
	n.Base, n.Removed = &protocol.NetmapVersion{Epoch: 1, Version: 5}, []protocol.NodeNumber{4}
	ack = h.give(n)
	require.Equal(t, uint64(6), ack.Version)
	require.Equal(t, []protocol.NodeNumber{3, 5}, w.tunnel.peerNumbers())

	// A change to what is not held, and an older one.
	n = testNetmap(8)
	n.Base = &protocol.NetmapVersion{Epoch: 1, Version: 7}
	ack = h.give(n)
	require.True(t, ack.Full)
	require.Equal(t, uint64(6), ack.Version)
	ack = h.give(testNetmap(4))
	require.Equal(t, uint64(6), ack.Version)
	require.Contains(t, firstRefused(ack).Reason, "older")
	other := testNetmap(9)
	other.Self.Number = 77
	require.Contains(t, firstRefused(h.give(other)).Reason, "node number 77")
	require.Equal(t, []protocol.NodeNumber{3, 5}, w.tunnel.peerNumbers())

	// An error of the host is told, and tried again when the host changes.
	w.host.mu.Lock()
	w.host.err = context.DeadlineExceeded
	w.host.mu.Unlock()
	ack = h.give(testNetmap(7, testPeer(3, "10.3.0.0/24")))
	require.Len(t, ack.Errors, 1)
	require.False(t, w.agent.board.OK(health.Routes))
	w.host.mu.Lock()
	w.host.err, w.host.foreign = nil, []netns.Foreign{{Prefix: netip.MustParsePrefix("10.3.0.0/16"), Link: "eth0", Via: netip.MustParseAddr("192.0.2.1")}}
	w.host.mu.Unlock()
	w.host.watch <- []netns.Change{{Kind: netns.Other, At: time.Now()}}
	ack = protocol.NetmapAck{}
	h.next(protocol.KindNetmapAck, &ack)
	require.Empty(t, ack.Errors)
	require.Contains(t, firstRefused(ack).Reason, "own route 10.3.0.0/16")
	require.True(t, w.agent.board.OK(health.Routes))
	require.False(t, w.host.routed("10.3.0.0/24"))

	var routes debug.Routes
	c := debug.NewClient(w.socket)
	require.NoError(t, c.Get(context.Background(), "/v1/routes", &routes))
	require.NotEmpty(t, routes.Planned)
	require.Contains(t, routes.Extra, "ip route add 203.0.113.0/24 dev cw0")
	var peers []debug.Peer
	require.NoError(t, c.Get(context.Background(), "/v1/peers", &peers))
	require.Equal(t, protocol.PathRelay, peers[0].Path)
	var nm debug.Netmap
	require.NoError(t, c.Get(context.Background(), "/v1/netmap", &nm))
	require.True(t, nm.Held)
	require.Len(t, nm.Refused, 1)
	var st debug.Status
	require.NoError(t, c.Get(context.Background(), "/v1/status", &st))
	require.Equal(t, protocol.NodeNumber(1), st.Hub)
	require.Equal(t, 1, st.Peers)

	// Stopped, and started where no hub answers: the netmap is applied.
	w.stop()
	w.host.foreign = nil
	w.start()
	require.Equal(t, []protocol.NodeNumber{3}, w.tunnel.peerNumbers())
	require.True(t, w.host.routed("10.3.0.0/24"))
	w.tunnel.setBound(true)
	require.Equal(t, protocol.NetmapVersion{Epoch: 1, Version: 7}, w.session().hello.Have)
}

// Scripts read the netmap: a list is a list, empty or not, with a netmap or without.
func TestNetmapHasNoNullLists(t *testing.T) {
	w := newWorld(t)
	w.start()
	text := func() string {
		b, err := json.Marshal(w.agent.answers.netmap())
		require.NoError(t, err)
		return string(b)
	}
	require.NotContains(t, text(), "null")
	w.tunnel.setBound(true)
	h := w.session()
	n := testNetmap(1, testPeer(3))
	n.Self.Routes, n.Peers[0].Routes, n.Peers[0].Candidates = nil, nil, nil
	h.give(n)
	require.NotContains(t, text(), "null")
}

func TestPinnedIdentitySurvivesRestart(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	require.Empty(t, h.give(testNetmap(1, testPeer(3))).Refused)
	require.Empty(t, h.give(testNetmap(2)).Refused)
	w.stop()
	w.start()
	w.tunnel.setBound(true)
	h = w.session()
	forged := testPeer(3)
	forged.Statement = forged.Statement.NodeStatement.Sign(protocol.IdentityPrivateKey{99})
	ack := h.give(testNetmap(3, forged, testPeer(4)))
	require.Contains(t, firstRefused(ack).Reason, "identity key is not the one")
	require.Equal(t, []protocol.NodeNumber{4}, w.tunnel.peerNumbers())
	// The incident is a condition of the agent, and of its next status.
	var answer debug.Health
	require.NoError(t, debug.NewClient(w.socket).Get(context.Background(), "/v1/health", &answer))
	require.False(t, answer.OK)
	incident := protocol.Condition{}
	for _, c := range answer.Conditions {
		if c.Name == health.Netmap {
			incident = c
		}
	}
	require.Equal(t, "node 3 was refused: its identity key is not the one that was seen first for this node", incident.Cause)
	w.eventually(func() bool {
		var st protocol.Status
		h.next(protocol.KindStatus, &st)
		return slices.ContainsFunc(st.Conditions, func(c protocol.Condition) bool { return c.Name == health.Netmap && !c.OK && c.Cause == incident.Cause })
	}, "the hub is told")
	// The same identity with another WireGuard key is none the better.
	forged = testPeer(3)
	forged.Statement.NodeStatement.WireGuardKey = protocol.WireGuardPublicKey{66}
	forged.Statement = forged.Statement.NodeStatement.Sign(protocol.IdentityPrivateKey{3})
	require.Contains(t, firstRefused(h.give(testNetmap(4, forged))).Reason, "without a higher epoch")
	require.Empty(t, h.give(testNetmap(5, testPeer(3))).Refused)
	w.eventually(func() bool { return w.agent.board.OK(health.Netmap) }, "the true key ends it")
}

// A hub that was restored from an old backup has a node again that was revoked
// since: no agent that knew takes it back, and each tells the hub what it knows.
func TestGoneStaysGone(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	require.Empty(t, h.hello.Gone)
	n := testNetmap(1, testPeer(4), testPeer(5))
	first := protocol.SignGone([]protocol.NodeNumber{3}, w.cluster)
	n.Gone = &first
	require.Empty(t, h.give(n).Refused)
	n = testNetmap(2)
	n.Base, n.Removed = &protocol.NetmapVersion{Epoch: 1, Version: 1}, []protocol.NodeNumber{4}
	both := protocol.SignGone([]protocol.NodeNumber{3, 4}, w.cluster)
	n.Gone = &both
	require.Empty(t, h.give(n).Refused)
	other, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	n = testNetmap(3, testPeer(5))
	forged := protocol.SignGone([]protocol.NodeNumber{5}, other)
	n.Gone = &forged
	require.Contains(t, firstRefused(h.give(n)).Reason, "pin")
	require.Equal(t, []protocol.NodeNumber{5}, w.tunnel.peerNumbers())
	w.stop()

	w.start() // with a hub from an old backup
	w.tunnel.setBound(true)
	h = w.session()
	require.Equal(t, []protocol.SignedGoneList{both}, h.hello.Gone)
	n = testNetmap(1, testPeer(3), testPeer(4), testPeer(6))
	n.Epoch = 2
	ack := h.give(n)
	require.Len(t, ack.Refused, 2)
	require.Contains(t, firstRefused(ack).Reason, "revoked")
	require.Equal(t, []protocol.NodeNumber{6}, w.tunnel.peerNumbers())
	require.Equal(t, []protocol.LostPeer{{Number: 5, Name: "p", Site: "s"}}, ack.Lost, "what the backup did not know")
	n = testNetmap(2, testPeer(6))
	n.Epoch = 2
	fork := protocol.SignGone([]protocol.NodeNumber{3, 7}, w.cluster)
	n.Gone = &fork
	require.Empty(t, h.give(n).Lost)
	h.m.Close()
	require.Equal(t, []protocol.SignedGoneList{both, fork}, w.session().hello.Gone, "neither has what the other has")
	all := protocol.SignGone([]protocol.NodeNumber{3, 4, 7}, w.cluster)
	require.Empty(t, w.agent.want.TakeGone(all))
	require.Empty(t, w.agent.want.TakeGone(first), "what is known already changes nothing")
	require.Equal(t, []protocol.SignedGoneList{all}, w.agent.want.Now().Said)
}

// heldForAnHour stores a netmap that is good for an hour, of peer 3 with 10.3.0.0/24.
func (w *world) heldForAnHour() {
	w.start()
	w.tunnel.setBound(true)
	n := testNetmap(1, testPeer(3, "10.3.0.0/24"))
	n.MaxAge = time.Hour
	w.session().give(n)
	w.stop()
}

// A netmap grows old by the time that goes by: of this boot by the kernel's count, over a
// boot by the wall clock.
func TestMaxAge(t *testing.T) {
	for name, at := range map[string]func(w *world, d time.Duration){
		"this boot": func(w *world, d time.Duration) {
			b := clock.ThisBoot()
			w.booted = func() clock.Boot { return clock.Boot{ID: b.ID, Since: b.Since + d} }
			w.now = func() time.Time { return time.Now().Add(d) }
		},
		"this boot, ten years back": func(w *world, d time.Duration) {
			b := clock.ThisBoot()
			w.booted = func() clock.Boot { return clock.Boot{ID: b.ID, Since: b.Since + d} }
			w.now = func() time.Time { return time.Now().AddDate(-10, 0, 0) }
		},
		"off meanwhile": func(w *world, d time.Duration) {
			w.booted = func() clock.Boot { return clock.Boot{ID: "another, " + d.String(), Since: time.Minute} }
			w.now = func() time.Time { return time.Now().Add(d) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.heldForAnHour()

			at(w, 31*time.Minute)
			w.start()
			require.Len(t, w.tunnel.peerNumbers(), 1)
			require.False(t, w.agent.board.OK(health.Netmap), "warned at half")
			w.stop()

			at(w, 61*time.Minute)
			w.start()
			require.Empty(t, w.tunnel.peerNumbers())
			require.True(t, w.host.routed("10.3.0.0/24"), "closed: the route stays, the peer goes")
			w.tunnel.setBound(true)
			w.session()
			w.eventually(func() bool { return len(w.tunnel.peerNumbers()) == 1 }, "a hub makes it good again")
		})
	}
}

// A clock that is years behind at boot, and is set right while the agent runs: peers are
// reached all along, for a hub stands by the netmap. Without a hub what goes by counts, and
// no step ahead, until it has stood for half of what the netmap is good for.
func TestClockSetWhileConnected(t *testing.T) {
	w := newWorld(t)
	w.heldForAnHour()

	var wrong, gone atomic.Int64
	wrong.Store(int64(-6 * 365 * 24 * time.Hour))
	w.now = func() time.Time { return time.Now().Add(time.Duration(wrong.Load())) }
	w.booted = func() clock.Boot {
		b := clock.ThisBoot()
		return clock.Boot{ID: b.ID, Since: b.Since + time.Duration(gone.Load())}
	}
	w.start()
	require.Len(t, w.tunnel.peerNumbers(), 1, "what is stored seems to be of the future")
	w.tunnel.setBound(true)
	w.session()
	w.eventually(w.agent.link.Connected, "connected")
	for _, d := range []time.Duration{0, 24 * time.Hour, 0} {
		wrong.Store(int64(d))
		w.agent.host.Reapply(context.Background())
		require.Len(t, w.tunnel.peerNumbers(), 1, "off by %s", d)
		require.True(t, w.agent.board.OK(health.Netmap))
		require.Empty(t, w.agent.want.ClockNote())
	}
	w.tunnel.setBound(false)
	w.eventually(func() bool { return !w.agent.link.Connected() }, "lost")
	peers := func(want int, why string) {
		w.agent.host.Reapply(context.Background())
		require.Len(t, w.tunnel.peerNumbers(), want, why)
	}
	wrong.Store(int64(10 * 24 * time.Hour))
	peers(1, "ten days ahead")
	require.Contains(t, w.agent.want.ClockNote(), "set ahead by 240h")
	gone.Store(int64(29 * time.Minute))
	peers(1, "for less than half of max_age")
	wrong.Store(int64(29 * time.Minute))
	peers(1, "set right")
	require.Empty(t, w.agent.want.ClockNote())
	wrong.Store(int64(10 * 24 * time.Hour))
	peers(1, "and again")
	gone.Store(int64(60 * time.Minute))
	peers(0, "by now max_age has gone by")
}

func TestRevoked(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	h.give(testNetmap(1, testPeer(3, "10.3.0.0/24")))
	h.send(protocol.KindError, protocol.Error{Code: protocol.ErrorRevoked})
	w.eventually(func() bool { return len(w.tunnel.peerNumbers()) == 0 }, "peers are withdrawn")
	require.True(t, w.host.routed("10.3.0.0/24"))
	w.stop()
	w.start()
	require.Empty(t, w.tunnel.peerNumbers())
	var answer debug.Health
	require.NoError(t, debug.NewClient(w.socket).Get(context.Background(), "/v1/health", &answer))
	require.Contains(t, answer.Conditions[4].Cause, "revoked")
	w.tunnel.setBound(true)
	w.session()
	w.eventually(func() bool { return len(w.tunnel.peerNumbers()) == 1 }, "a hub that welcomes it takes it back")
	w.tunnel.setBound(false)
	w.eventually(func() bool { return !w.agent.link.Connected() }, "lost")
	require.True(t, w.agent.want.Revoke())
	require.True(t, w.agent.answers.leave(context.Background()).Told, "a hub that revoked the node knows that it is gone")
}

// Shields are up where the host joined with them or the configuration says so; a reload
// changes them, and an address of the overlay at which /metrics was put is open.
func TestShields(t *testing.T) {
	w := newWorld(t)
	shields := func() netns.Shields {
		w.host.mu.Lock()
		defer w.host.mu.Unlock()
		return w.host.plan.Shields
	}
	w.start()
	require.False(t, shields().Up, "this one joined before there were any")
	w.stop()
	id, err := w.store.Identity()
	require.NoError(t, err)
	id.Shields = true
	require.NoError(t, w.store.SaveIdentity(id))
	w.start()
	require.Equal(t, netns.Shields{Up: true}, shields())
	port := netns.Port{Proto: "tcp", First: 22, Last: 22}
	c := w.agent.cfg.Settings
	c.Shields = config.Shields{Allow: []netns.Port{port}}
	w.agent.Reload(t.Context(), c)
	require.Equal(t, netns.Shields{Up: true, Allow: []netns.Port{port}}, shields())
	require.Equal(t, "up, but for tcp/22", w.agent.answers.status().Shields.String())
	c.Shields = config.Shields{State: "down"}
	w.agent.Reload(t.Context(), c)
	require.False(t, shields().Up)
}

func TestRequiredFeatureIsClosed(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	n := testNetmap(1, testPeer(3, "10.3.0.0/24"))
	n.Requires = []string{"segments"}
	ack := w.session().give(n)
	require.Contains(t, firstRefused(ack).Reason, "segments")
	require.Empty(t, w.tunnel.peerNumbers())
	require.True(t, w.host.routed("10.3.0.0/24"))
}

func TestRedial(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	w.session()
	w.tunnel.restarted <- 9 // another hub: nothing
	start := time.Now()
	w.tunnel.restarted <- 1
	h := w.session()
	require.Less(t, time.Since(start), 2*time.Second)
	h.m.Close()
	w.session()
	w.tunnel.setBound(false)
	w.eventually(func() bool { return !w.agent.link.Connected() }, "a hub that is lost is given up")
	w.tunnel.setBound(true)
	w.session()
}

func TestHubList(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	next := w.list
	next.Serial = 2
	next.Hubs = []protocol.Hub{next.Hubs[0], {Number: 9, WireGuardKey: protocol.WireGuardPublicKey{9}, UDP: []string{"192.0.2.10:51820"}}}
	signed, err := next.Sign(w.cluster)
	require.NoError(t, err)
	n := testNetmap(1)
	n.HubList = &signed
	require.Empty(t, h.give(n).Refused)
	w.eventually(func() bool {
		w.tunnel.mu.Lock()
		defer w.tunnel.mu.Unlock()
		return len(w.tunnel.hubs) == 2
	}, "the new hub is used")

	refused := func(n protocol.Netmap) string { // what the agent says by itself of the one before may come in between
		t.Helper()
		ack := h.give(n)
		for ack.Version < n.Version {
			ack = protocol.NetmapAck{}
			h.next(protocol.KindNetmapAck, &ack)
		}
		require.Len(t, ack.Refused, 1)
		return firstRefused(ack).Reason
	}
	other, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	next.Serial = 3
	forged, err := next.Sign(other)
	require.NoError(t, err)
	n = testNetmap(2)
	n.HubList = &forged
	require.Contains(t, refused(n), "pin")
	old, err := w.list.Sign(w.cluster)
	require.NoError(t, err)
	n = testNetmap(3)
	n.HubList = &old
	require.Contains(t, refused(n), "serial 1 is lower than 2")
	next.Overlay = append(slices.Clone(next.Overlay), netip.MustParsePrefix("10.0.0.0/8"))
	wide, err := next.Sign(w.cluster)
	require.NoError(t, err)
	n = testNetmap(4)
	n.HubList = &wide
	require.Contains(t, refused(n), "overlay range 10.0.0.0/8", "no range comes in beside accept: that way")
	w.stop()
	id, err := w.store.Identity()
	require.NoError(t, err)
	l, err := id.HubList.Open(id.Pin)
	require.NoError(t, err)
	require.Equal(t, uint64(2), l.Serial)
}

func TestLeave(t *testing.T) {
	w := newWorld(t)
	w.start()
	type answer struct {
		r   debug.LeaveResult
		err error
	}
	got := make(chan answer, 1)
	go func() {
		r, err := debug.NewClient(w.socket).Leave(context.Background())
		got <- answer{r, err}
	}()
	// Asked for before there is a session: an agent that has just started.
	w.tunnel.setBound(true)
	h := w.session()
	h.next(protocol.KindLeave, &struct{}{})
	h.send(protocol.KindLeft, struct{}{})
	a := <-got
	require.NoError(t, a.err)
	require.Equal(t, debug.LeaveResult{Told: true}, a.r)
	require.NoError(t, <-w.done)
	w.cancel()
	w.cancel = nil
	_, err := os.Stat(filepath.Join(w.store.Dir(), "identity.json"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// A netmap with a new hub list that comes while the node leaves does not bring
// its identity back.
func TestNetmapAfterLeave(t *testing.T) {
	w := newWorld(t)
	w.start()
	next := w.list
	next.Serial = 2
	signed, err := next.Sign(w.cluster)
	require.NoError(t, err)
	n := testNetmap(1)
	n.HubList = &signed
	w.agent.answers.leave(context.Background())
	require.NotEmpty(t, w.agent.link.TakeNetmap(context.Background(), n).Errors)
	_, err = w.store.Identity()
	require.ErrorIs(t, err, identity.ErrNotJoined)
}

// A hub that was taken over sends ten thousand peers, and for each more prefixes than this host takes:
// what may be applied is, within seconds, and the answer is one that a hub can read, in a bounded number of lines.
func TestHugeNetmap(t *testing.T) {
	const peers, routes = 10_000, 40
	w := newWorld(t)
	w.set = func(c *config.Config) { c.Accept = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }
	w.start()
	key, err := protocol.NewIdentityPrivateKey()
	require.NoError(t, err)
	n := testNetmap(1)
	n.Peers = nil
	for i := range peers {
		s := protocol.NodeStatement{Number: protocol.NodeNumber(10 + i), WireGuardKey: protocol.WireGuardPublicKey{byte(i), byte(i >> 8), 9}, Epoch: 1}
		p := protocol.Peer{Statement: s.Sign(key), Name: fmt.Sprintf("p%d", i), Site: "s", Routes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}}
		for r := range routes {
			p.Routes = append(p.Routes, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(r), byte(i >> 8), byte(i)}), 32))
		}
		n.Peers = append(n.Peers, p)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	ack := w.agent.link.TakeNetmap(context.Background(), n)
	took := time.Since(begin)
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d peers, %d prefixes in %.1f s, %d MB held", peers, peers*(1+routes), took.Seconds(), (after.HeapAlloc-before.HeapAlloc)>>20)
	require.Less(t, took, 30*time.Second)
	require.Len(t, ack.Refused, 256)
	require.Regexp(t, `^and 39\d{4} more parts of the netmap$`, ack.Refused[255].Reason)
	b, err := json.Marshal(ack)
	require.NoError(t, err)
	require.Less(t, len(b), protocol.MaxToHub)
	require.Len(t, w.agent.host.Facts().Result.Peers, peers, "what is good of it")
}

func TestLeaveWithoutHub(t *testing.T) {
	w := newWorld(t)
	w.start()
	r, err := debug.NewClient(w.socket).Leave(context.Background())
	require.NoError(t, err)
	require.False(t, r.Told)
	require.Contains(t, r.Error, "no hub answers")
	require.NoError(t, <-w.done)
	w.cancel()
	w.cancel = nil
}

func TestFirewallCondition(t *testing.T) {
	w := newWorld(t)
	w.host.blocked = "chain forward of table inet other (policy drop)"
	w.start()
	w.eventually(func() bool { return w.agent.board.OK(health.Firewall) }, "nothing is forwarded yet")
	w.tunnel.setBound(true)
	w.session().give(testNetmap(1))
	w.eventually(func() bool { return !w.agent.board.OK(health.Firewall) }, "read, as nothing can be tried")
}

func TestAcceptFromConfig(t *testing.T) {
	w := newWorld(t)
	w.host.foreign = []netns.Foreign{{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Link: "docker0", Direct: true}}
	w.set = func(c *config.Config) {
		c.Accept = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
		c.Named = c.Accept
	}
	w.start()
	w.tunnel.setBound(true)
	ack := w.session().give(testNetmap(1, testPeer(3, "10.9.0.0/16", "10.9.0.0/24", "10.3.0.0/24")))
	require.Len(t, ack.Refused, 2)
	require.True(t, w.host.routed("10.9.0.0/16"), "named exactly")
}

// No endpoint, metric or profile shows a private key.
func TestNoSecretsInAnswers(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	w.session().give(testNetmap(1, testPeer(3)))
	id, err := w.store.Identity()
	require.NoError(t, err)
	for _, path := range []string{"/v1/health", "/v1/status", "/v1/peers", "/v1/paths", "/v1/netmap", "/v1/routes", "/metrics", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1"} {
		r := httptest.NewRecorder()
		w.agent.debug.Local().ServeHTTP(r, httptest.NewRequest("GET", path, nil))
		require.Equal(t, 200, r.Code, path)
		body := r.Body.String()
		for _, k := range [][]byte{id.WireGuardKey[:], id.IdentityKey[:]} {
			require.NotContains(t, body, base64.RawURLEncoding.EncodeToString(k), path)
			require.NotContains(t, body, base64.StdEncoding.EncodeToString(k), path)
			require.NotContains(t, body, hex.EncodeToString(k), path)
		}
		if path == "/metrics" {
			for _, m := range []string{`causeway_agent_condition{condition="control"} 1`, `causeway_agent_peers{path="relay"} 1`, `causeway_agent_path_loss_max_ratio{path="relay"} 0.25`, `causeway_agent_path_rtt_max_seconds{path="relay"} 0.03`, `causeway_agent_dropped_datagrams_total{reason="mac"} 3`, `causeway_agent_dropped_packets_total{reason="spoofed"} 2`, "causeway_agent_netmap_version 1"} {
				require.Contains(t, body, m)
			}
		}
	}
}

// docs/METRICS.md has what an agent gives, and nothing else.
func TestMetricsTable(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	n := testNetmap(1)
	n.Items = []protocol.Item{{Kind: protocol.ItemPolicy, Name: "main", Body: json.RawMessage(`{"rules":[{"rule":"web","from":[1],"to":[2],"allow":["tcp/443"]}]}`)},
		{Kind: protocol.ItemService, Name: "web", Body: json.RawMessage(`{"headless":true,"health":{"type":"none"},"endpoints":[{"addr":"10.9.0.1","site":"far"}]}`)}}
	w.session().give(n)
	require.Eventually(t, func() bool {
		v, err := w.agent.services.View(t.Context(), "")
		return err == nil && len(v.Services) == 1
	}, 10*time.Second, 5*time.Millisecond)
	r := httptest.NewRecorder()
	w.agent.debug.Local().ServeHTTP(r, httptest.NewRequest("GET", "/metrics", nil))
	for _, m := range []string{`causeway_agent_policy_packets_total{rule="main/web"} 7`, `causeway_agent_policy_bytes_total{rule="main/web"} 420`, `causeway_agent_policy_judged_packets_total{verdict="refused"} 3`} {
		require.Contains(t, r.Body.String(), m)
	}
	docpage.Check(t, "../docs/METRICS.md", "agent", docpage.Metrics(t, r.Body.String()))
}

func TestContainerInterface(t *testing.T) {
	leadsOut := func(name string) bool { return name == "virbr9" || name == "br-0123456789ac" }
	for name, want := range map[string]bool{"docker0": true, "docker_gwbridge": true, "br-0123456789ab": true, "br-0123456789ac": false, "podman1": true, "cni0": true, "cni-podman0": true, "veth12": true, "virbr0": true, "lxdbr0": true, "tap3": true,
		"eth0": false, "br0": false, "bond0.7": false, "br-ex": false, "br-lan": false, "br-uplink": false, "virbr9": false, "dock0": false, "docker-uplink": false} {
		require.Equal(t, want, containerInterface(name, leadsOut), name)
	}
}

// What could not be set up is told by kind; what nothing needs is a note. Where nothing is known
// to stand between host and peers there are none, and routes lead into the tunnel all
// the same.
func TestHalfApplied(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	fails := func(f ...netns.Failure) {
		w.host.mu.Lock()
		defer w.host.mu.Unlock()
		w.host.err = nil
		if len(f) > 0 {
			w.host.err = netns.Failures(f)
		}
	}
	harmless := netns.Failure{Kind: netns.Sysctls, Err: errors.New("set sysctl x=1: nothing needs it"), Harmless: true}
	fails(harmless)
	ack := h.give(testNetmap(1, testPeer(3, "10.3.0.0/24")))
	require.Empty(t, ack.Errors)
	require.Len(t, w.tunnel.peerNumbers(), 1)
	condition := func() (c protocol.Condition) {
		for _, c = range w.agent.board.List() {
			if c.Name == health.Routes {
				break
			}
		}
		return c
	}
	require.True(t, condition().OK)
	require.Equal(t, "sysctls: set sysctl x=1: nothing needs it", condition().Note)

	fails(harmless, netns.Failure{Kind: netns.Routes, Err: errors.New("set route a: no")}, netns.Failure{Kind: netns.Routes, Err: errors.New("set route b: no")},
		netns.Failure{Kind: netns.Other, Err: errors.New("open DOCKER-USER: no")})
	ack = h.give(testNetmap(2, testPeer(3, "10.3.0.0/24")))
	require.Equal(t, []string{"routes: set route a: no, set route b: no", "other: open DOCKER-USER: no"}, ack.Errors)
	require.Len(t, w.tunnel.peerNumbers(), 1)
	require.Equal(t, "set up the host's network: routes: set route a: no, set route b: no; set up the host's network: other: open DOCKER-USER: no", condition().Cause)

	wall := netns.Failure{Kind: netns.Nftables, Err: fmt.Errorf("list nftables tables: no such program; %w", netns.ErrNoWalls)}
	fails(wall)
	ack = h.give(testNetmap(3, testPeer(3, "10.3.0.0/24"), testPeer(4, "10.4.0.0/24")))
	require.Len(t, ack.Errors, 1)
	require.Empty(t, w.tunnel.peerNumbers())
	require.True(t, w.host.routed("10.4.0.0/24"), "closed: the route is there")
	w.stop()
	w.start()
	require.Empty(t, w.tunnel.peerNumbers(), "not for a moment")
	fails()
	w.agent.host.Reapply(context.Background())
	require.Len(t, w.tunnel.peerNumbers(), 2)
	require.True(t, condition().OK)
	require.Empty(t, condition().Note)
}

// A repair that does not work is tried for ever and told as what it is: no other program is
// blamed.
func TestRepairDoesNotWork(t *testing.T) {
	w := newWorld(t)
	w.start()
	var there atomic.Bool
	there.Store(true)
	w.host.mu.Lock()
	w.host.drifts = func() []netns.Drift {
		if !there.Load() {
			return nil
		}
		return []netns.Drift{{Kind: netns.Link, Subject: "link", Missing: []string{"ip link set cw0 mtu 1420"}}}
	}
	w.host.err = netns.Failures{{Kind: netns.Link, Err: errors.New("set link cw0 mtu 1420: invalid argument")}}
	w.host.mu.Unlock()
	w.host.watch <- []netns.Change{{Kind: netns.Link, At: time.Now(), By: "ip (process 7)"}}
	cause := func() string {
		for _, c := range w.agent.board.List() {
			if c.Name == health.Repair {
				return c.Cause
			}
		}
		return ""
	}
	mends := func() int {
		w.host.mu.Lock()
		defer w.host.mu.Unlock()
		return len(w.host.mended)
	}
	w.eventually(func() bool { return mends() > 3 }, "it is tried again")
	require.Equal(t, "link: it cannot be put back: link: set link cw0 mtu 1420: invalid argument", cause())
	w.host.mu.Lock()
	w.host.err = nil
	w.host.mu.Unlock()
	w.eventually(func() bool {
		there.Store(mends() < 5)
		return cause() == ""
	}, "and works once it can")
}

// Where no plan can be made of what is wanted, the host stays as it is and nobody and nothing is
// reached that was not before; who left is gone all the same.
func TestNoPlan(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.tunnel.setBound(true)
	h := w.session()
	require.Empty(t, h.give(testNetmap(1, testPeer(3, "10.3.0.0/24"), testPeer(4, "10.4.0.0/24"))).Errors)
	w.tunnel.setDevice(tunnel.Device{Name: `cw"0`, Index: 7}) // as any tool may rename it
	applies := func() int {
		w.host.mu.Lock()
		defer w.host.mu.Unlock()
		return w.host.applies
	}
	before := applies()
	ack := h.give(testNetmap(2, testPeer(3, "10.3.0.0/24", "10.33.0.0/24"), testPeer(5, "10.5.0.0/24")))
	require.Len(t, ack.Errors, 1)
	require.Contains(t, ack.Errors[0], `plan it: interface name "cw\"0"`)
	w.tunnel.mu.Lock()
	peers := w.tunnel.peers
	w.tunnel.mu.Unlock()
	require.Len(t, peers, 1)
	require.Equal(t, protocol.NodeNumber(3), peers[0].Number)
	require.NotContains(t, peers[0].AllowedIPs, netip.MustParsePrefix("10.33.0.0/24"))
	require.Contains(t, peers[0].AllowedIPs, netip.MustParsePrefix("10.3.0.0/24"))
	require.Equal(t, before, applies())
	for _, c := range w.agent.board.List() {
		if c.Name == health.Routes {
			require.Contains(t, c.Cause, "nobody and nothing is reached that was not before: plan it: interface name")
		}
	}
	w.tunnel.setDevice(tunnel.Device{Name: "cw0", Index: 7})
	w.agent.host.Reapply(t.Context())
	require.Equal(t, []protocol.NodeNumber{3, 5}, w.tunnel.peerNumbers())
	require.True(t, w.agent.board.OK(health.Routes))
}

// Whoever mistypes a name is told so, and the agent goes on.
func TestPingUnknownName(t *testing.T) {
	w := newWorld(t)
	w.start()
	said := make(chan debug.PingResult, 1)
	go func() { said <- w.agent.answers.ping(t.Context(), debug.PingRequest{To: "nobody", Count: 1}) }()
	select {
	case r := <-said:
		require.Equal(t, `"nobody" is neither an address nor a node of this node's netmap`, r.Error)
	case <-time.After(wait):
		t.Fatal("no answer")
	}
	require.NoError(t, w.agent.Alive(t.Context()))
}
