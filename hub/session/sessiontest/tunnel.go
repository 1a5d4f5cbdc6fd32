// Package sessiontest holds a tunnel for tests of the hub: nodes reach its
// listeners from their overlay addresses over connections in memory, and only
// while the hub has them as nodes.
package sessiontest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"causeway/protocol"
	"causeway/tunnel"
)

// Tunnel stands in for tunnel.Hub. Its methods may be called concurrently.
type Tunnel struct {
	ready   chan struct{}
	changed chan struct{}

	mu        sync.Mutex
	nodes     map[netip.Addr]tunnel.HubNode
	bound     map[protocol.NodeNumber][]netip.AddrPort
	listeners map[netip.AddrPort]*listener
	conns     map[net.Conn]protocol.NodeNumber
	relay     tunnel.RelayStats
	bounded   map[string]uint64
}

// New makes a tunnel without nodes.
func New() *Tunnel {
	return &Tunnel{ready: make(chan struct{}), changed: make(chan struct{}, 1), nodes: map[netip.Addr]tunnel.HubNode{},
		bound: map[protocol.NodeNumber][]netip.AddrPort{}, listeners: map[netip.AddrPort]*listener{}, conns: map[net.Conn]protocol.NodeNumber{}}
}

// Run waits until ctx ends.
func (t *Tunnel) Run(ctx context.Context) error {
	close(t.ready)
	<-ctx.Done()
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		c.Close()
	}
	return nil
}

// Ready is closed once Run runs.
func (t *Tunnel) Ready() <-chan struct{} { return t.ready }

// SetKeys takes any.
func (t *Tunnel) SetKeys([]tunnel.OwnKey) error { return nil }

// SetRelayBounds does nothing: nothing is relayed.
func (t *Tunnel) SetRelayBounds([]tunnel.RelayBound) {}

// SetRelay sets what RelayStats and RelayBounded tell.
func (t *Tunnel) SetRelay(s tunnel.RelayStats, bounded map[string]uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.relay, t.bounded = s, bounded
}

// RelayBounded is what SetRelay said; nil before.
func (t *Tunnel) RelayBounded() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.bounded)
}

// RelayStats is what SetRelay said; zeros before.
func (t *Tunnel) RelayStats() tunnel.RelayStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.relay
}

// SetNodes replaces the nodes and cuts the connections of those left out.
func (t *Tunnel) SetNodes(nodes []tunnel.HubNode) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nodes = map[netip.Addr]tunnel.HubNode{}
	live := map[protocol.NodeNumber]bool{}
	for _, n := range nodes {
		if live[n.Number] {
			return fmt.Errorf("node %d twice", n.Number)
		}
		live[n.Number] = true
		for _, a := range n.Overlay {
			t.nodes[a] = n
		}
	}
	for c, n := range t.conns {
		if !live[n] {
			c.Close()
			delete(t.conns, c)
		}
	}
	return nil
}

// Alone reports whether the relay forwards nothing for node n.
func (t *Tunnel) Alone(n protocol.NodeNumber) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.nodes {
		if x.Number == n {
			return x.Alone
		}
	}
	return false
}

// Has reports whether the hub has node n.
func (t *Tunnel) Has(n protocol.NodeNumber) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.nodes {
		if x.Number == n {
			return true
		}
	}
	return false
}

// Bind sets a node's bound addresses.
func (t *Tunnel) Bind(n protocol.NodeNumber, addrs ...netip.AddrPort) {
	t.mu.Lock()
	t.bound[n] = addrs
	t.mu.Unlock()
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// Bound returns what Bind set.
func (t *Tunnel) Bound(n protocol.NodeNumber) []netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]netip.AddrPort{}, t.bound[n]...)
}

// Proven is never: nodes here send no probes.
func (t *Tunnel) Proven(protocol.NodeNumber) time.Time { return time.Time{} }

// StreamHandler has no streams.
func (t *Tunnel) StreamHandler() http.Handler { return http.NotFoundHandler() }

// BoundChanged receives after Bind.
func (t *Tunnel) BoundChanged() <-chan struct{} { return t.changed }

// Listen makes a listener that Dial reaches.
func (t *Tunnel) Listen(at netip.AddrPort) (net.Listener, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listeners[at] != nil {
		return nil, errors.New("address in use")
	}
	l := &listener{t: t, at: at, conns: make(chan net.Conn), closed: make(chan struct{})}
	t.listeners[at] = l
	return l, nil
}

// Dial connects from a node's overlay address to the hub's control port.
func (t *Tunnel) Dial(ctx context.Context, from, hub netip.Addr) (net.Conn, error) {
	return t.DialPort(ctx, from, netip.AddrPortFrom(hub, protocol.ControlPort))
}

// DialPort connects from a node's overlay address to a port of the hub's.
func (t *Tunnel) DialPort(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	t.mu.Lock()
	l := t.listeners[to]
	n, ok := t.nodes[from]
	t.mu.Unlock()
	if l == nil || !ok {
		return nil, errors.New("no session with the hub")
	}
	a, b := net.Pipe()
	t.mu.Lock()
	t.conns[b] = n.Number
	t.mu.Unlock()
	select {
	case l.conns <- conn{b, net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 40000))}:
		return a, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type conn struct {
	net.Conn
	remote net.Addr
}

func (c conn) RemoteAddr() net.Addr { return c.remote }

type listener struct {
	t      *Tunnel
	at     netip.AddrPort
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.t.mu.Lock()
		delete(l.t.listeners, l.at)
		l.t.mu.Unlock()
	})
	return nil
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }
