package e2e

import (
	"context"
	"fmt"
	"slices"

	"causeway/netns/lab"
)

// World is two data centres and a cloud region around one hub, each site
// behind a NAT router of its own that lets nothing in:
//
//	site      router                 nodes   pods
//	idc-a     endpoint-independent   a1, a2  10.1.1.0/24, 10.1.2.0/24   (a2 with two TUN queues)
//	idc-b     symmetric              b1      10.2.1.0/24
//	cloud-c   endpoint-independent   c1      10.3.1.0/24   (engine wireguard-go)
//
// Pods have IPv6 addresses as well: fd10:1:1::/64 and so on. Each site's LAN,
// 192.168.S.0/24, has a host without an agent, .50.
type World struct {
	*System
	Routers map[string]*lab.Host // by site
	Hosts   map[string]*lab.Host // nodes' hosts
	Pods    map[string]*Pod      // a1-1, a1-2, …
	LAN     map[string]*lab.Host // the host without an agent, by site
}

// Pod is a pod with its addresses.
type Pod struct {
	*lab.Host
	Node   string
	V4, V6 string
}

// Addrs of the world's underlay.
const (
	HubAddr   = "203.0.113.1"
	PublicNet = "203.0.113.0/24"
)

// Engines of the tunnel. One node runs the one that is not the default, so
// that the cases it takes part in join the two.
const (
	EngineInline      = "inline"
	EngineWireGuardGo = "wireguard-go"
	otherEngineNode   = "c1"
	queuesNode        = "a2" // has two queues, whatever the machine has
)

// Where are the world's sites and nodes.
var worldSites = []struct {
	name  string
	n     int
	nat   lab.NAT
	nodes []string
}{
	{"idc-a", 1, lab.EndpointIndependent, []string{"a1", "a2"}},
	{"idc-b", 2, lab.Symmetric, []string{"b1"}},
	{"cloud-c", 3, lab.EndpointIndependent, []string{"c1"}},
}

// WorldNodes are the names of all nodes of a World.
func WorldNodes() (out []string) {
	for _, s := range worldSites {
		out = append(out, s.nodes...)
	}
	return out
}

// PodRoutes are the pod ranges of a node of the world.
func PodRoutes(site, node int) []string {
	return []string{fmt.Sprintf("10.%d.%d.0/24", site, node), fmt.Sprintf("fd10:%d:%d::/64", site, node)}
}

// NewWorld builds the network, starts the hub and creates the sites. say is
// told each operator's command.
func NewWorld(ctx context.Context, l *lab.Lab, bin Binaries, say func(string)) (*World, error) {
	inet := l.Switch("inet")
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	w := &World{Routers: map[string]*lab.Host{}, Hosts: map[string]*lab.Host{}, Pods: map[string]*Pod{}, LAN: map[string]*lab.Host{}}
	for _, s := range worldSites {
		lan := l.Switch("lan-" + s.name)
		gw := fmt.Sprintf("192.168.%d.1", s.n)
		w.Routers[s.name] = l.Router("r-"+s.name, s.nat).
			Link("wan", inet, fmt.Sprintf("203.0.113.%d/24", 10+s.n)).
			Link("lan", lan, gw+"/24").Default(HubAddr)
		w.LAN[s.name] = l.Host("lan-host-"+s.name).Link("eth0", lan, fmt.Sprintf("192.168.%d.50/24", s.n)).Default(gw)
		// LAN hosts know by whom other sites' pods are reached, as their
		// gateway would tell them.
		w.LAN[s.name].Route("10.0.0.0/8", fmt.Sprintf("192.168.%d.11", s.n))
		for i, name := range s.nodes {
			h := l.Host(name).Link("eth0", lan, fmt.Sprintf("192.168.%d.%d/24", s.n, 11+i)).Default(gw)
			w.Hosts[name] = h
			net := h.PodNet("pods0", fmt.Sprintf("10.%d.%d.1/24", s.n, i+1), fmt.Sprintf("fd10:%d:%d::1/64", s.n, i+1))
			for p := 1; p <= 2; p++ {
				v4, v6 := fmt.Sprintf("10.%d.%d.%d", s.n, i+1, 10+p), fmt.Sprintf("fd10:%d:%d::%d", s.n, i+1, 10+p)
				pod := fmt.Sprintf("%s-%d", name, p)
				w.Pods[pod] = &Pod{Host: net.Pod(pod, v4+"/24", v6+"/64"), Node: name, V4: v4, V6: v6}
			}
		}
	}
	say("causeway-hub run --public-host " + HubAddr + "   (as an ordinary user)")
	sys, err := NewSystem(ctx, l, bin, hub, HubAddr)
	if err != nil {
		return nil, err
	}
	w.System = sys
	for _, s := range worldSites {
		say("causeway site create " + s.name)
		if err := w.CreateSite(ctx, s.name); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// JoinAll joins every node: its IPv4 pod range is approved by the token, the
// IPv6 one stands in its config and is approved by the admin. extra routes of
// a node are announced and stay as they are.
func (w *World) JoinAll(ctx context.Context, extra map[string][]string, say func(string)) error {
	var fs []func() error
	for _, s := range worldSites {
		for i, name := range s.nodes {
			fs = append(fs, func() error {
				r := PodRoutes(s.n, i+1)
				say(fmt.Sprintf("causeway token create --site %s --route %s; on %s: causeway-agent join TOKEN; causeway-agent run", s.name, r[0], name))
				spec := NodeSpec{Name: name, Site: s.name, Host: w.Hosts[name], TokenRoutes: r[:1], Routes: append([]string{r[1]}, extra[name]...)}
				switch name {
				case otherEngineNode:
					spec.Engine = EngineWireGuardGo
				case queuesNode:
					spec.Queues = 2
				}
				if _, err := w.Join(ctx, spec); err != nil {
					return fmt.Errorf("join %s: %w", name, err)
				}
				say(fmt.Sprintf("causeway route approve %s %s", name, r[1]))
				return w.Approve(ctx, name, r[1])
			})
		}
	}
	if err := lab.All(fs...); err != nil {
		return err
	}
	return w.WaitReady(ctx, WorldNodes()...)
}

// PodNames are the names of all pods, sorted.
func (w *World) PodNames() []string {
	var out []string
	for n := range w.Pods {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// WaitAllPings waits until every pod reaches every other one, by both
// families, and returns the last round trip times by "from to".
func (w *World) WaitAllPings(ctx context.Context) (map[string]float64, error) {
	all := map[string]float64{}
	for _, from := range w.PodNames() {
		var addrs []string
		names := map[string]string{}
		for _, to := range w.PodNames() {
			if to != from {
				addrs = append(addrs, w.Pods[to].V4, w.Pods[to].V6)
				names[w.Pods[to].V4] = to
			}
		}
		err := lab.Wait(ctx, "all pings of "+from, func(ctx context.Context) error {
			rtt, missing, err := w.PingAll(ctx, w.Pods[from].Host, addrs...)
			if err == nil && len(missing) > 0 {
				err = fmt.Errorf("no answer from %v", missing)
			}
			for a, r := range rtt {
				if n, ok := names[a]; ok {
					all[from+" "+n] = r
				}
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
