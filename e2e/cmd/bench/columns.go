package main

import (
	"context"
	"encoding/json"
	"fmt"

	"causeway/e2e"
	"causeway/netns/lab"
	"causeway/protocol"
)

// Columns of the table.
const (
	colPlain        = "plain"
	colWGDirect     = "wg-direct"
	colWGHub        = "wg-hub"
	colInlineDirect = "inline-direct"
	colInlineRelay  = "inline-relay"
	colInlineStream = "inline-stream"
	colWggoDirect   = "wggo-direct"
	colWggoRelay    = "wggo-relay"
	colSmallBuffers = "relay-208KB"
	colPlainTen     = "plain-10"
	colWGTen        = "wg-direct-10"
	colDirectTen    = "direct-10"
	colRelayTen     = "relay-10"
	colDirectMany   = "direct-10+1000"
)

// column is a way to carry packets between two sites, or from one to several.
type column struct {
	name     string
	sites    int // 0: two
	measures kind
	// connect makes the sites of a world reach each other and says which
	// processes do the work.
	connect func(context.Context, *world) error
}

// kind says which figures a column has.
type kind int

const (
	all    kind = iota
	tcp         // no datagrams
	fanout      // several streams to as many sites alone
)

// active is how many addressees a fan-out has, and how many streams.
const active = 10

var columns = []column{
	{name: colPlain, connect: connectPlain},
	{name: colWGDirect, connect: connectWireGuardDirect},
	{name: colWGHub, connect: connectWireGuardHub},
	{name: colInlineDirect, connect: causeway{engine: e2e.EngineInline, path: protocol.PathDirect}.connect},
	{name: colInlineRelay, connect: causeway{engine: e2e.EngineInline, path: protocol.PathRelay}.connect},
	{name: colInlineStream, connect: causeway{engine: e2e.EngineInline, path: protocol.PathStream}.connect},
	{name: colWggoDirect, connect: causeway{engine: e2e.EngineWireGuardGo, path: protocol.PathDirect}.connect},
	{name: colWggoRelay, connect: causeway{engine: e2e.EngineWireGuardGo, path: protocol.PathRelay}.connect},
	{name: colSmallBuffers, measures: tcp, connect: causeway{engine: e2e.EngineInline, path: protocol.PathRelay, buffer: 208 << 10}.connect},
	{name: colPlainTen, sites: 1 + active, measures: fanout, connect: connectPlain},
	{name: colWGTen, sites: 1 + active, measures: fanout, connect: connectWireGuardDirect},
	{name: colDirectTen, sites: 1 + active, measures: fanout, connect: causeway{engine: e2e.EngineInline, path: protocol.PathDirect}.connect},
	{name: colRelayTen, sites: 1 + active, measures: fanout, connect: causeway{engine: e2e.EngineInline, path: protocol.PathRelay}.connect},
	{name: colDirectMany, sites: 1 + active, measures: fanout, connect: causeway{engine: e2e.EngineInline, path: protocol.PathDirect, idle: 1000}.connect},
}

func columnNames() (out []string) {
	for _, c := range columns {
		out = append(out, c.name)
	}
	return out
}

// site is a host of a world with its pod.
type site struct {
	name string
	host *lab.Host
	addr string // on the underlay
	pods string // range of its pods
	pod  *lab.Host
	at   string       // the pod's address
	proc *lab.Process // that carries its packets; nil: the kernel alone
}

// world is one column's network: its sites and a hub on one switch. The first
// site talks to each of the others.
type world struct {
	column
	lab   *lab.Lab
	bin   e2e.Binaries
	inet  *lab.Host
	hub   *lab.Host
	sites []*site

	relay *lab.Process      // on the hub; nil where packets do not cross it
	sys   *e2e.System       // of a Causeway column
	path  protocol.PathKind // that its packets must take

	idle map[string]float64 // resident memory before any load, by site and for the hub
	pps  float64            // where the search for the UDP rate begins
}

func newWorld(ctx context.Context, l *lab.Lab, bin e2e.Binaries, mode string, c column) (*world, error) {
	w := &world{column: c, lab: l, bin: bin, pps: firstRate}
	w.inet = l.Switch(c.name + "-inet")
	w.hub = l.Host(c.name+"-hub").Link("eth0", w.inet, e2e.HubAddr+"/24")
	hosts := []*lab.Host{w.hub}
	for i := range max(2, c.sites) {
		n, letter := i+1, string(rune('a'+i))
		s := &site{
			name: letter, addr: fmt.Sprintf("203.0.113.%d", 20+n),
			pods: fmt.Sprintf("10.%d.1.0/24", n), at: fmt.Sprintf("10.%d.1.11", n),
		}
		s.host = l.Host(c.name+"-"+letter).Link("eth0", w.inet, s.addr+"/24").Sysctl("net.ipv4.ip_forward=1").NoBridgeFilter()
		s.pod = s.host.PodNet("pods0", fmt.Sprintf("10.%d.1.1/24", n)).Pod(c.name+"-pod-"+letter, s.at+"/24")
		w.sites = append(w.sites, s)
		hosts = append(hosts, s.host)
	}
	if mode == modeFrames {
		realFrames(w.inet, hosts...)
	}
	for _, h := range hosts {
		if err := h.Settle(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.connect(ctx, w); err != nil {
		return nil, err
	}
	sys := &e2e.System{Lab: l, Bin: bin}
	for _, s := range w.sites {
		if _, err := sys.Serve(ctx, s.pod); err != nil {
			return nil, err
		}
	}
	for _, s := range w.sites[1:] {
		if err := e2e.Ping(ctx, w.sites[0].pod, s.at); err != nil {
			return nil, err
		}
	}
	if err := w.settle(ctx); err != nil {
		return nil, err
	}
	var err error
	w.idle, err = w.memory()
	return w, err
}

// realFrames switches off whatever lets frames above the MTU cross the
// underlay: hosts send, and the switch passes on, single frames. A host may
// join what it received (GRO), as it does behind a network card.
func realFrames(inet *lab.Host, hosts ...*lab.Host) {
	const off = "ethtool -K %s tso off gso off tx-udp-segmentation off gro %s >/dev/null 2>&1"
	for _, h := range hosts {
		h.Sh(fmt.Sprintf(off, "eth0", "on"))
	}
	inet.Sh("for p in $(ip -o link show type veth | sed 's/^[0-9]*: //; s/@.*//'); do " + fmt.Sprintf(off, "$p", "off") + "; done")
}

// connectPlain lets the sites' kernels forward.
func connectPlain(_ context.Context, w *world) error {
	first := w.sites[0]
	for _, s := range w.sites[1:] {
		first.host.Route(s.pods, s.addr)
		s.host.Route(first.pods, first.addr)
	}
	return nil
}

// settle pings until packets take the column's path both ways: an idle peer is
// not probed, so that each measurement begins with it.
func (w *world) settle(ctx context.Context) error {
	ctx, cancel := e2e.Step(ctx)
	defer cancel()
	return lab.Wait(ctx, "the path of "+w.name, func(ctx context.Context) error {
		for _, s := range w.sites[1:] {
			for _, p := range [][2]*site{{w.sites[0], s}, {s, w.sites[0]}} {
				if err := e2e.PingOnce(ctx, p[0].pod, p[1].at); err != nil {
					return err
				}
			}
		}
		return w.onPath(ctx)
	})
}

// onPath says whether agents use the column's path, both ways.
func (w *world) onPath(ctx context.Context) error {
	if w.sys == nil {
		return nil
	}
	first := w.sites[0]
	for _, s := range w.sites {
		out, err := w.sys.Node(s.name).Agent(ctx, "paths", "-o", "json")
		if err != nil {
			return err
		}
		var ps []protocol.PathStatus
		if err := json.Unmarshal([]byte(out), &ps); err != nil {
			return fmt.Errorf("read paths: %w", err)
		}
		found := map[string]protocol.PathKind{}
		for _, p := range ps {
			found[p.Name] = p.Path
		}
		for _, o := range w.sites {
			if o != s && (s == first || o == first) && found[o.name] != w.path {
				return fmt.Errorf("site %s reaches %s by path %q, not %q", s.name, o.name, found[o.name], w.path)
			}
		}
	}
	return nil
}
