package service

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	svc "causeway/netns/service"
	"causeway/protocol"
)

// counting is a table's counters, and a clock.
type counting struct {
	o     Outliers
	now   time.Time
	signs map[svc.Sign]svc.Signs
}

func newCounting() *counting {
	return &counting{now: time.Unix(1000, 0), signs: map[svc.Sign]svc.Signs{}}
}

func backendOf(addr string) svc.Backend {
	return svc.Backend{Proto: 6, Addr: netip.MustParseAddrPort(addr + ":80")}
}

// does counts connections of a client: r refused, a answered, . silence.
func (c *counting) does(client, backend, what string) {
	k := svc.Sign{Backend: backendOf(backend), Client: netip.MustParseAddr(client)}
	for _, x := range what {
		n := c.signs[k]
		n.Tried++
		switch x {
		case 'a':
			n.Answered++
		case 'r':
			n.Refused++
		}
		c.signs[k] = n
	}
}

// look takes what was counted, a second later.
func (c *counting) look() (map[svc.Backend]Failed, []svc.Backend) {
	c.now = c.now.Add(signsPause)
	return c.o.Take(c.now, c.signs)
}

func (c *counting) out(backend string) bool {
	why, _ := c.o.Out(c.now, backendOf(backend))
	return why != ""
}

func TestOutliers(t *testing.T) {
	const x, y, b = "10.1.0.1", "10.1.0.2", "10.2.0.1"
	c := newCounting()
	// Two refused and one answered are no row, however often.
	for range 20 {
		c.does(x, b, "rr")
		c.look()
		c.does(x, b, "a")
		c.look()
	}
	require.False(t, c.out(b))
	// Three are, over several looks. The next row is twice as long out, up to a minute.
	want := outMin
	for range 8 {
		c.does(x, b, "r")
		failed, _ := c.look()
		require.Equal(t, Failed{Refused: 1}, failed[backendOf(b)])
		require.False(t, c.out(b))
		c.does(x, b, "rr")
		_, out := c.look()
		require.Equal(t, []svc.Backend{backendOf(b)}, out)
		why, until := c.o.Out(c.now, backendOf(b))
		require.Equal(t, "it refused 3 connections in a row", why)
		require.Equal(t, want, until.Sub(c.now))
		require.Equal(t, 1, c.o.Count(c.now))
		c.does(x, b, "rrr") // that were under way
		for c.out(b) {
			c.look()
		}
		want = min(2*want, outMax)
	}
	// And after ten quiet minutes it is as at first.
	c.now = c.now.Add(relapseTime + time.Second)
	c.does(x, b, "rrr")
	c.look()
	_, until := c.o.Out(c.now, backendOf(b))
	require.Equal(t, outMin, until.Sub(c.now))

	// Silence counts once an answer would have had the time to come.
	c = newCounting()
	c.does(x, b, "....")
	for c.look(); !c.out(b); c.look() {
		require.Less(t, c.now.Sub(time.Unix(1000, 0)), 5*time.Second)
	}
	require.GreaterOrEqual(t, c.now.Sub(time.Unix(1001, 0)), answerTime)
	why, _ := c.o.Out(c.now, backendOf(b))
	require.Equal(t, "it left 4 connections in a row without an answer", why)
	c = newCounting()
	for range 100 { // some answer is late
		c.does(x, b, "..")
		c.look()
		k := svc.Sign{Backend: backendOf(b), Client: netip.MustParseAddr(x)}
		n := c.signs[k]
		n.Answered++
		c.signs[k] = n
		c.look()
	}
	require.False(t, c.out(b))

	// A client whose connections fail alone, while another one uses the backend, has nobody out.
	c = newCounting()
	for range 100 {
		c.does(x, b, "rrrrr...")
		c.look()
		require.False(t, c.out(b) && c.now.After(time.Unix(1002, 0)))
		if c.now.Unix()%5 == 0 {
			c.does(y, b, "a")
			c.look()
		}
		if c.out(b) { // it was there alone at first
			c.now = c.now.Add(outMin)
			c.does(y, b, "a")
			c.look()
		}
	}
	c.does(x, b, "r")
	c.does(y, b, "rr")
	c.look()
	require.True(t, c.out(b))

	// A table that was written anew counts from the beginning; a list that leaves somebody out makes nothing new of him.
	c = newCounting()
	c.does(x, b, "ararrara")
	c.look()
	before := c.signs
	c.signs = map[svc.Sign]svc.Signs{}
	c.look()
	c.signs = before
	failed, _ := c.look()
	require.Empty(t, failed)
	c.signs = map[svc.Sign]svc.Signs{}
	c.does(x, b, "rr")
	failed, _ = c.look()
	require.Equal(t, Failed{Refused: 2}, failed[backendOf(b)])
	// Nothing is kept of whom nobody uses.
	c.signs = map[svc.Sign]svc.Signs{}
	for range 800 {
		c.look()
	}
	require.Empty(t, c.o.of)
}

// Simulated: of many backends one part fails for good. They get next to nothing after a while, who answers is never out, and no wave of
// refusals takes more than half of a service.
func TestOutliersSimulated(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	backends := []string{"10.2.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.4", "10.2.0.5", "10.2.0.6"}
	bad := map[string]bool{"10.2.0.2": true, "10.2.0.5": true}
	c := newCounting()
	refused, all := 0, 0
	for second := range 600 {
		for range 50 {
			b := backends[rnd.IntN(len(backends))]
			for c.out(b) {
				b = backends[rnd.IntN(len(backends))]
			}
			client := netip.AddrFrom4([4]byte{10, 1, 0, byte(1 + rnd.IntN(5))}).String()
			what := "a"
			if bad[b] {
				what = "r"
			} else if rnd.IntN(10) == 0 {
				what = "r" // now and then
			}
			c.does(client, b, what)
			if second >= 120 {
				all++
				if bad[b] {
					refused++
				}
			}
		}
		c.look()
		for _, b := range backends {
			require.False(t, c.out(b) && !bad[b], "%s answers, and is out", b)
		}
	}
	t.Logf("two of six refuse all: they got %d of %d connections", refused, all)
	require.Less(t, refused*20, all)
}

// At most half of a service's usable endpoints are out, never the last one, and the rest says so.
func TestEject(t *testing.T) {
	l := here(t, protocol.Service{})
	p := l[0]
	outs := map[string]bool{}
	ready := protocol.Ready
	s := sight{now: time.Unix(1000, 0), site: "a", reach: func(protocol.NodeNumber) (ReachState, bool) { return Up, false }, path: func(protocol.NodeNumber) bool { return true },
		ready: func(string, *endpoint) protocol.Readiness { return ready },
		out: func(b svc.Backend) string {
			if outs[b.Addr.Addr().String()] {
				return "it refused 3 connections in a row"
			}
			return ""
		}}
	use := func() (out []bool) {
		p.judge(s)
		for _, e := range p.endpoints {
			out = append(out, e.state.Use)
		}
		return out
	}
	require.Equal(t, []bool{true, true, true}, use())
	outs["10.2.0.1"] = true
	require.Equal(t, []bool{true, false, true}, use())
	require.Equal(t, "it refused 3 connections in a row", p.endpoints[1].state.Why)
	outs["10.3.0.1"] = true
	require.Equal(t, []bool{true, false, true}, use())
	require.Equal(t, "it refused 3 connections in a row, and is used all the same: no more of its service may be out", p.endpoints[2].state.Why)
	s.reach = func(n protocol.NodeNumber) (ReachState, bool) {
		if n == 3 {
			return Up, false
		}
		return Dead, false
	}
	s.ready = func(_ string, e *endpoint) protocol.Readiness {
		if e.local {
			return protocol.NotReady
		}
		return protocol.Ready
	}
	require.Equal(t, []bool{false, true, false}, use(), "the last one")
}
