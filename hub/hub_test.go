package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/admin"
	"causeway/hub/api"
	"causeway/hub/join/jointest"
	"causeway/hub/session/sessiontest"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
	"causeway/tunnel/mux"
)

const patience = 20 * time.Second

// world is a running hub, with a tunnel in memory under it.
type world struct {
	t      *testing.T
	dir    string
	hub    *Hub
	tun    *sessiontest.Tunnel
	booted func(protocol.NodeNumber, protocol.BootID) // as the tunnel tells it
	admin  *http.Client
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T, dir string) *world {
	t.Helper()
	w, err := tryStart(t, dir, nil)
	require.NoError(t, err)
	return w
}

func tryStart(t *testing.T, dir string, edit func(*Config)) (*world, error) {
	t.Helper()
	return tryStartOver(t, dir, edit, func(_ tunnel.HubConfig, m *sessiontest.Tunnel) (Tunnel, error) { return m, nil })
}

// tryStartOver starts a hub over the tunnel that over makes, which may use the
// one in memory.
func tryStartOver(t *testing.T, dir string, edit func(*Config), over func(tunnel.HubConfig, *sessiontest.Tunnel) (Tunnel, error)) (*world, error) {
	t.Helper()
	sock := filepath.Join(dir, "run", "hub.sock")
	cfg := Config{DataDir: filepath.Join(dir, "data"), AdminSocket: sock, ListenHTTPS: "127.0.0.1:0", PublicHost: "127.0.0.1", Version: "test", Log: zerolog.New(zerolog.NewTestWriter(t))}
	if edit != nil {
		edit(&cfg)
	}
	w := &world{t: t, dir: dir, tun: sessiontest.New(), done: make(chan error, 1)}
	cfg.Tunnel = func(c tunnel.HubConfig) (Tunnel, error) {
		w.booted = c.OnBoot
		return over(c, w.tun)
	}
	h, err := New(cfg)
	if err != nil {
		return nil, err
	}
	w.hub = h
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	go func() { w.done <- h.Run(ctx) }()
	w.admin = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}}
	select {
	case err := <-w.done:
		w.cancel()
		return nil, err
	case <-h.Ready():
	case <-time.After(patience):
		t.Fatal("hub not ready")
	}
	t.Cleanup(w.stop)
	return w, nil
}

func (w *world) stop() {
	if w.cancel == nil {
		return
	}
	w.cancel()
	w.cancel = nil
	select {
	case err := <-w.done:
		require.NoError(w.t, err)
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		w.t.Errorf("hub does not stop: %s", buf[:runtime.Stack(buf, true)])
	}
}

// call asks the admin API; it returns the status and, of a problem, the detail.
func (w *world) call(method, path string, in, out any) (int, string) {
	w.t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		require.NoError(w.t, err)
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://hub"+path, body)
	require.NoError(w.t, err)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := w.admin.Do(req)
	require.NoError(w.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	if resp.StatusCode >= 400 {
		var p struct{ Detail string }
		require.NoError(w.t, json.Unmarshal(b, &p), string(b))
		require.NotContains(w.t, p.Detail, "\n")
		return resp.StatusCode, p.Detail
	}
	described(w.t, method, path, b)
	if out != nil {
		require.NoError(w.t, json.Unmarshal(b, out), string(b))
	}
	return resp.StatusCode, ""
}

var document = admin.New(admin.Config{}).Document()

// described holds an answer to the API's description: no field that it does not know,
// none missing that it promises.
func described(t *testing.T, method, path string, answer []byte) {
	t.Helper()
	if len(answer) == 0 {
		return
	}
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(path, "/")
	for pattern, item := range document.Paths {
		ps := strings.Split(pattern, "/")
		if len(ps) != len(parts) {
			continue
		}
		fits := true
		for i := range ps {
			fits = fits && (ps[i] == parts[i] || strings.HasPrefix(ps[i], "{"))
		}
		op := map[string]*huma.Operation{"GET": item.Get, "POST": item.Post, "PATCH": item.Patch}[method]
		if !fits || op == nil || op.Responses["200"].Content["application/json"] == nil {
			continue
		}
		var v any
		require.NoError(t, json.Unmarshal(answer, &v))
		var res huma.ValidateResult
		huma.Validate(document.Components.Schemas, op.Responses["200"].Content["application/json"].Schema, huma.NewPathBuffer([]byte("body"), 4), huma.ModeReadFromServer, v, &res)
		require.Empty(t, res.Errors, "%s %s: the answer is not as the API's description says", method, pattern)
	}
}

func (w *world) must(method, path string, in, out any) {
	w.t.Helper()
	code, detail := w.call(method, path, in, out)
	require.Less(w.t, code, 300, detail)
}

func (w *world) site(name string, ranges ...string) {
	w.t.Helper()
	spec := api.SiteSpec{Name: name}
	for _, r := range ranges {
		spec.Ranges = append(spec.Ranges, netip.MustParsePrefix(r))
	}
	w.must("POST", "/v1/sites", spec, nil)
}

func (w *world) token(spec api.TokenSpec) protocol.Token {
	w.t.Helper()
	var c api.TokenCreated
	w.must("POST", "/v1/tokens", spec, &c)
	tok, err := protocol.ParseToken(c.Text)
	require.NoError(w.t, err)
	return tok
}

// host is a host that joins, or has.
type host struct {
	wg     protocol.WireGuardPrivateKey
	id     protocol.IdentityPrivateKey
	answer protocol.JoinAnswer
	hubs   protocol.HubList
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{}
	var err error
	h.wg, err = protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	h.id, err = protocol.NewIdentityPrivateKey()
	require.NoError(t, err)
	return h
}

// join redeems tok over HTTPS.
func (h *host) join(t *testing.T, tok protocol.Token, name string, edit func(*protocol.JoinRequest)) protocol.JoinAnswer {
	t.Helper()
	c := jointest.Client(nil)
	defer c.CloseIdleConnections()
	var err error
	h.hubs, err = jointest.HubList(c, tok)
	require.NoError(t, err)
	req := protocol.JoinRequest{Version: protocol.Version, TokenID: tok.ID, Secret: tok.Secret[:], Name: name, IdentityKey: h.id.Public(), Proves: true}
	if edit != nil {
		edit(&req)
	}
	ans, err := jointest.Redeem(c, tok, h.hubs.Hubs[0].WireGuardKey, h.wg, req)
	require.NoError(t, err)
	if ans.Refused == nil {
		h.answer = ans
	}
	return ans
}

func joined(t *testing.T, w *world, name string, spec api.TokenSpec) *host {
	t.Helper()
	h := newHost(t)
	ans := h.join(t, w.token(spec), name, nil)
	require.Nil(t, ans.Refused)
	return h
}

// agent is a control session of a host.
type agent struct {
	t       *testing.T
	h       *host
	m       *mux.Session
	control net.Conn

	mu     sync.Mutex
	netmap *protocol.Netmap
	deltas int
	errs   []protocol.Error
	left   bool
	mute   bool // does not acknowledge
	// refuses is what it says in each acknowledgement that it does not take.
	refuses []protocol.RefusedPart
	bulk    func(protocol.Challenge)
	ended   chan struct{}
}

func (w *world) dial(h *host, edit func(*protocol.Hello)) *agent {
	w.t.Helper()
	a, err := w.tryDial(h, edit)
	require.NoError(w.t, err)
	return a
}

func (w *world) tryDial(h *host, edit func(*protocol.Hello)) (*agent, error) {
	hub, err := h.hubs.Hubs[0].Number.Overlay(h.hubs.Overlay[0])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var c net.Conn
	for { // the tunnel learns of the node a moment after the join
		if c, err = w.tun.Dial(ctx, h.answer.Overlay[0], hub); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(5 * time.Millisecond):
		}
	}
	a, err := sayHello(ctx, w.t, h, c, edit)
	if a != nil {
		w.t.Cleanup(func() { a.m.Close(); <-a.ended })
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

// sayHello says hello over c. An agent that comes with an error is there to be
// closed.
func sayHello(ctx context.Context, t *testing.T, h *host, c net.Conn, edit func(*protocol.Hello)) (*agent, error) {
	a := &agent{t: t, h: h, ended: make(chan struct{})}
	var err error
	if a.m, err = mux.Client(c); err != nil {
		return nil, err
	}
	if a.control, err = a.m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamControl}); err != nil {
		close(a.ended)
		return a, err
	}
	hello := protocol.Hello{AgentVersion: "test", Engine: "wireguard-go", Vouch: []byte("made below"),
		Statement: protocol.NodeStatement{Number: h.answer.Number, WireGuardKey: h.wg.Public(), Epoch: protocol.FirstKeyEpoch}.Sign(h.id)}
	if edit != nil {
		edit(&hello)
	}
	if hello.Vouch != nil { // not oldWay
		hello.Vouch = protocol.Vouch(h.hubs.Hubs[0].Number, h.answer.Number, hello.BootID, h.id)
	}
	said, err := protocol.NewMessage(protocol.KindHello, hello)
	require.NoError(t, err)
	var m protocol.Message
	a.control.SetReadDeadline(time.Now().Add(patience))
	if err := protocol.WriteFrame(a.control, said, protocol.MaxToHub); err != nil {
		close(a.ended)
		return a, err
	}
	if err := protocol.ReadFrame(a.control, &m, protocol.MaxToAgent); err != nil {
		close(a.ended)
		return a, err
	}
	if m.Kind == protocol.KindChallenge {
		ch, err := protocol.ParseChallenge(m.Body)
		require.NoError(t, err)
		a.send(protocol.KindProof, ch.Prove(h.answer.Number, said.Body, h.id))
		m = protocol.Message{}
		if err := protocol.ReadFrame(a.control, &m, protocol.MaxToAgent); err != nil {
			close(a.ended)
			return a, err
		}
	}
	a.control.SetReadDeadline(time.Time{})
	if m.Kind == protocol.KindError {
		close(a.ended)
		var e protocol.Error
		m.Decode(&e)
		return nil, fmt.Errorf("%s: %s", e.Code, e.Message)
	}
	require.Equal(t, protocol.KindWelcome, m.Kind)
	go a.read()
	return a, nil
}

// joinedBefore is joined by an agent of the version before, which proves nothing.
func joinedBefore(t *testing.T, w *world, name string) *host {
	t.Helper()
	h := newHost(t)
	require.Nil(t, h.join(t, w.token(api.TokenSpec{Site: "a"}), name, func(r *protocol.JoinRequest) { r.Proves = false }).Refused)
	return h
}

// oldWay makes a hello that of an agent of the version before, which proves nothing.
func oldWay(h *protocol.Hello) { h.Vouch = nil }

func (a *agent) send(k protocol.MessageKind, body any) {
	m, err := protocol.NewMessage(k, body)
	if err == nil {
		protocol.WriteFrame(a.control, m, protocol.MaxToHub)
	}
}

func (a *agent) read() {
	defer close(a.ended)
	for {
		var m protocol.Message
		if protocol.ReadFrame(a.control, &m, protocol.MaxToAgent) != nil {
			return
		}
		a.mu.Lock()
		switch m.Kind {
		case protocol.KindNetmap:
			var n protocol.Netmap
			if m.Decode(&n) != nil {
				a.t.Error("netmap does not decode")
			}
			if n.Base != nil {
				a.deltas++
			}
			if a.netmap != nil && !a.netmap.Less(n.NetmapVersion) {
				a.t.Errorf("netmap %s after %s", n.NetmapVersion, a.netmap.NetmapVersion)
			}
			full, err := n.Apply(a.netmap)
			ack := protocol.NetmapAck{NetmapVersion: n.NetmapVersion, Full: err != nil, Refused: a.refuses}
			if err == nil {
				a.netmap = &full
			}
			if !a.mute {
				a.mu.Unlock()
				a.send(protocol.KindNetmapAck, ack)
				a.mu.Lock()
			}
		case protocol.KindError:
			var e protocol.Error
			m.Decode(&e)
			a.errs = append(a.errs, e)
		case protocol.KindLeft:
			a.left = true
		case protocol.KindBulk:
			if c, err := protocol.ParseChallenge(m.Body); err != nil || a.bulk == nil {
				a.t.Errorf("asked for a bulk connection: %v", err)
			} else {
				go a.bulk(c)
			}
		}
		a.mu.Unlock()
	}
}

// until waits until the agent's netmap fulfils cond.
func (a *agent) until(what string, cond func(protocol.Netmap) bool) protocol.Netmap {
	a.t.Helper()
	var last protocol.Netmap
	require.Eventually(a.t, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.netmap == nil {
			return false
		}
		last = *a.netmap
		return cond(last)
	}, patience, 2*time.Millisecond, what)
	return last
}

func (a *agent) ready() {
	a.send(protocol.KindStatus, protocol.Status{Conditions: []protocol.Condition{{Name: "tunnel", OK: true}}})
}

func routesOf(n protocol.Netmap, peer string) []string {
	out := []string{}
	for _, p := range n.Peers {
		if p.Name == peer {
			for _, r := range p.Routes {
				out = append(out, r.String())
			}
		}
	}
	return out
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestJoinConnectApprove(t *testing.T) {
	t.Parallel()
	w := start(t, t.TempDir())
	w.site("idc-sh", "10.1.0.0/16")
	w.site("cloud-eu")
	one := joined(t, w, "sh-01", api.TokenSpec{Site: "idc-sh"})
	two := joined(t, w, "eu-01", api.TokenSpec{Site: "cloud-eu", Routes: prefixes("10.9.0.0/24")})
	require.Equal(t, protocol.NodeNumber(2), one.answer.Number)
	require.Equal(t, "198.18.0.2", one.answer.Overlay[0].String())

	a := w.dial(one, func(h *protocol.Hello) { h.Routes = prefixes("10.1.2.0/24", "172.16.0.0/16") })
	b := w.dial(two, nil)
	n := b.until("peer", func(n protocol.Netmap) bool { return len(routesOf(n, "sh-01")) == 1 })
	require.Equal(t, []string{"10.1.2.0/24"}, routesOf(n, "sh-01"))
	require.True(t, n.Peers[0].Statement.Valid())
	require.True(t, n.Peers[0].Direct)
	require.Equal(t, []protocol.AnnouncedRoute{{Prefix: netip.MustParsePrefix("10.9.0.0/24"), State: protocol.RouteApproved}}, n.Self.Routes)
	a.until("token route", func(n protocol.Netmap) bool { return len(routesOf(n, "eu-01")) == 1 })

	// Approve: in the other agent's netmap well under a second.
	t0 := time.Now()
	w.must("POST", "/v1/routes/decide", api.RouteDecision{Node: "sh-01", Prefix: netip.MustParsePrefix("172.16.0.0/16"), Approve: true}, nil)
	b.until("approved route", func(n protocol.Netmap) bool { return len(routesOf(n, "sh-01")) == 2 })
	require.Less(t, time.Since(t0), 900*time.Millisecond)
	b.mu.Lock()
	require.Positive(t, b.deltas, "changes come as deltas")
	b.mu.Unlock()

	code, detail := w.call("POST", "/v1/routes/decide", api.RouteDecision{Node: "sh-01", Prefix: netip.MustParsePrefix("172.17.0.0/16"), Approve: true}, nil)
	require.Equal(t, 404, code)
	require.Contains(t, detail, "172.16.0.0/16")

	// Candidates change without a transaction: same log sequence, another minor.
	before := b.until("any", func(protocol.Netmap) bool { return true })
	w.tun.Bind(one.answer.Number, netip.MustParseAddrPort("203.0.113.5:4444"))
	after := b.until("candidate", func(n protocol.Netmap) bool { return len(n.Peers[0].Candidates) == 1 })
	require.Equal(t, before.Version, after.Version)
	require.Greater(t, after.Minor, before.Minor)
	a.send(protocol.KindStatus, protocol.Status{Candidates: []netip.AddrPort{netip.MustParseAddrPort("192.168.7.7:5"), netip.MustParseAddrPort("127.0.0.1:9"), netip.MustParseAddrPort("198.18.0.9:9")}})
	b.until("own candidate", func(n protocol.Netmap) bool { return len(n.Peers[0].Candidates) == 2 })

	// States.
	var nodes []api.Node
	b.ready()
	require.Eventually(t, func() bool {
		w.must("GET", "/v1/nodes", nil, &nodes)
		return len(nodes) == 2 && nodes[0].State == api.NodeReady
	}, patience, 5*time.Millisecond)
	require.Equal(t, "eu-01", nodes[0].Name)
	found := func(want ...string) {
		t.Helper()
		var k api.Checkup
		w.must("GET", "/v1/doctor", nil, &k)
		got := []string{}
		for _, f := range k.Findings {
			if f.Severity != api.SeverityInfo {
				got = append(got, f.Severity+" "+f.Where+" "+f.Check)
			}
		}
		require.Equal(t, append([]string{}, want...), got)
		require.Equal(t, 2, k.Nodes)
	}
	found()
	a.send(protocol.KindStatus, protocol.Status{Conditions: []protocol.Condition{{Name: "firewall", Cause: "docker drops"}}})
	require.Eventually(t, func() bool {
		w.must("GET", "/v1/nodes/sh-01", nil, &nodes[1])
		return nodes[1].State == api.NodeDegraded && strings.Contains(nodes[1].Reasons[0], "docker drops")
	}, patience, 5*time.Millisecond)
	found("warning sh-01 condition-firewall")
	a.m.Close()
	require.Eventually(t, func() bool {
		w.must("GET", "/v1/nodes/sh-01", nil, &nodes[1])
		return nodes[1].State == api.NodeUnreachable
	}, patience, 5*time.Millisecond)
	found("critical sh-01 node-unreachable")
	i := slices.IndexFunc(nodes[1].Routes, func(r api.Route) bool { return r.Owner })
	require.GreaterOrEqual(t, i, 0, "netmaps go on holding it: %+v", nodes[1].Routes)
	require.Equal(t, "the node is unreachable", nodes[1].Routes[i].Why)
	w.must("PATCH", "/v1/nodes/sh-01", api.NodePatch{Labels: map[string]string{"rack": "7"}}, &nodes[1])
	require.Equal(t, "sh-01", nodes[1].Name)
	require.Equal(t, map[string]string{"rack": "7"}, nodes[1].Labels)
	var st api.Status
	w.must("GET", "/v1/status", nil, &st)
	require.Equal(t, 1, st.Sites[0].Ready)
	require.Equal(t, 1, st.Sites[1].Unreachable)

	// How long agents go on without a hub is the site's.
	var site api.Site
	w.must("GET", "/v1/sites/"+nodes[0].Site, nil, &site)
	require.Equal(t, api.MaxAge(state.DefaultMaxAge), site.MaxAge)
	b.until("the default max_age", func(n protocol.Netmap) bool { return n.MaxAge == state.DefaultMaxAge })
	for _, age := range []api.MaxAge{api.MaxAge(90 * time.Minute), api.Forever} {
		w.must("PATCH", "/v1/sites/"+nodes[0].Site, api.SitePatch{MaxAge: age}, &site)
		require.Equal(t, age, site.MaxAge)
		b.until("max_age "+age.String(), func(n protocol.Netmap) bool { return n.MaxAge == max(0, time.Duration(age)) })
	}
	for _, age := range []api.MaxAge{api.MaxAge(time.Minute), api.MaxAge(100 * 366 * 24 * time.Hour), 0} {
		status, _ := w.call("PATCH", "/v1/sites/"+nodes[0].Site, api.SitePatch{MaxAge: age}, nil)
		require.Equal(t, 422, status, age)
	}
	w.must("GET", "/v1/sites/"+nodes[0].Site, nil, &site)
	require.Equal(t, api.Forever, site.MaxAge, "what was refused changed nothing")
}

// Addresses that flap make few netmaps; a change of state meanwhile does not wait
// for them.
func TestFlappingIsGathered(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	one, two := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"})
	route := netip.MustParsePrefix("172.16.0.0/16")
	w.dial(one, func(h *protocol.Hello) { h.Routes = []netip.Prefix{route} })
	b := w.dial(two, nil)
	b.until("one", func(n protocol.Netmap) bool { return len(n.Peers) == 1 })

	const lasts = 4 * time.Second
	flap := time.NewTicker(10 * time.Millisecond)
	defer flap.Stop()
	var end uint16
	decided := make(chan time.Duration, 1)
	t0 := time.Now()
	for now := range flap.C {
		if now.Sub(t0) > lasts {
			break
		}
		end++
		w.tun.Bind(one.answer.Number, netip.AddrPortFrom(netip.MustParseAddr("203.0.113.5"), end))
		if end == 200 {
			go func() {
				t1 := time.Now()
				w.must("POST", "/v1/routes/decide", api.RouteDecision{Node: "one", Prefix: route, Approve: true}, nil)
				b.until("approved route", func(n protocol.Netmap) bool { return len(routesOf(n, "one")) == 1 })
				decided <- time.Since(t1)
			}()
		}
	}
	b.mu.Lock()
	pushed := b.deltas
	b.mu.Unlock()
	took := <-decided
	t.Logf("%d changes of an address in %s made %d netmaps; a route was approved in %s", end, lasts, pushed, took.Round(time.Millisecond))
	require.Less(t, pushed, 12)
	require.Less(t, took, 900*time.Millisecond)
	b.until("the last address", func(n protocol.Netmap) bool {
		return len(n.Peers[0].Candidates) == 1 && n.Peers[0].Candidates[0].Port() == end
	})
}

func TestTokenIsRedeemedOnce(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir)
	w.site("a")
	tok := w.token(api.TokenSpec{Site: "a", Routes: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/24")}})
	h := newHost(t)
	first := h.join(t, tok, "one", nil)
	require.Nil(t, first.Refused)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.7.0.0/24")}, first.Routes, "what the token grants")
	require.Equal(t, first, h.join(t, tok, "one", nil), "the same key's retry gets the same answer")
	other := newHost(t).join(t, tok, "two", nil)
	require.Equal(t, protocol.RefusedToken, other.Refused.Code)
	foreign, err := protocol.NewToken(tok.Pin, tok.Addr)
	require.NoError(t, err)
	unknown := newHost(t).join(t, foreign, "two", nil)
	require.Equal(t, other.Refused, unknown.Refused, "every doubt is told alike")
	short := newHost(t).join(t, w.token(api.TokenSpec{Site: "a"}), "two", func(r *protocol.JoinRequest) { r.Secret = r.Secret[:16] })
	require.Equal(t, other.Refused, short.Refused)
	revoked := w.token(api.TokenSpec{Site: "a"})
	w.must("DELETE", "/v1/tokens/"+revoked.ID.String(), nil, nil)
	require.Equal(t, other.Refused, newHost(t).join(t, revoked, "two", nil).Refused)
	// Who shows an open token may know what is wrong with the name.
	taken := newHost(t).join(t, w.token(api.TokenSpec{Site: "a"}), "one", nil).Refused
	require.Equal(t, protocol.RefusedRequest, taken.Code)
	require.Contains(t, taken.Message, "the name one is taken by node 2 of site a")
	noName := newHost(t).join(t, w.token(api.TokenSpec{Site: "a"}), "No Name", nil).Refused
	require.Equal(t, protocol.RefusedRequest, noName.Code)
	old := newHost(t).join(t, w.token(api.TokenSpec{Site: "a"}), "two", func(r *protocol.JoinRequest) { r.Version = 7 })
	require.Equal(t, protocol.RefusedVersion, old.Refused.Code)
	var events []api.Event
	w.must("GET", "/v1/events", nil, &events)
	require.Len(t, events, 7)
	// The reasons are in the audit, and stay there.
	reasons := func() (out []string) {
		var audit []api.AuditEntry
		w.must("GET", "/v1/audit", nil, &audit)
		for _, e := range audit {
			if e.Why == "join refused" {
				out = append(out, e.Changes[0])
			}
		}
		return out
	}
	for i, want := range []string{"protocol version", "is no node name", "name one is taken", "revoked", "wrong secret", "unknown token", "used already by node one"} {
		require.Contains(t, reasons()[i], want)
	}

	w.stop()
	w = start(t, dir)
	tok.Addr = w.token(api.TokenSpec{Site: "a"}).Addr // another port
	require.Len(t, reasons(), 7)
	again := h.join(t, tok, "one", nil)
	require.Nil(t, again.Refused)
	require.Equal(t, first.Number, again.Number)
	other = newHost(t).join(t, tok, "two", nil)
	require.Equal(t, protocol.RefusedToken, other.Refused.Code)
	var tokens []api.Token
	w.must("GET", "/v1/tokens", nil, &tokens)
	used := 0
	for _, k := range tokens {
		if k.State == "used" {
			used++
			require.Equal(t, "one", k.UsedBy)
		}
	}
	require.Equal(t, 1, used)
	b, err := os.ReadFile(filepath.Join(dir, "data", "log.json"))
	require.NoError(t, err)
	require.Contains(t, string(b), "last_sequence")
	filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			require.False(t, bytes.Contains(b, tok.Secret[:]), p)
		}
		return nil
	})
}

func TestRestartKeepsAgentsGoing(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir)
	w.site("a", "10.0.0.0/8")
	one, two := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"})
	w.dial(one, func(h *protocol.Hello) { h.Routes = prefixes("10.1.0.0/16") })
	b := w.dial(two, nil)
	held := b.until("route", func(n protocol.Netmap) bool { return len(routesOf(n, "one")) == 1 })
	w.stop()
	w = start(t, dir)
	b = w.dial(two, func(h *protocol.Hello) { h.Have = held.NetmapVersion })
	b.mu.Lock()
	b.netmap = &held
	b.mu.Unlock()
	n := b.until("newer netmap", func(n protocol.Netmap) bool { return held.Less(n.NetmapVersion) })
	require.Equal(t, []string{"10.1.0.0/16"}, routesOf(n, "one"), "an agent that is away keeps its routes")
}

func TestRevokeAndLeave(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	one, two, three := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"}), joined(t, w, "three", api.TokenSpec{Site: "a"})
	a, b, c := w.dial(one, nil), w.dial(two, nil), w.dial(three, nil)
	c.until("both", func(n protocol.Netmap) bool { return len(n.Peers) == 2 })
	w.must("DELETE", "/v1/nodes/one", nil, nil)
	<-a.ended
	require.Equal(t, protocol.ErrorRevoked, a.errs[0].Code)
	require.Eventually(t, func() bool { return !w.tun.Has(one.answer.Number) }, patience, time.Millisecond)
	c.until("one gone", func(n protocol.Netmap) bool { return len(n.Peers) == 1 && n.Peers[0].Name == "two" })
	b.send(protocol.KindLeave, struct{}{})
	<-b.ended
	require.True(t, b.left)
	c.until("two gone", func(n protocol.Netmap) bool { return len(n.Peers) == 0 })
	require.Eventually(t, func() bool { return !w.tun.Has(two.answer.Number) }, patience, time.Millisecond)
	var nodes []api.Node
	w.must("GET", "/v1/nodes", nil, &nodes)
	got := map[string]string{}
	for _, n := range nodes {
		got[n.Name] = n.State
	}
	require.Equal(t, api.NodeRevoked, got["one"])
	require.Equal(t, api.NodeLeft, got["two"])
	code, detail := w.call("DELETE", "/v1/nodes/one", nil, nil)
	require.Equal(t, 404, code)
	require.Contains(t, detail, "revoked")
	// The name is free again; the number is not used again.
	again := joined(t, w, "one", api.TokenSpec{Site: "a"})
	require.Equal(t, protocol.NodeNumber(5), again.answer.Number)
}

func TestReplace(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	joined(t, w, "one", api.TokenSpec{Site: "a"})
	tok := w.token(api.TokenSpec{Site: "a", Replace: "one"})
	h := newHost(t)
	require.Contains(t, h.join(t, tok, "one", nil).Refused.Message, "--replace")
	ans := h.join(t, tok, "one", func(r *protocol.JoinRequest) { r.Replace = true })
	require.Nil(t, ans.Refused)
	require.Equal(t, protocol.NodeNumber(3), ans.Number)
	require.Eventually(t, func() bool { return !w.tun.Has(2) && w.tun.Has(3) }, patience, time.Millisecond)
}

func TestHelloIsChecked(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	one, two := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"})
	for name, edit := range map[string]func(*protocol.Hello){
		"other number":   func(h *protocol.Hello) { h.Statement.Number = two.answer.Number },
		"other identity": func(h *protocol.Hello) { h.Statement = h.Statement.NodeStatement.Sign(two.id) },
		"other key": func(h *protocol.Hello) {
			h.Statement.WireGuardKey = two.wg.Public()
			h.Statement = h.Statement.NodeStatement.Sign(one.id)
		},
		"no signature": func(h *protocol.Hello) { h.Statement.Signature = nil },
	} {
		_, err := w.tryDial(one, edit)
		require.ErrorContains(t, err, "bad_message", name)
	}
	// A second session takes the place of the first.
	a := w.dial(one, nil)
	b := w.dial(one, nil)
	<-a.ended
	b.ready()
	var n api.Node
	require.Eventually(t, func() bool { w.must("GET", "/v1/nodes/one", nil, &n); return n.State == api.NodeReady }, patience, 5*time.Millisecond)
	// Unknown kinds are answered; the stream goes on.
	b.send("teleport", struct{}{})
	require.Eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.errs) == 1 && b.errs[0].Code == protocol.ErrorUnknownKind
	}, patience, time.Millisecond)
	st, err := b.m.Open(t.Context(), protocol.StreamHeader{Kind: "teleport"})
	require.NoError(t, err)
	var m protocol.Message
	st.SetReadDeadline(time.Now().Add(patience))
	require.NoError(t, protocol.ReadFrame(st, &m, protocol.MaxToAgent))
	require.Equal(t, protocol.KindError, m.Kind)
	w.dial(two, nil) // the hub still works
}

// One node cannot use up what the hub has for all.
func TestOneNodeIsBounded(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	h := joined(t, w, "one", api.TokenSpec{Site: "a"})
	a := w.dial(h, nil)
	a.ready()

	// Streams beyond a burst wait.
	for i := range 40 {
		st, err := a.m.Open(t.Context(), protocol.StreamHeader{Kind: "teleport"})
		require.NoError(t, err)
		defer st.Close()
		var m protocol.Message
		st.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if err = protocol.ReadFrame(st, &m, protocol.MaxToAgent); err != nil {
			require.True(t, timedOut(err), err)
			require.GreaterOrEqual(t, i, 2)
			break
		}
		require.Less(t, i, 39, "as many streams as it likes")
	}

	// Of connections that say nothing the oldest goes; what is there goes on.
	hub, err := h.hubs.Hubs[0].Number.Overlay(h.hubs.Overlay[0])
	require.NoError(t, err)
	var closed atomic.Int32
	for range 136 {
		c, err := w.tun.Dial(t.Context(), h.answer.Overlay[0], hub)
		require.NoError(t, err)
		defer c.Close()
		go func() {
			c.Read(make([]byte, 1))
			closed.Add(1)
		}()
	}
	require.Eventually(t, func() bool { return closed.Load() >= 8 }, 3*time.Second, 10*time.Millisecond, "as many connections as it likes")
	require.EqualValues(t, 8, closed.Load(), "those that there is room for go as well")
	select {
	case <-a.ended:
		t.Fatal("the session ended")
	default:
	}
}

func timedOut(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

type natsDialer struct{ a *agent }

func (d natsDialer) Dial(_, _ string) (net.Conn, error) {
	return d.a.m.Open(context.Background(), protocol.StreamHeader{Kind: protocol.StreamNATS})
}

func (natsDialer) SkipTLSHandshake() bool { return true }

func TestInventoryOverNATS(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir)
	w.site("a")
	one := joined(t, w, "one", api.TokenSpec{Site: "a"})
	a := w.dial(one, nil)
	nc, err := nats.Connect("nats://hub:4222", nats.SetCustomDialer(natsDialer{a}), nats.SkipHostLookup(), nats.NoReconnect(), nats.CustomInboxPrefix(protocol.InboxPrefix(one.answer.Number)))
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	subject := protocol.InventorySubject("a", one.answer.Number)
	_, err = js.Publish(ctx, subject, []byte(`{"nonsense":`))
	require.NoError(t, err)
	b, err := json.Marshal(protocol.Inventory{Version: 1, Sequence: 1, Hostname: "one\x1b[31m", Kernel: "6.1", CPUs: 4})
	require.NoError(t, err)
	_, err = js.Publish(ctx, subject, b)
	require.NoError(t, err)
	check := func() {
		var inv api.Inventory
		require.Eventually(t, func() bool {
			code, _ := w.call("GET", "/v1/inventory/one", nil, &inv)
			return code == 200
		}, patience, 5*time.Millisecond)
		require.Equal(t, "one [31m", inv.Hostname)
		require.Equal(t, 4, inv.CPUs)
		require.Equal(t, one.answer.Number, inv.Number)
	}
	check()
	var events []api.Event
	w.must("GET", "/v1/events", nil, &events)
	require.Equal(t, "inventory_bad", events[0].Kind)
	nc.Close()
	w.stop()
	w = start(t, dir)
	check()
	code, detail := w.call("GET", "/v1/inventory/nobody", nil, nil)
	require.Equal(t, 404, code)
	require.Contains(t, detail, "nobody")
}

func TestDebugAndPing(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	one := joined(t, w, "one", api.TokenSpec{Site: "a"})
	joined(t, w, "two", api.TokenSpec{Site: "a"})
	code, detail := w.call("POST", "/v1/diag/ping", api.PingRequest{From: "one", To: "two"}, nil)
	require.Equal(t, 502, code)
	require.Contains(t, detail, "no control session")
	a := w.dial(one, nil)
	srv := http.NewServeMux()
	srv.HandleFunc("POST /v1/ping", func(rw http.ResponseWriter, r *http.Request) {
		var in struct {
			To      string
			Count   int
			Timeout string
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.To != "198.18.0.3" || in.Timeout != "1s" {
			http.Error(rw, fmt.Sprint(in, err), 400)
			return
		}
		fmt.Fprintf(rw, `{"addr":%q,"sent":%d,"received":%d,"min_rtt":"1ms","avg_rtt":"1ms","max_rtt":"2ms"}`, in.To, in.Count, in.Count)
	})
	srv.HandleFunc("GET /v1/health", func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, `{"ok":true}`) })
	go func() {
		for {
			st, err := a.m.Accept(context.Background())
			if err != nil {
				return
			}
			if h, err := mux.ReadHeader(st); err != nil || h.Kind != protocol.StreamDebug {
				st.Close()
				continue
			}
			go http.Serve(&once{c: st, end: make(chan struct{})}, srv)
		}
	}()
	a.until("the hub has the session", func(protocol.Netmap) bool { return true })
	var res api.PingResult
	w.must("POST", "/v1/diag/ping", api.PingRequest{From: "one", To: "two", Count: 2}, &res)
	require.Equal(t, 2, res.Received)
	require.Equal(t, "two", res.To)
	require.Equal(t, "198.18.0.3", res.Addr.String())
	var health struct{ OK bool }
	w.must("GET", "/v1/nodes/one/debug/v1/health", nil, &health)
	require.True(t, health.OK)
	code, _ = w.call("GET", "/v1/nodes/two/debug/v1/health", nil, nil)
	require.Equal(t, 502, code)
	code, _ = w.call("POST", "/v1/diag/ping", api.PingRequest{From: "one", To: "nobody"}, nil)
	require.Equal(t, 404, code)
	code, _ = w.call("POST", "/v1/diag/ping", api.PingRequest{From: "one", To: "two", Count: 1000}, nil)
	require.Equal(t, 422, code)
}

// once is a listener of one connection.
type once struct {
	c   net.Conn
	end chan struct{}
	mu  sync.Mutex
}

func (o *once) Accept() (net.Conn, error) {
	o.mu.Lock()
	c := o.c
	o.c = nil
	o.mu.Unlock()
	if c == nil {
		return nil, errors.New("done")
	}
	return c, nil
}
func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return &net.TCPAddr{} }

func TestAdminErrorsSayWhatToDo(t *testing.T) {
	w := start(t, t.TempDir())
	for _, c := range []struct {
		method, path string
		in           any
		code         int
		says         string
	}{
		{"POST", "/v1/tokens", api.TokenSpec{Site: "nowhere"}, 404, "site create"},
		{"GET", "/v1/sites/nowhere", nil, 404, "site create"},
		{"GET", "/v1/nodes/nobody", nil, 404, "node list"},
		{"POST", "/v1/sites", api.SiteSpec{Name: "Not A Name"}, 422, "site name"},
		{"POST", "/v1/sites", api.SiteSpec{Name: "x", Ranges: prefixes("0.0.0.0/0")}, 422, "default route"},
		{"POST", "/v1/sites", api.SiteSpec{Name: "x", Ranges: prefixes("198.18.0.0/16")}, 422, "overlay"},
		{"POST", "/v1/sites", api.SiteSpec{Name: "x", Ranges: prefixes("10.0.0.1/8")}, 422, "10.0.0.0/8"},
		{"DELETE", "/v1/tokens/abc", nil, 404, "token list"},
	} {
		code, detail := w.call(c.method, c.path, c.in, nil)
		require.Equal(t, c.code, code, "%s %s: %s", c.method, c.path, detail)
		require.Contains(t, detail, c.says)
	}
	w.site("x")
	code, detail := w.call("POST", "/v1/sites", api.SiteSpec{Name: "x"}, nil)
	require.Equal(t, 409, code)
	require.Contains(t, detail, "exists")
	code, detail = w.call("POST", "/v1/tokens", api.TokenSpec{Site: "y"}, nil)
	require.Equal(t, 404, code)
	require.Contains(t, detail, "there are x")
	var audit []api.AuditEntry
	w.must("GET", "/v1/audit?limit=1", nil, &audit)
	require.Len(t, audit, 1)
	require.Equal(t, "site create x", audit[0].Why)
	require.True(t, strings.HasPrefix(audit[0].Who, "unix:") && audit[0].Who != "unix:unknown", audit[0].Who)
}

// An overlay that is used up is widened by a restart, and the hosts that are there keep
// their addresses.
func TestOverlayGrows(t *testing.T) {
	dir := t.TempDir()
	with := func(cidr string) (*world, error) {
		return tryStart(t, dir, func(c *Config) { c.Overlay = prefixes(cidr) })
	}
	w, err := with("10.99.0.0/30")
	require.NoError(t, err)
	w.site("a")
	one := joined(t, w, "one", api.TokenSpec{Site: "a"})
	joined(t, w, "two", api.TokenSpec{Site: "a"})
	require.NotNil(t, newHost(t).join(t, w.token(api.TokenSpec{Site: "a"}), "three", nil).Refused)
	w.stop()
	_, err = with("10.99.0.0/31")
	require.Error(t, err)
	w, err = with("10.99.0.0/24")
	require.NoError(t, err)
	joined(t, w, "three", api.TokenSpec{Site: "a"})
	var n api.Node
	w.must("GET", "/v1/nodes/one", nil, &n)
	require.Equal(t, one.answer.Overlay, n.Overlay)
	var st api.Status
	w.must("GET", "/v1/status", nil, &st)
	require.Equal(t, prefixes("10.99.0.0/24"), st.Hub.Overlay)
}

func TestStartRefuses(t *testing.T) {
	dir := t.TempDir()
	w := start(t, dir)
	w.site("a")
	_, err := tryStart(t, dir, nil)
	require.ErrorContains(t, err, "another causeway-hub uses")
	_, err = tryStart(t, t.TempDir(), func(c *Config) { c.AdminSocket = filepath.Join(dir, "run", "hub.sock") })
	require.ErrorContains(t, err, "another hub answers")
	w.stop()

	_, err = tryStart(t, dir, func(c *Config) { c.Overlay = prefixes("198.19.0.0/16") })
	require.ErrorContains(t, err, "cannot be changed")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = tryStart(t, dir, func(c *Config) { c.ListenHTTPS = l.Addr().String() })
	require.ErrorContains(t, err, "taken by another program")

	// The log is lost: refused, not taken for a new cluster.
	data := filepath.Join(dir, "data")
	require.NoError(t, os.Rename(filepath.Join(data, "nats"), filepath.Join(data, "nats.away")))
	_, err = tryStart(t, dir, nil)
	require.ErrorContains(t, err, "restore")
	require.NoError(t, os.RemoveAll(filepath.Join(data, "nats")))
	require.NoError(t, os.Rename(filepath.Join(data, "nats.away"), filepath.Join(data, "nats")))
	require.NoError(t, os.Rename(filepath.Join(data, "log.json"), filepath.Join(data, "log.away")))
	_, err = tryStart(t, dir, nil)
	require.ErrorContains(t, err, "incomplete")
	require.NoError(t, os.Rename(filepath.Join(data, "log.away"), filepath.Join(data, "log.json")))
	key, err := os.ReadFile(filepath.Join(data, "cluster.key"))
	require.NoError(t, err)
	fi, err := os.Stat(filepath.Join(data, "cluster.key"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
	require.NoError(t, os.WriteFile(filepath.Join(data, "cluster.key"), []byte("garbage"), 0o600))
	_, err = tryStart(t, dir, nil)
	require.ErrorContains(t, err, "no key file")
	require.NotContains(t, err.Error(), "garbage")
	require.NoError(t, os.Remove(filepath.Join(data, "cluster.key")))
	_, err = tryStart(t, dir, nil)
	require.ErrorContains(t, err, "is missing")
	require.NoError(t, os.WriteFile(filepath.Join(data, "cluster.key"), key, 0o600))
	start(t, dir).must("GET", "/v1/sites/a", nil, nil)
}
