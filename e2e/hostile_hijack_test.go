package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/identity"
	"causeway/hub/api"
	"causeway/internal/hijack"
	"causeway/netns/lab"
	"causeway/protocol"
	"causeway/tunnel/mux"
)

// pings are pings all the time between two pods, both ways, each of them counted.
type pings struct {
	sent, got atomic.Int64
	stop      chan struct{}
	wg        sync.WaitGroup
}

// startPings counts with the lab's own tool: ping(8) leaves two round trips after its last
// request, whatever it was told, and so calls lost what a busy machine answers later.
func startPings(t *testing.T, s *System, a, b *Pod) *pings {
	p := &pings{stop: make(chan struct{})}
	run := func(from *lab.Host, to string) {
		for {
			select {
			case <-p.stop:
				return
			default:
			}
			out, err := from.Run(step(t), s.Bin.Labtool, "rtt", to, "-every", "20ms", "-for", "1s", "-wait", "5s")
			var r struct{ Sent, Received int64 }
			if err == nil {
				err = json.Unmarshal([]byte(out), &r)
			}
			if err != nil {
				t.Errorf("ping from %s to %s: %v", from.Name, to, err)
				return
			}
			if r.Received < r.Sent {
				t.Logf("%s: ping from %s to %s: %d sent, %d answered", time.Now().Format(time.TimeOnly), from.Name, to, r.Sent, r.Received)
			}
			p.sent.Add(r.Sent)
			p.got.Add(r.Received)
		}
	}
	for _, to := range []string{b.V4, b.V6} {
		p.wg.Go(func() { run(a.Host, to) })
	}
	for _, to := range []string{a.V4, a.V6} {
		p.wg.Go(func() { run(b.Host, to) })
	}
	t.Cleanup(func() { p.end() })
	return p
}

func (p *pings) end() (sent, got int64) {
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	p.wg.Wait()
	return p.sent.Load(), p.got.Load()
}

// attacker is a node's identity in the hands of somebody who writes his own
// messages: a control session from the node's host, beside its agent.
type attacker struct {
	t       *testing.T
	n       *Node
	m       *mux.Session
	control net.Conn
}

func (a *attacker) send(kind protocol.MessageKind, body any) {
	a.t.Helper()
	m, err := protocol.NewMessage(kind, body)
	require.NoError(a.t, err)
	if err := protocol.WriteFrame(a.control, m, protocol.MaxToHub); err != nil {
		a.t.Logf("send %s: %v", kind, err) // the hub hangs up, and the next read says so
	}
}

// hello opens a session in the place of the one before and announces routes; an
// error says why the hub does not welcome it.
func (a *attacker) hello(id identity.Identity, routes []netip.Prefix) error {
	if a.m != nil {
		a.m.Close()
	}
	var c net.Conn
	err := a.n.Host.Do(func() (err error) {
		c, err = net.DialTimeout("tcp6", "[fd63:7761:7900::1]:4710", 5*time.Second)
		return err
	})
	if err != nil {
		return err
	}
	if a.m, err = mux.Client(c); err != nil {
		return err
	}
	if a.control, err = a.m.Open(step(a.t), protocol.StreamHeader{Kind: protocol.StreamControl}); err != nil {
		return err // too many connections, of which the hub has not seen the end yet
	}
	said, err := protocol.NewMessage(protocol.KindHello, protocol.Hello{AgentVersion: "attacker", Statement: id.Statement(), Routes: routes, Vouch: protocol.Vouch(1, id.Number, protocol.BootID{}, id.IdentityKey)})
	require.NoError(a.t, err)
	if err := protocol.WriteFrame(a.control, said, protocol.MaxToHub); err != nil {
		return err
	}
	a.control.SetReadDeadline(time.Now().Add(10 * time.Second))
	var m protocol.Message
	if err := protocol.ReadFrame(a.control, &m, protocol.MaxToAgent); err != nil {
		return err
	}
	if m.Kind == protocol.KindChallenge { // he has the node's key
		c, err := protocol.ParseChallenge(m.Body)
		require.NoError(a.t, err)
		a.send(protocol.KindProof, c.Prove(id.Number, said.Body, id.IdentityKey))
		m = protocol.Message{}
		if err := protocol.ReadFrame(a.control, &m, protocol.MaxToAgent); err != nil {
			return err
		}
	}
	if m.Kind != protocol.KindWelcome {
		return fmt.Errorf("%s: %s", m.Kind, m.Body)
	}
	return nil
}

// Claims on what is another site's, the hub's, everybody's, through the doors of a
// real hub: tokens and sites that an admin is talked into, a node's announcements and
// their approval, its status, its join. None is accepted, and the pings of those
// whose addresses they are lose nothing meanwhile. Not parallel: every ping counts.
func TestHijack(t *testing.T) {
	lab.Counts(t)
	announced := repeat(8, 40) // hellos, of which a node has 20 at once and one in two seconds
	s, nodes := newSmall(t, 3)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	victim, friend, thief := nodes[0], nodes[1], nodes[2]
	require.NoError(t, Ping(step(t), victim.Pod.Host, friend.Pod.V4))
	require.NoError(t, Ping(step(t), victim.Pod.Host, friend.Pod.V6))
	require.NoError(t, Ping(step(t), friend.Pod.Host, victim.Pod.V6))
	c, err := api.NewClient(api.ClientConfig{Socket: s.Hub.Socket})
	require.NoError(t, err)
	defer c.Close()
	var victims []netip.Prefix
	for _, p := range append(PodRoutes(1, 1), PodRoutes(2, 1)...) {
		victims = append(victims, netip.MustParsePrefix(p))
	}
	byKind := hijack.Claims(10000, victims...)
	var claims []netip.Prefix
	kinds := map[string]int{}
	for p, kind := range byKind {
		claims = append(claims, p)
		kinds[kind]++
	}
	before, err := c.Routes(step(t))
	require.NoError(t, err)
	p := startPings(t, s, victim.Pod, friend.Pod)

	var mu sync.Mutex
	tried, accepted := map[string]int{}, map[string][]netip.Prefix{}
	count := func(door string, claim netip.Prefix, err error) {
		mu.Lock()
		defer mu.Unlock()
		tried[door]++
		var e *api.Error
		switch {
		case err == nil:
			accepted[door] = append(accepted[door], claim)
		case !errors.As(err, &e) || e.Status < 400 || e.Status >= 500:
			t.Errorf("%s %s: %v", door, claim, err)
		}
	}
	each := func(door string, claims []netip.Prefix, try func(context.Context, int, netip.Prefix) error) {
		next := atomic.Int64{}
		ctx := within(t, 5*time.Minute)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < len(claims); i = int(next.Add(1)) - 1 {
					count(door, claims[i], try(ctx, i, claims[i]))
				}
			})
		}
		wg.Wait()
	}
	begin := time.Now()
	each("token", claims, func(ctx context.Context, _ int, p netip.Prefix) error {
		_, err := c.CreateToken(ctx, api.TokenSpec{Site: "s3", Routes: []netip.Prefix{p}})
		return err
	})
	each("site", claims, func(ctx context.Context, i int, p netip.Prefix) error {
		_, err := c.CreateSite(ctx, api.SiteSpec{Name: fmt.Sprintf("thief-%d", i), Ranges: []netip.Prefix{p}})
		return err
	})

	id, err := identity.Peek(thief.StateDir)
	require.NoError(t, err)
	// The node's own agent stays out of it: it dials over IPv4.
	thief.Host.Sh("nft 'add table ip quiet; add chain ip quiet out { type filter hook output priority 0; }; add rule ip quiet out ip daddr 198.18.0.1 tcp dport 4710 drop'")
	a := &attacker{t: t, n: thief.Node}
	welcomed, most := 0, protocol.MaxNodeRoutes
	for i := range announced {
		batch := claims[min(i*most, len(claims)):min((i+1)*most, len(claims))]
		require.NoError(t, lab.Wait(within(t, 20*time.Second), "a welcome", func(context.Context) error { return a.hello(id, batch) }))
		welcomed++
		a.send(protocol.KindStatus, map[string]any{"routes": batch, "candidates": []netip.AddrPort{netip.MustParseAddrPort(victim.LAN + ":1"), netip.MustParseAddrPort("[::ffff:" + victim.LAN + "]:2")}})
		tried["announce and status"] += len(batch)
		each("approve", batch, func(ctx context.Context, _ int, p netip.Prefix) error {
			_, err := c.DecideRoute(ctx, api.RouteDecision{Node: "n3", Prefix: p, Approve: true})
			return err
		})
		routes, err := c.Routes(step(t))
		require.NoError(t, err)
		for _, r := range routes {
			if r.Node == "n3" && (r.State == protocol.RouteApproved || r.Owner) && byKind[r.Prefix] != "" {
				accepted["announce and status"] = append(accepted["announce and status"], r.Prefix)
			}
		}
	}
	a.m.Close()
	// The join: a name that is taken, by a token that does not give it away.
	token, err := s.Token(step(t), "s3")
	require.NoError(t, err)
	double, err := s.Prepare(NodeSpec{Name: "n1", Site: "s3", Host: thief.Host})
	require.NoError(t, err)
	_, err = double.Redeem(step(t), token)
	requireOneLine(t, err, "refused")
	_, err = double.Redeem(step(t), token, "--replace")
	requireOneLine(t, err, "refused")

	sent, got := p.end()
	total := 0
	for _, n := range tried {
		total += n
	}
	t.Logf("%d claims (%v), %d tries in %.1f s (%v), %d hellos welcomed: %d accepted %v", len(claims), kinds, total, time.Since(begin).Seconds(), tried, welcomed, len(accepted), accepted)
	t.Logf("the victims' pings meanwhile: %d sent, %d answered, %d lost", sent, got, sent-got)
	require.Empty(t, accepted)
	require.Greater(t, sent, int64(200))
	require.Equal(t, sent, got)
	after, err := c.Routes(step(t))
	require.NoError(t, err)
	for _, r := range before {
		if r.Node != "n3" {
			require.Contains(t, after, r)
		}
	}
}
