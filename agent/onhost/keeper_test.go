package onhost

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/agent/config"
	"causeway/agent/health"
	"causeway/agent/repair"
	"causeway/netns"
	"causeway/netns/look"
	"causeway/protocol"
	"causeway/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Where the host cannot be compared with the plan, all is applied anew, and what that cannot do
// either is acted upon, now and then.
func TestHostDoesNotRead(t *testing.T) {
	w := newWorld(t, nil)
	w.take(t, testPeer(3, "10.3.0.0/24"))
	w.Start(t.Context())
	require.Len(t, w.reached(), 1)
	var before int
	w.change(func() {
		w.unread = errors.New("list nftables tables: no such program")
		w.err = netns.Failures{{Kind: netns.Nftables, Err: fmt.Errorf("%w; %w", w.unread, netns.ErrNoWalls)}}
		before = w.doubles.applies
	})
	for range 50 {
		w.repairs.look(t.Context(), netns.Nftables)
	}
	require.Empty(t, w.reached())
	require.LessOrEqual(t, w.doubles.applies-before, 2*otherBurst)
	w.change(func() {
		w.unread, w.err = netns.Failures{{Kind: netns.Nftables, Err: errors.New("list nftables tables: no such program")}}, nil
		w.drifts = func() []netns.Drift {
			return []netns.Drift{{Kind: netns.Routes, Subject: "routes", Missing: []string{"ip -4 route add x"}}}
		}
	})
	res := w.repairs.look(t.Context(), netns.Routes, netns.Nftables)
	require.Equal(t, []string{"routes"}, res.Mended, "what does read")
	require.Equal(t, map[string]int{"routes": 1}, w.counted)
	require.Contains(t, res.Error, "no such program")
	w.change(func() { w.unread, w.drifts = nil, nil })
	w.Reapply(t.Context())
	require.Len(t, w.reached(), 1)
}

// Once the tunnel had a device, a link of its name is not taken for it.
func TestDeviceOfOthers(t *testing.T) {
	w := newWorld(t, nil)
	index := func(d tunnel.Device) int {
		w.change(func() { w.device = d })
		return w.hostConfig(nil, nil, nil).Index
	}
	require.Zero(t, index(tunnel.Device{}), "by its name")
	require.Equal(t, 7, index(tunnel.Device{Name: "cw0", Index: 7}))
	require.Equal(t, netns.NoDevice, index(tunnel.Device{}))
	require.Equal(t, 8, index(tunnel.Device{Name: "cw0", Index: 8}))
}

// While others take the walls down again and again no peer is reached, and a drift that waits for its
// repair is no moment without walls either.
func TestWallsFoughtOver(t *testing.T) {
	w := newWorld(t, nil)
	w.take(t, testPeer(3, "10.3.0.0/24"))
	w.Start(t.Context())
	require.Len(t, w.reached(), 1)
	r, now := w.repairs, time.Now()
	guard := func(at time.Time) []protocol.NodeNumber {
		w.Keeper.mu.Lock()
		defer w.Keeper.mu.Unlock()
		r.guard(at)
		return w.reached()
	}
	for _, subject := range []string{"nftables", "routes", "link"} {
		for range repair.Limit {
			require.Len(t, guard(now), 1)
			r.machine.Mended(subject, now)
		}
		if subject != "nftables" { // closed by what lies beneath them
			require.Len(t, guard(now), 1)
			continue
		}
		require.Empty(t, guard(now))
		w.Reapply(t.Context())
		require.Empty(t, w.reached(), "a netmap gives none back")
		require.Empty(t, guard(now.Add(repair.Stand-1)))
		require.Len(t, guard(now.Add(repair.Stand)), 1)
		r.machine.Asked()
	}
	r.episodes["nftables"] = &episode{kind: netns.Nftables, drifting: true}
	require.Empty(t, guard(now))
	delete(r.episodes, "nftables")
	require.Len(t, guard(now), 1)
}

// An address of the overlay at which /metrics was put is open.
func TestShieldsLetMetricsIn(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Debug.Metrics = "198.18.0.2:9464" })
	require.Equal(t, []netns.Port{{Proto: "tcp", First: 9464, Last: 9464}}, w.Shields().Allow)
	w = newWorld(t, func(c *config.Config) { c.Debug.Metrics = "192.0.2.2:9464" })
	require.Empty(t, w.Shields().Allow)
}

// What is known of the host is there while it is being changed, and a change that does not end is
// told to whoever needs the host to hold still.
func TestFactsWhileApplying(t *testing.T) {
	w := newWorld(t, nil)
	w.take(t, testPeer(3, "10.3.0.0/24"))
	w.Start(t.Context())
	<-w.Applied()
	w.take(t, testPeer(3, "10.3.0.0/24"), testPeer(4, "10.4.0.0/24"))
	begun, end := make(chan struct{}), make(chan struct{})
	w.amid = func() {
		close(begun)
		<-end
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Reapply(context.Background())
	}()
	<-begun
	require.Len(t, w.Facts().Result.Peers, 1)
	require.Empty(t, w.Facts().StayOf(netip.MustParseAddr("10.3.0.1")))
	heard := make(chan struct{})
	go func() { // what the kernel tells meanwhile is taken as of now
		defer close(heard)
		w.repairs.heard.add([]netns.Change{{Kind: netns.Routes, At: time.Now(), By: "ip (process 7)"}}, w.traffic)
	}()
	<-heard
	ctx, cancel := context.WithTimeout(t.Context(), 3*alivePoll)
	_, err := w.Hold(ctx)
	cancel()
	require.ErrorContains(t, err, "a change to the host's network does not end")
	close(end)
	<-done
	require.Len(t, (<-w.Applied()).Ack.Errors, 0)
	require.Len(t, w.Facts().Result.Peers, 2)
	release, err := w.Hold(t.Context())
	require.NoError(t, err)
	release()
}

// A node that goes over to another segment hears of others in place of those before, with the same addresses. The old
// peers are gone before the host changes, and what nobody has any more stays closed.
func TestAnotherSegment(t *testing.T) {
	w := newWorld(t, nil)
	w.take(t, testPeer(3, "10.3.0.0/24"), testPeer(4, "10.4.0.0/16"))
	w.Start(t.Context())
	require.Equal(t, []protocol.NodeNumber{3, 4}, w.reached())
	changed := 0
	w.change(func() {
		w.amid = func() {
			changed++
			require.Equal(t, []protocol.NodeNumber{5, 6}, w.reached(), "before the host does anything")
			require.Equal(t, protocol.NodeNumber(5), w.routes[netip.MustParsePrefix("10.3.0.0/24")])
		}
	})
	w.take(t, testPeer(5, "10.3.0.0/24"), testPeer(6, "10.4.1.0/24"))
	require.Empty(t, w.Keeper.Apply(t.Context()).Ack.Errors)
	require.NotZero(t, changed)
	plan := strings.Join(w.plan.Lines(), "\n")
	require.Contains(t, plan, "unreachable 10.4.0.0/16", "of nobody in this segment")
	require.Contains(t, plan, "10.4.1.0/24 dev cw0")
}

// Where policies judge, what no peer has any more keeps its way to their refusals; it is closed behind that, and without a policy alone.
func TestRefusedNotClosed(t *testing.T) {
	w := newWorld(t, nil)
	w.take(t, testPeer(3, "10.3.0.0/24"))
	w.Start(t.Context())
	for n, items := range [][]protocol.Item{{{Kind: protocol.ItemPolicy, Name: "main", Body: []byte(`{"rules":[]}`)}}, nil} {
		_, refusal := w.want.Take(protocol.Netmap{NetmapVersion: protocol.NetmapVersion{Epoch: 2, Version: uint64(n + 1)}, Self: protocol.NetmapSelf{Number: 2}, Items: items})
		require.Nil(t, refusal)
		require.Empty(t, w.Keeper.Apply(t.Context()).Ack.Errors)
		require.Empty(t, w.reached())
		plan := strings.Join(w.plan.Lines(), "\n")
		require.Contains(t, plan, "unreachable 10.3.0.0/24")
		require.Equal(t, items != nil, strings.Contains(plan, "add 10.3.0.0/24 dev cw0"), plan)
	}
}

// A device that was made anew is told, once, to whoever has a socket bound to it.
func TestRemade(t *testing.T) {
	w := newWorld(t, nil)
	w.take(t)
	w.Start(t.Context())
	w.change(func() {
		w.made = true
		w.drifts = func() []netns.Drift {
			if len(w.mended) > 0 {
				return nil
			}
			return []netns.Drift{{Kind: netns.Link, Subject: "link", Missing: []string{"ip link add cw0"}}}
		}
	})
	require.Equal(t, []string{"link"}, w.repairs.look(t.Context(), netns.Link).Mended)
	<-w.Remade()
	select {
	case <-w.Remade():
		t.Fatal("twice")
	default:
	}
}

// The same that the kernel tells again and again is kept once, as of the first time.
func TestHeard(t *testing.T) {
	var h heard
	carried := uint64(0)
	traffic := func() (rx, tx uint64) { carried++; return carried, 0 }
	for range 1000 {
		h.add([]netns.Change{{Kind: netns.Routes}, {Kind: netns.Link, By: "a"}}, traffic)
	}
	h.add([]netns.Change{{Kind: netns.Link, By: "b"}}, traffic)
	l := h.take()
	require.Len(t, l, 3)
	require.Equal(t, []string{"", "a", "b"}, []string{l[0].By, l[1].By, l[2].By})
	require.Equal(t, uint64(1), l[0].rx)
	require.False(t, l[0].last.Before(l[0].first))
	require.Empty(t, h.take())
}

// A rule that leads past the tunnel is told of with the range that it takes, at each look, however many ranges
// there are: a look does not go through them all.
func TestPassingAtScale(t *testing.T) {
	w := newWorld(t, nil)
	var ranges []string
	for i := range 5000 {
		ranges = append(ranges, fmt.Sprintf("10.%d.%d.0/24", i>>8, i&0xff))
	}
	w.take(t, testPeer(3, ranges...))
	w.Start(t.Context())
	w.change(func() {
		w.leading = []look.Passing{{Rule: "pref 7 lookup 9", Of: netip.MustParseAddr("10.3.7.1"), Certain: true}}
	})
	w.lookAtRules()
	cause := func() string {
		for _, c := range w.board.List() {
			if c.Name == health.Routes {
				return c.Cause
			}
		}
		return ""
	}
	require.Contains(t, cause(), "rule 'pref 7 lookup 9' (ip -4 rule) for 10.3.7.0/24; ")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		w.tellPassing()
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(10*10_000), "bytes for ten looks")
	w.take(t, testPeer(3, "10.3.0.0/16"))
	w.Reapply(t.Context())
	require.Contains(t, cause(), "for 10.3.0.0/16; ")
}
