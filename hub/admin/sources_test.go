package admin

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/facts/inventory"
	"causeway/hub/fleet"
	"causeway/hub/object"
	"causeway/hub/plan"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// watchedHub is a hub without agents, whose lists can be watched: a state in a log, and a fleet.
type watchedHub struct {
	*Server
	sessions map[protocol.NodeNumber]*fleet.Session
	live     map[protocol.NodeNumber]plan.Live
	tokens   int
}

func startWatched(t *testing.T) *watchedHub {
	store := statetest.Open(t)
	h := &watchedHub{sessions: map[protocol.NodeNumber]*fleet.Session{}, live: map[protocol.NodeNumber]plan.Live{}}
	events := &event.Log{}
	table := fleet.New(fleet.Config{State: store.State, Proven: func(protocol.NodeNumber) time.Time { return time.Time{} }, Events: events, Log: zerolog.Nop()})
	h.Server = New(Config{Number: 1, Store: store, Fleet: table, Inventory: &inventory.Store{}, Events: events, Bound: func(protocol.NodeNumber) []netip.AddrPort { return nil }, Log: zerolog.Nop()})
	h.decide(t, func(d *state.Draft) error { return statetest.Fill(d, 6) })
	return h
}

// decide changes the state, if that is allowed.
func (h *watchedHub) decide(t *testing.T, decide func(*state.Draft) error) {
	t.Helper()
	if _, err := h.cfg.Store.Update(t.Context(), "test", "test", decide); err != nil {
		var e *state.Error
		var refusal *state.Refusal
		require.True(t, errors.As(err, &e) || errors.As(err, &refusal), err)
	}
}

func (h *watchedHub) join(d *state.Draft, site, name, replace string) error {
	h.tokens++
	b := byte(h.tokens)
	secret, identity := protocol.TokenSecret{b, 1}, protocol.IdentityPrivateKey{b, 1}
	hash := secret.Hash()
	if err := d.Add(state.TokenCreated{ID: protocol.TokenID{b, 1}, Hash: hash[:], Site: site, Replace: replace, Expires: d.Now.Add(time.Hour)}); err != nil {
		return err
	}
	return state.Redeem(d, state.RedeemRequest{Token: protocol.TokenID{b, 1}, Secret: secret, Name: name, Replace: replace != "", WireGuardKey: protocol.WireGuardPublicKey{b, 1}, IdentityKey: identity.Public()})
}

// step does something to the hub that its lists may show.
func (h *watchedHub) step(t *testing.T, r *rand.Rand) string {
	st := h.cfg.Store.State()
	nodes := st.LiveNodes()
	n := nodes[r.IntN(len(nodes))]
	name := func() string { return fmt.Sprintf("m%d", r.IntN(4)) }
	prefix := func() netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + r.IntN(3)), byte(r.IntN(4)), 0}), 24)
	}
	ses := h.sessions[n.Number]
	if ses == nil {
		ses = fleet.NewSession(n.Number, true)
	}
	steps := map[string]func(){
		"label": func() {
			h.decide(t, func(d *state.Draft) error {
				return state.Label(d, n.Name, map[string]string{"rack": fmt.Sprint(r.IntN(3))})
			})
		},
		"rename": func() { h.decide(t, func(d *state.Draft) error { return state.Rename(d, n.Name, name()) }) },
		"drain":  func() { h.decide(t, func(d *state.Draft) error { return state.Drain(d, n.Name, r.IntN(2) == 0) }) },
		"revoke": func() {
			if len(nodes) > 4 {
				h.decide(t, func(d *state.Draft) error { return state.Remove(d, n.Number, state.GoneRevoked) })
			}
		},
		"join":    func() { h.decide(t, func(d *state.Draft) error { return h.join(d, n.Site, name(), "") }) },
		"replace": func() { h.decide(t, func(d *state.Draft) error { return h.join(d, n.Site, n.Name, n.Name) }) },
		"site": func() {
			h.decide(t, func(d *state.Draft) error {
				return d.Add(state.SiteCreated{Name: name(), Ranges: []netip.Prefix{prefix()}})
			})
		},
		"no site": func() { h.decide(t, func(d *state.Draft) error { return d.Add(state.SiteDeleted{Name: name()}) }) },
		"up": func() {
			hello := protocol.Hello{AgentVersion: fmt.Sprint(r.IntN(2)), Routes: []netip.Prefix{prefix(), prefix()}}
			h.cfg.Fleet.Up(ses, hello)
			h.sessions[n.Number] = ses
			h.cfg.Fleet.MayStore(n.Number, n.Name, fleet.Announcement{Announce: func(*state.Draft) error { return nil }}, 0)
			if r.IntN(2) == 0 {
				h.decide(t, func(d *state.Draft) error { return state.AnnounceRoutes(d, n.Number, hello.Routes) })
			}
		},
		"down": func() { h.cfg.Fleet.Gone(ses, true) },
		"status": func() {
			h.cfg.Fleet.Status(ses, protocol.Status{Paths: []protocol.PathStatus{{Peer: nodes[0].Number, Path: protocol.PathRelay, MTU: 1300 + r.IntN(3), RTT: time.Duration(r.IntN(100))}}})
		},
		"acked": func() {
			h.cfg.Fleet.Acked(ses, protocol.NetmapAck{NetmapVersion: protocol.NetmapVersion{Epoch: 1, Version: uint64(r.IntN(3))}})
		},
		"decide": func() {
			if l := h.cfg.Fleet.State().NodeRoutes(n.Number); len(l) > 0 {
				h.decide(t, func(d *state.Draft) error {
					d.Announced(n.Number, h.cfg.Fleet.Announced(n.Number))
					return state.DecideRoute(d, n.Name, l[r.IntN(len(l))].Prefix, r.IntN(3) > 0, "olga")
				})
			}
		},
		"netmaps": func() {
			st := h.cfg.Fleet.State()
			for _, n := range nodes {
				h.live[n.Number] = plan.Live{Online: r.IntN(2) == 0}
			}
			c, err := policy.Compile(object.PolicyInput(st, nil, time.Now()), nil)
			require.NoError(t, err)
			h.cfg.Fleet.SetNetmaps(plan.Compute(st, h.live, c.Enforce(), nil, h.cfg.Fleet.Netmaps()), nil, time.Now())
		},
		"segment": func() {
			h.decide(t, func(d *state.Draft) error {
				return state.PutObject(d, object.SegmentKind, name(), fmt.Appendf(nil, `{"labels":{"rack":"%d"}}`, r.IntN(3)))
			})
		},
		"no segment": func() {
			h.decide(t, func(d *state.Draft) error { return d.Add(state.ObjectDeleted{Kind: object.SegmentKind, Name: name()}) })
		},
		"stray": func() { h.cfg.Fleet.NoteStray(n, protocol.NodeAsk{Epoch: 1}, netip.MustParseAddr("192.0.2.1")) },
		"admin": func() {
			h.decide(t, func(d *state.Draft) error {
				return d.Add(state.AdminCreated{Name: name(), Role: "viewer", Cert: make([]byte, 32), Expires: d.Now.Add(time.Hour)})
			})
		},
		"no admin": func() { h.decide(t, func(d *state.Draft) error { return d.Add(state.AdminRevoked{Name: name()}) }) },
		"overlay": func() {
			h.decide(t, func(d *state.Draft) error {
				return d.Add(state.OverlayWidened{Overlay: []netip.Prefix{netip.PrefixFrom(d.Overlay[0].Addr(), d.Overlay[0].Bits()-1).Masked()}})
			})
		},
	}
	names := slices.Sorted(maps.Keys(steps))
	what := names[r.IntN(len(names))]
	steps[what]()
	return what
}

// What a feed knows by looking at what it is told of is what it would know by looking at everything, whatever happens.
func TestFeedsMissNothing(t *testing.T) {
	h := startWatched(t)
	kinds := []string{"nodes", "routes", "sites", "tokens", "admins"}
	sources := map[string]source{}
	for _, k := range kinds {
		f := h.watches.feeds[k]
		f.clear()
		sources[k] = f.follow(make(chan struct{}, 1))
		require.NoError(t, f.refresh(t.Context(), nil))
	}
	all := func(f *feed) map[string]string {
		items, err := f.list(t.Context(), nil)
		require.NoError(t, err)
		g := &feed{}
		g.clear()
		for _, it := range items {
			require.NoError(t, g.put(it))
		}
		return shownBy(g)
	}
	r := rand.New(rand.NewPCG(7, 7))
	told := map[string]bool{}
	var done []string
	for i := range 2000 {
		done = append(done, h.step(t, r))
		if i%3 == 0 { // what happens together is told together
			continue
		}
		for _, k := range kinds {
			f := h.watches.feeds[k]
			before := f.seq
			f.look(t.Context(), sources[k])
			told[k] = told[k] || f.seq != before
			l, ok := sources[k].(parts)[len(sources[k].(parts))-1].(*listOfNodes)
			if ok { // its own list is made by the feed alone
				was, open := l.last, maps.Clone(l.open)
				require.Equal(t, all(f), shownBy(f), "%s after %v", k, done)
				l.last, l.open = was, open
			} else {
				require.Equal(t, all(f), shownBy(f), "%s after %v", k, done)
			}
		}
		done = nil
	}
	for _, k := range kinds {
		require.True(t, told[k], k)
		sources[k].leave()
	}
}

func shownBy(f *feed) map[string]string {
	out := map[string]string{}
	for name, o := range f.now {
		out[name] = string(o.shown)
	}
	return out
}

// A watcher hears of a change soon, and of a node that changes all the time about twice a second; what changes nothing that is
// shown wakes nobody.
func TestFeedIsWokenByChanges(t *testing.T) {
	h := startWatched(t)
	f := h.watches.feeds[api.WatchNodes]
	leave, err := f.join(t.Context())
	require.NoError(t, err)
	defer leave()
	ses := fleet.NewSession(2, true)
	h.cfg.Fleet.Up(ses, protocol.Hello{})
	wait := func(from uint64) uint64 {
		t.Helper()
		begin := time.Now()
		for {
			changes, more, err := f.since(from)
			require.NoError(t, err)
			if len(changes) > 0 {
				return from + uint64(len(changes))
			}
			select {
			case <-more:
			case <-time.After(patience):
				t.Fatalf("nothing was told for %s", time.Since(begin))
			}
		}
	}
	seq := wait(0)
	busy := time.Now().Add(3 * feedEvery)
	n := 0
	for ; time.Now().Before(busy); n++ {
		h.cfg.Fleet.Status(ses, protocol.Status{Paths: []protocol.PathStatus{{Peer: 1, MTU: 1000 + n}}})
		time.Sleep(time.Millisecond)
	}
	f.mu.Lock()
	told := f.seq - seq
	f.mu.Unlock()
	require.Greater(t, n, 20)
	require.LessOrEqual(t, told, uint64(5), "of %d changes", n)
	wait(seq)

	require.Eventually(t, func() bool { // the last of it was told
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.now["n2"].object.(api.Node).Paths[0].MTU == 1000+n-1
	}, patience, time.Millisecond)
	f.mu.Lock()
	seq, quiet := f.seq, f.news
	f.mu.Unlock()
	for i := range 50 {
		h.cfg.Fleet.Status(ses, protocol.Status{Paths: []protocol.PathStatus{{Peer: 1, MTU: 1000 + n - 1, RTT: time.Duration(i)}}})
		h.cfg.Fleet.LookAround()
	}
	h.site(t, "elsewhere")
	src := f.follow(make(chan struct{}, 1))
	defer src.leave()
	groups, all := src.take()
	require.Empty(t, groups)
	require.False(t, all)
	select {
	case <-quiet:
		t.Fatal("something was told")
	case <-time.After(2 * feedEvery):
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Equal(t, seq, f.seq)
}

func (h *watchedHub) site(t *testing.T, name string) {
	h.decide(t, func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: name}) })
}

// A token expires without anybody doing anything.
func TestFeedTellsOfTime(t *testing.T) {
	h := startWatched(t)
	f := h.watches.feeds[api.WatchTokens]
	id := protocol.TokenID{9, 9}
	h.decide(t, func(d *state.Draft) error {
		return d.Add(state.TokenCreated{ID: id, Hash: make([]byte, 32), Site: "a", Expires: time.Now().Add(2 * time.Second)})
	})
	leave, err := f.join(t.Context())
	require.NoError(t, err)
	defer leave()
	changes, more, err := f.since(0)
	require.NoError(t, err)
	require.Empty(t, changes)
	select {
	case <-more:
	case <-time.After(patience):
		t.Fatal("nothing was told")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Equal(t, string(state.TokenExpired), f.now[id.String()].object.(api.Token).State)
}
