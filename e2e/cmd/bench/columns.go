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
	colWggoDirect   = "wggo-direct"
	colWggoRelay    = "wggo-relay"
)

// column is a way to carry packets between two sites.
type column struct {
	name string
	// connect makes sites a and b of a world reach each other and says which
	// processes do the work.
	connect func(context.Context, *world) error
}

var columns = []column{
	{colPlain, connectPlain},
	{colWGDirect, connectWireGuardDirect},
	{colWGHub, connectWireGuardHub},
	{colInlineDirect, causeway(e2e.EngineInline, protocol.PathDirect)},
	{colInlineRelay, causeway(e2e.EngineInline, protocol.PathRelay)},
	{colWggoDirect, causeway(e2e.EngineWireGuardGo, protocol.PathDirect)},
	{colWggoRelay, causeway(e2e.EngineWireGuardGo, protocol.PathRelay)},
}

func columnNames() (out []string) {
	for _, c := range columns {
		out = append(out, c.name)
	}
	return out
}

// site is a host of a world with its pod.
type site struct {
	host *lab.Host
	addr string // on the underlay
	pods string // range of its pods
	pod  *lab.Host
	at   string       // the pod's address
	proc *lab.Process // that carries its packets; nil: the kernel alone
}

// world is one column's network: sites a and b and a hub on one switch.
type world struct {
	name  string
	lab   *lab.Lab
	bin   e2e.Binaries
	hub   *lab.Host
	sites [2]*site

	relay *lab.Process      // on the hub; nil where packets do not cross it
	sys   *e2e.System       // of a Causeway column
	path  protocol.PathKind // that its packets must take

	idle map[string]float64 // resident memory before any load
	pps  float64            // where the search for the UDP rate begins
}

func newWorld(ctx context.Context, l *lab.Lab, bin e2e.Binaries, mode, name string) (*world, error) {
	w := &world{name: name, lab: l, bin: bin, pps: firstRate}
	inet := l.Switch(name + "-inet")
	w.hub = l.Host(name+"-hub").Link("eth0", inet, e2e.HubAddr+"/24")
	for i := range w.sites {
		n, letter := i+1, string(rune('a'+i))
		s := &site{
			addr: fmt.Sprintf("203.0.113.%d", 20+n),
			pods: fmt.Sprintf("10.%d.1.0/24", n), at: fmt.Sprintf("10.%d.1.11", n),
		}
		s.host = l.Host(name+"-"+letter).Link("eth0", inet, s.addr+"/24").Sysctl("net.ipv4.ip_forward=1").NoBridgeFilter()
		s.pod = s.host.PodNet("pods0", fmt.Sprintf("10.%d.1.1/24", n)).Pod(name+"-pod-"+letter, s.at+"/24")
		w.sites[i] = s
	}
	if mode == modeFrames {
		realFrames(inet, w.hub, w.sites[0].host, w.sites[1].host)
	}
	for _, h := range []*lab.Host{w.hub, w.sites[0].host, w.sites[1].host} {
		if err := h.Settle(ctx); err != nil {
			return nil, err
		}
	}
	for _, c := range columns {
		if c.name == name {
			if err := c.connect(ctx, w); err != nil {
				return nil, err
			}
		}
	}
	sys := &e2e.System{Lab: l, Bin: bin}
	for i, s := range w.sites {
		if _, err := sys.Serve(ctx, s.pod); err != nil {
			return nil, err
		}
		if err := e2e.Ping(ctx, s.pod, w.sites[1-i].at); err != nil {
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
// underlay: at the hosts' ends of the cables and at the switch's.
func realFrames(inet *lab.Host, hosts ...*lab.Host) {
	const off = "ethtool -K %s tso off gso off gro off tx-udp-segmentation off >/dev/null 2>&1"
	for _, h := range hosts {
		h.Sh(fmt.Sprintf(off, "eth0"))
	}
	inet.Sh("for p in $(ip -o link show type veth | sed 's/^[0-9]*: //; s/@.*//'); do " + fmt.Sprintf(off, "$p") + "; done")
}

// connectPlain lets the kernels of both sites forward.
func connectPlain(_ context.Context, w *world) error {
	for i, s := range w.sites {
		s.host.Route(w.sites[1-i].pods, w.sites[1-i].addr)
	}
	return nil
}

// causeway runs a hub and an agent at each site. For the relay each site drops
// what the other one sends it without the hub.
func causeway(engine string, path protocol.PathKind) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		ctx, cancel := e2e.Step(ctx)
		defer cancel()
		w.path = path
		if path == protocol.PathRelay {
			for i, s := range w.sites {
				s.host.Nft(fmt.Sprintf(`table ip bench {
	chain inp { type filter hook input priority 0; iifname "eth0" ip saddr %s meta l4proto udp drop; }
}
`, w.sites[1-i].addr))
			}
		}
		sys, err := e2e.NewSystem(ctx, w.lab, w.bin, w.hub, e2e.HubAddr)
		if err != nil {
			return err
		}
		w.sys = sys
		for i, s := range w.sites {
			name := siteNames[i]
			if err := sys.CreateSite(ctx, name); err != nil {
				return err
			}
			n, err := sys.Join(ctx, e2e.NodeSpec{Name: name, Site: name, Host: s.host, TokenRoutes: []string{s.pods}, Engine: engine})
			if err != nil {
				return err
			}
			s.proc = n.Proc
		}
		if path == protocol.PathRelay {
			w.relay = sys.Hub.Proc
		}
		return sys.WaitReady(ctx, siteNames[:]...)
	}
}

var siteNames = [2]string{"a", "b"}

// settle pings until packets take the column's path both ways: an idle peer is
// not probed, so that each measurement begins with it.
func (w *world) settle(ctx context.Context) error {
	ctx, cancel := e2e.Step(ctx)
	defer cancel()
	return lab.Wait(ctx, "the path of "+w.name, func(ctx context.Context) error {
		for i, s := range w.sites {
			if err := e2e.PingOnce(ctx, s.pod, w.sites[1-i].at); err != nil {
				return err
			}
		}
		return w.onPath(ctx)
	})
}

// onPath says whether both agents use the column's path.
func (w *world) onPath(ctx context.Context) error {
	if w.sys == nil {
		return nil
	}
	for i, name := range siteNames {
		out, err := w.sys.Node(name).Agent(ctx, "paths", "-o", "json")
		if err != nil {
			return err
		}
		var ps []protocol.PathStatus
		if err := json.Unmarshal([]byte(out), &ps); err != nil {
			return fmt.Errorf("read paths: %w", err)
		}
		found := protocol.PathKind("unknown")
		for _, p := range ps {
			if p.Name == siteNames[1-i] {
				found = p.Path
			}
		}
		if found != w.path {
			return fmt.Errorf("site %s reaches the other by path %s, not %s", name, found, w.path)
		}
	}
	return nil
}
