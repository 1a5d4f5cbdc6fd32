package agent

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"causeway/agent/debug"
	"causeway/agent/held"
	"causeway/agent/hublink"
	"causeway/agent/identity"
	"causeway/protocol"
)

// joinedBy is how the join reached the hub, for people.
func joinedBy(j *identity.Joined) *debug.Joined {
	if j == nil {
		return nil
	}
	d := &debug.Joined{Time: j.Time, Hub: j.Hub, Addr: j.Addr, Local: j.Local, Interface: j.Interface, From: j.From, CA: j.CA}
	if j.Proxy != "" {
		d.Proxy = hublink.ShownProxy(j.Proxy)
	}
	return d
}

func notNil[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// absolute is a path as another process understands it.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

func allOK(l []protocol.Condition) bool {
	return !slices.ContainsFunc(l, func(c protocol.Condition) bool { return !c.OK })
}

func (a *answers) status() debug.Status {
	conds := a.board.List()
	s := debug.Status{StateDir: absolute(a.dir), Cluster: a.own.Now().Pin.String(), Name: a.want.Name(), Site: a.own.Now().Site, Number: a.own.Now().Number, Overlay: a.own.Now().Overlay, Version: a.version,
		Engine: a.tunnel.EngineName(), BootID: a.boot, Started: a.started, Interface: a.host.DeviceName(),
		Netmap: a.want.Have(), Routes: notNil(a.want.Announced()), Candidates: notNil(a.tunnel.Candidates()), OK: allOK(conds), Conditions: conds}
	s.Joined, s.Lacks = joinedBy(a.own.Now().Joined), hublink.Lacks(a.live.Now(), a.own.Now().Joined)
	shields := a.host.Shields()
	s.Shields = debug.Shields{Up: shields.Up, Allow: []string{}}
	for _, p := range shields.Allow {
		s.Shields.Allow = append(s.Shields.Allow, p.String())
	}
	if a.link.Connected() {
		s.Hub, s.HubVersion = a.link.Hub()
	}
	f := a.host.Facts()
	s.Peers, s.Items = len(f.Result.Peers), notNil(f.Items)
	s.Held, s.Apart, s.Local, s.Stays = heldRanges(f.Book.Closed()), []debug.Apart{}, []netip.Prefix{}, []debug.Stay{}
	for _, x := range f.Stays() {
		if x.Apart {
			s.Apart = append(s.Apart, debug.Apart{Addr: x.Prefix.Addr(), What: x.Needs[0], Advice: f.ApartAdvice(x)})
			continue
		}
		s.Local = append(s.Local, x.Prefix)
		s.Stays = append(s.Stays, debug.Stay{Own: x.Own, Range: x.In, Peer: x.Peer})
	}
	s.Taken, s.Drops = notNil(a.host.Taken()), a.tunnel.Drops()
	if s.Drops == nil { // it does not run yet
		s.Drops = protocol.Drops{}
	}
	return s
}

// used logs who looked. What is read on the host itself is frequent and
// in the list of uses; the hub's requests and changes are of interest.
func (a *answers) used(u debug.Use) {
	e := a.log.Debug()
	if u.From == debug.FromHub || u.Method != "GET" {
		e = a.log.Info()
	}
	e.Str("from", u.From).Str("who", u.Who).Str("method", u.Method).Str("endpoint", u.Path).Int("status", u.Status).Msg("debug endpoint used")
}

func (a *answers) peers() []debug.Peer {
	paths := map[protocol.NodeNumber]protocol.PathKind{}
	for _, p := range a.tunnel.Paths() {
		paths[p.Peer] = p.Path
	}
	peers := a.host.Facts().Result.Peers
	out := make([]debug.Peer, 0, len(peers))
	for _, p := range peers {
		kind := paths[p.Number()]
		if kind == "" {
			kind = protocol.PathNone
		}
		out = append(out, debug.Peer{Number: p.Number(), Name: p.Name, Site: p.Site, Overlay: p.Overlay, Routes: p.Routes,
			Candidates: notNil(p.Candidates), Direct: p.Direct, Key: p.Statement.WireGuardKey.String(), KeyEpoch: p.Statement.Epoch, Path: kind})
	}
	return out
}

func (a *answers) netmap() debug.Netmap {
	f := a.host.Facts()
	n := debug.Netmap{Refused: notNil(f.Result.Refused), Errors: notNil(f.Errors), Netmap: shown(protocol.Netmap{})}
	held := a.want.Now().Held
	if held == nil {
		return n
	}
	n.Held, n.Confirmed, n.Expired, n.Netmap = true, held.Confirmed, f.Expired, shown(held.Netmap)
	if m := held.Netmap.MaxAge; m > 0 {
		n.Expires = held.Confirmed.Add(m)
	}
	return n
}

// shown is n without a list that JSON would write as null.
func shown(n protocol.Netmap) protocol.Netmap {
	n.Self.Overlay, n.Self.Routes = notNil(n.Self.Overlay), notNil(n.Self.Routes)
	n.Peers = append([]protocol.Peer{}, n.Peers...)
	for i := range n.Peers {
		p := &n.Peers[i]
		p.Overlay, p.Routes, p.Candidates = notNil(p.Overlay), notNil(p.Routes), notNil(p.Candidates)
	}
	return n
}

func (a *answers) routes(ctx context.Context) debug.Routes {
	f := a.host.Facts()
	plan, refused := f.Plan, f.Result.Refused
	announced := a.want.Now().Netmap().Self.Routes
	r := debug.Routes{Announced: notNil(announced), Planned: notNil(plan.Lines()), Refused: notNil(refused), Missing: []string{}, Extra: []string{}}
	found, err := a.net.Found(ctx, plan.Config)
	if err != nil {
		r.Error = err.Error()
	}
	r.Found = notNil(found)
	for _, l := range r.Planned {
		if !slices.Contains(r.Found, l) {
			r.Missing = append(r.Missing, l)
		}
	}
	for _, l := range r.Found {
		if !slices.Contains(r.Planned, l) {
			r.Extra = append(r.Extra, l)
		}
	}
	return r
}

// ping pings an address, or a node or hub by name, from the node's own
// overlay address.
func (a *answers) ping(ctx context.Context, q debug.PingRequest) debug.PingResult {
	dst, err := a.target(q.To)
	if err != nil {
		return debug.PingResult{From: a.want.Name(), To: q.To, Error: err.Error()}
	}
	r := debug.Ping(ctx, a.ownOverlay(dst), dst, q.Count, time.Duration(q.Timeout))
	r.From, r.To, r.Path = a.want.Name(), q.To, a.pathTo(dst)
	return r
}

func (a *answers) target(to string) (netip.Addr, error) {
	if ip, err := netip.ParseAddr(to); err == nil {
		return ip.Unmap(), nil
	}
	for _, p := range a.host.Facts().Result.Peers {
		if p.Name == to && len(p.Overlay) > 0 {
			return p.Overlay[0], nil
		}
	}
	if to == a.want.Name() {
		return a.own.Now().Overlay[0], nil
	}
	return netip.Addr{}, fmt.Errorf("%q is neither an address nor a node of this node's netmap", to)
}

// pathTo is the path to the peer or hub that has addr, by the longest prefix;
// empty where it is none's.
func (a *answers) pathTo(addr netip.Addr) string {
	var owner protocol.NodeNumber
	bits := -1
	for _, p := range a.host.Facts().Result.Peers {
		for _, x := range p.Prefixes() {
			if x.Contains(addr) && x.Bits() > bits {
				owner, bits = p.Number(), x.Bits()
			}
		}
	}
	for _, h := range a.want.Now().Hubs.Hubs {
		if slices.Contains(a.want.Now().Hubs.Addrs(h.Number), addr) {
			owner = h.Number
		}
	}
	if owner == 0 {
		return ""
	}
	for _, p := range a.tunnel.Paths() {
		if p.Peer == owner {
			return string(p.Path)
		}
	}
	return string(protocol.PathNone)
}

// hubs is the hub list held.
func (a *answers) hubs() debug.Hubs {
	now := a.want.Now()
	return ShownHubs(now.Hubs, now.Signed, now.Shown)
}

// ShownHubs is a hub list as debug endpoints and commands show it.
func ShownHubs(l protocol.HubList, s protocol.SignedHubList, confirmed time.Time) debug.Hubs {
	return debug.Hubs{Serial: l.Serial, NotBefore: l.NotBefore, NotAfter: l.NotAfter, Confirmed: confirmed, Hubs: notNil(l.Hubs), Signed: s}
}

// setHubs takes a hub list from a person on the host.
func (a *answers) setHubs(_ context.Context, s protocol.SignedHubList) debug.HubsResult {
	taken, why := a.want.TakeHubList(s)
	return debug.HubsResult{Taken: taken, Error: why, Hubs: a.hubs()}
}

// release lets closed ranges go, for whoever may use the debug socket.
func (a *answers) release(ctx context.Context, p netip.Prefix) (debug.ReleaseResult, error) {
	out, err := a.host.Release(ctx, p)
	if err != nil {
		return debug.ReleaseResult{}, err
	}
	return debug.ReleaseResult{Released: heldRanges(out), Error: strings.Join(a.host.Facts().Errors, "; ")}, nil
}

func heldRanges(l []held.Range) []debug.HeldRange {
	out := []debug.HeldRange{}
	for _, r := range l {
		out = append(out, debug.HeldRange{Prefix: r.Prefix, Since: r.Closed})
	}
	return out
}
