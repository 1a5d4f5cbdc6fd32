package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"causeway/agent/desired"
	"causeway/agent/dns"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/agent/items"
	"causeway/agent/onhost"
	"causeway/netns/door"
	"causeway/protocol"
)

const (
	// namesTick is how often a server that could not listen tries again, and the host's resolver is looked at.
	namesTick = 2 * time.Second
	// askResolver is how often root is asked again to tell a resolver that does not know the zone.
	askResolver = time.Minute
)

// resolvedDir is there while systemd-resolved runs.
const resolvedDir = "/run/systemd/resolve"

// names answers for the zone 'causeway' at the plan's address of names, and has root tell the host's resolver.
type names struct {
	host     *onhost.Keeper
	own      *identity.Own
	want     *desired.Desired
	board    *health.Board
	server   *dns.Server
	listen   func(context.Context, netip.AddrPort) (*dns.Sockets, error) // dns.Listen
	told     string                                                      // identity.SplitDNSTold
	resolved string                                                      // resolvedDir
	file     string                                                      // is there while the resolver shall ask this agent: causeway-agent-dns.path watches it
	log      zerolog.Logger

	due chan struct{}

	mu     sync.Mutex
	pods   []podName
	usable func(service string, backend netip.Addr) bool // nil: of none is anything known, and all are named

	asked struct {
		link int
		at   netip.Addr
		time time.Time
	} // run's alone: when root was last asked to tell the resolver, and of what
}

// podName is a container of this host.
type podName struct {
	name  string
	addrs []netip.Addr
}

// refresh has the names looked at again.
func (n *names) refresh() { wake(n.due) }

// setUsable has the names of headless services be those of backends that are known to serve. It is called again, or refresh,
// when f says something else; f may be called concurrently.
func (n *names) setUsable(f func(service string, backend netip.Addr) bool) {
	n.mu.Lock()
	n.usable = f
	n.mu.Unlock()
	n.refresh()
}

// setContainers takes over which containers run on this host.
func (n *names) setContainers(l map[string]protocol.Container) {
	var pods []podName
	for _, c := range l {
		if name := podLabel(c.Name); c.State == protocol.ContainerRunning && protocol.ValidName(name) && len(c.Addresses) > 0 {
			pods = append(pods, podName{name, c.Addresses})
		}
	}
	slices.SortFunc(pods, func(a, b podName) int { return strings.Compare(a.name, b.name) })
	same := func(a, b podName) bool { return a.name == b.name && slices.Equal(a.addrs, b.addrs) }
	n.mu.Lock()
	changed := !slices.EqualFunc(n.pods, pods, same)
	n.pods = pods
	n.mu.Unlock()
	if changed {
		n.refresh()
	}
}

// podLabel is a container's name as a label of DNS.
func podLabel(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// view is what there is to name by these facts.
func (n *names) view(f onhost.Facts) dns.View {
	id := n.own.Now()
	v := dns.View{Address: f.Plan.Names, Nodes: []dns.Node{{Name: n.want.Name(), Site: id.Site, Overlay: id.Overlay}}}
	if held := n.want.Now().Held; held != nil {
		v.Serial = uint32(held.Netmap.Version)
	}
	for _, p := range f.Result.Peers {
		v.Nodes = append(v.Nodes, dns.Node{Name: p.Name, Site: p.Site, Overlay: p.Overlay})
	}
	n.mu.Lock()
	for _, p := range n.pods {
		v.Pods = append(v.Pods, dns.Pod{Name: p.name, Node: n.want.Name(), Site: id.Site, Addrs: p.addrs})
	}
	usable := n.usable
	n.mu.Unlock()
	for _, x := range f.Services {
		v.Services = append(v.Services, named(x, usable))
	}
	return v
}

// named is a service as its names have it.
func named(s items.Service, usable func(string, netip.Addr) bool) dns.Service {
	out := dns.Service{Name: s.Name, Segment: s.Segment, VIP4: s.VIP4, VIP6: s.VIP6, Headless: s.Headless}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, dns.Port{Name: p.Name, Protocol: p.Protocol, Port: p.Port, Target: p.Target})
	}
	for _, e := range s.Endpoints {
		out.Endpoints = append(out.Endpoints, dns.Endpoint{Addr: e.Addr, Site: e.Site, Name: e.Name, Usable: usable != nil && usable(s.Name, e.Addr)})
	}
	return out
}

// run follows the facts until ctx ends: what is answered, where, and who is told of it.
func (n *names) run(ctx context.Context) error {
	facts := n.host.WatchFacts()
	tick := time.NewTicker(namesTick)
	defer tick.Stop()
	var l listener
	defer l.end()
	var f onhost.Facts
	for again := true; ctx.Err() == nil; {
		if again {
			f = n.host.Facts()
			n.server.Set(n.view(f))
		}
		l.move(ctx, n, f.Plan.Names)
		if l.err != nil {
			n.board.Set(health.DNS, fmt.Sprintf("nobody is answered: %s", l.err))
		} else {
			n.board.SetNote(health.DNS, n.tell(f.Plan.Index, l.at, time.Now()))
		}
		again = true
		select {
		case <-ctx.Done():
		case <-facts:
		case <-n.due:
		case l.err = <-l.done: // never where it is nil
			l.end()
			again = false
		case <-tick.C:
			again = false
		}
	}
	return nil
}

// listener is the server at an address; the zero value is at none.
type listener struct {
	at   netip.Addr
	err  error              // why it is not there
	stop context.CancelFunc // nil: it does not listen
	done chan error
}

// move has the server listen at an address, and nowhere else.
func (l *listener) move(ctx context.Context, n *names, at netip.Addr) {
	if at != l.at {
		l.end()
		l.at, l.err = at, nil
	}
	if !at.IsValid() || l.stop != nil {
		return
	}
	var x *dns.Sockets
	if x, l.err = n.listen(ctx, netip.AddrPortFrom(at, door.Port)); l.err != nil {
		return
	}
	ctx, l.stop = context.WithCancel(ctx)
	done := make(chan error, 1)
	l.done = done
	go func() {
		defer close(done)
		done <- n.server.Serve(ctx, x)
	}()
}

// end has it listen no more.
func (l *listener) end() {
	if l.stop == nil {
		return
	}
	l.stop()
	for range l.done { // until it is closed
	}
	l.stop, l.done = nil, nil
}

// tell has the host's resolver ask this agent, where it can be told, and says what is left to do.
func (n *names) tell(link int, at netip.Addr, now time.Time) (note string) {
	if !at.IsValid() {
		n.untell()
		return ""
	}
	if _, err := os.Stat(n.resolved); err != nil {
		return "systemd-resolved does not run on this host: 'causeway dns snippet' prints what another resolver, or containers, need to find the names"
	}
	b, err := os.ReadFile(n.told)
	told := err == nil && string(b) == fmt.Sprintf("%d %s\n", link, at)
	if _, err := os.Stat(n.file); err != nil || !told && (n.asked.link != link || n.asked.at != at || now.Sub(n.asked.time) >= askResolver) {
		n.asked.link, n.asked.at, n.asked.time = link, at, now
		if err := os.WriteFile(n.file, []byte(at.String()+"\n"), 0o600); err != nil {
			n.log.Warn().Err(err).Msg("the host's resolver cannot be told of the names")
		}
	}
	if told {
		return ""
	}
	return "systemd-resolved was not told of the zone yet, which causeway-agent-dns.service does; 'causeway dns snippet resolved' prints it"
}

// untell has the host's resolver forget.
func (n *names) untell() {
	if err := os.Remove(n.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn().Err(err).Msg("the host's resolver cannot be told that names are answered no more")
	}
}
