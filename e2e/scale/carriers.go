package scale

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/wggo"
	"causeway/tunnel/netstack"
	"causeway/tunnel/underlay"
)

// Times of an agent (package agent).
const (
	dialTimeout = 3 * time.Second
	lostAfter   = 3 * time.Second
	pollBound   = 250 * time.Millisecond
)

// simCarrier is a connection to the hub's process, without a tunnel.
type simCarrier struct {
	socket  string
	overlay netip.Addr
}

func (c simCarrier) dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", filepath.Join(c.socket, simSocket))
	if err != nil {
		return nil, err
	}
	if err := protocol.WriteFrame(conn, simHeader{c.overlay}, protocol.MaxStreamHeader); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (simCarrier) lost() <-chan struct{} { return nil } // the connection tells

// wgCarrier is an agent's underlay over UDP, its WireGuard device and a TCP stack of
// its own over that.
type wgCarrier struct {
	hub   protocol.Hub
	to    netip.AddrPort // the hub's control port
	net   *netstack.Net
	eng   *wggo.Engine
	under *underlay.Underlay

	mu   sync.Mutex
	gone chan struct{} // closed when the hub restarted, or is lost
}

// newWGCarrier makes a carrier that reaches hub at udp. It opens nothing but its stack.
func newWGCarrier(a *agent, hub protocol.Hub, udp netip.AddrPort, own []netip.Addr, overlay []netip.Prefix) (*wgCarrier, error) {
	c := &wgCarrier{hub: hub, gone: make(chan struct{})}
	var err error
	var allowed []netip.Prefix
	var addrs []netip.Addr
	for _, p := range overlay {
		at, err := hub.Number.Overlay(p)
		if err != nil {
			return nil, err
		}
		addrs, allowed = append(addrs, at), append(allowed, netip.PrefixFrom(at, at.BitLen()))
	}
	c.to = netip.AddrPortFrom(addrs[0], protocol.ControlPort)
	c.under, err = underlay.New(underlay.Config{Self: a.number, PrivateKey: a.wg, BootID: a.boot, KeyEpoch: protocol.FirstKeyEpoch,
		NewReader: func() underlay.Receiver { return c.eng.NewReader() },
		OnRestart: func(n protocol.NodeNumber) { c.eng.ResetPeer(n); c.lose() },
		Excluded:  func(string, netip.Addr) bool { return true }, Log: zerolog.Nop()})
	if err != nil {
		return nil, err
	}
	if err := c.under.SetHubs([]underlay.Hub{{Number: hub.Number, Key: hub.WireGuardKey, Addrs: []netip.AddrPort{udp}}}); err != nil {
		return nil, err
	}
	if c.net, err = netstack.New(netstack.Config{Addresses: own}); err != nil {
		return nil, err
	}
	c.eng, err = wggo.New(wggo.Config{Number: a.number, PrivateKey: a.wg, TUN: c.net, Carrier: c.under, Log: zerolog.Nop(), AnyDestination: true})
	if err == nil {
		err = c.eng.SetPeers([]engine.Peer{{Number: hub.Number, Key: hub.WireGuardKey, AllowedIPs: allowed, Keepalive: 25 * time.Second}})
	}
	if err != nil {
		c.net.Close()
	}
	return c, err
}

// run works until ctx ends.
func (c *wgCarrier) run(ctx context.Context) error {
	ectx, end := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error { return c.eng.Run(ectx) })
	g.Go(func() error { // its readers call the engine, so it ends first
		defer end()
		return c.under.Run(ctx)
	})
	g.Go(func() error {
		t := time.NewTicker(pollBound)
		defer t.Stop()
		seen := time.Now()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
			}
			if c.under.HubBound(c.hub.Number) {
				seen = time.Now()
			} else if time.Since(seen) > lostAfter {
				c.lose()
			}
		}
	})
	return g.Wait()
}

func (c *wgCarrier) lose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.gone:
	default:
		close(c.gone)
	}
}

func (c *wgCarrier) lost() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

func (c *wgCarrier) dial(ctx context.Context) (net.Conn, error) {
	t := time.NewTicker(pollBound)
	defer t.Stop()
	for !c.under.HubBound(c.hub.Number) {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c.mu.Lock()
	c.gone = make(chan struct{})
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return c.net.DialTCP(ctx, c.to)
}
