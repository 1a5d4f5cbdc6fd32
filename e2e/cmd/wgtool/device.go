package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/inline"
	"causeway/tunnel/engine/uapi"
	"causeway/tunnel/tundev"
	"causeway/tunnel/underlay"
)

// wgDevice is the inline engine in plain mode behind the configuration
// protocol. It is a uapi.Backend.
type wgDevice struct {
	ctx   context.Context
	log   zerolog.Logger
	plain bool // no offloads
	eng   *inline.Engine
	link  atomic.Pointer[underlay.Underlay]

	mu      sync.Mutex // orders changes
	conf    uapi.Device
	numbers map[protocol.WireGuardPublicKey]protocol.NodeNumber
	last    protocol.NodeNumber // of numbers, none is used twice
	stop    func() error        // of link
	failed  chan error
}

// carrier sends over whichever underlay there is now: another port or mark
// means other sockets.
type carrier struct{ d *wgDevice }

func (c carrier) Send(to protocol.NodeNumber, b []byte, segment int) error {
	if u := c.d.link.Load(); u != nil {
		return u.Send(to, b, segment)
	}
	return underlay.ErrNotRunning
}

func (c carrier) Answer(to underlay.Source, b []byte) error {
	if u := c.d.link.Load(); u != nil {
		return u.Answer(to, b)
	}
	return underlay.ErrNotRunning
}

func runInline(ctx context.Context, name string, mtu int, plain bool, log zerolog.Logger, ready func()) error {
	fds, err := tundev.OpenFDs(name, mtu, 1)
	if err != nil {
		return err
	}
	fd := fds[0]
	// It goes with us, as a stock device does.
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
		unix.Close(fd)
		return fmt.Errorf("open tun %q: %w", name, err)
	}
	raw := &inline.Device{Name: name, Queues: fds, MTU: mtu, Offloads: inline.Offloads{VNet: true}}
	if !plain {
		raw.TSO, raw.USO = tundev.SetOffloads(fd)
	}
	key, err := protocol.NewWireGuardPrivateKey() // stands for none
	if err != nil {
		unix.Close(fd)
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	d := &wgDevice{ctx: ctx, log: log, plain: plain, numbers: map[protocol.WireGuardPublicKey]protocol.NodeNumber{}, failed: make(chan error, 1)}
	d.eng, err = inline.New(inline.Config{PrivateKey: key, Carrier: carrier{d}, Device: raw, Unreachable: true, AnyDestination: true, Log: log,
		Roamed: func(n protocol.NodeNumber, from underlay.Source) {
			if u := d.link.Load(); u != nil {
				u.FollowPlainPeer(n, from)
			}
		}})
	if err != nil {
		unix.Close(fd)
		return err
	}
	srv, err := uapi.Listen(uapi.Directory, name, d)
	if err != nil {
		return errors.Join(err, endUnused(d.eng))
	}
	g.Go(func() error { return d.eng.Run(ctx) })
	g.Go(func() error { return watchMTU(ctx, fd, d.eng.SetMTU) })
	g.Go(func() error {
		select {
		case err := <-d.failed:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	d.mu.Lock()
	err = d.open(0, 0)
	d.mu.Unlock()
	if err == nil {
		g.Go(func() error { return srv.Run(ctx) })
		ready()
	} else {
		g.Go(func() error { return err })
	}
	err = g.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stop != nil {
		err = errors.Join(err, d.stop())
	}
	return err
}

// endUnused closes what an engine owns that never ran.
func endUnused(e *inline.Engine) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return e.Run(ctx)
}

// open makes the sockets in place of those there were. mu is held.
func (d *wgDevice) open(port uint16, mark uint32) error {
	u, err := underlay.New(underlay.Config{Plain: true, NewReader: d.eng.NewReader, ListenPort: port, Mark: mark, NoOffload: d.plain, Log: d.log})
	if err != nil {
		return err
	}
	if old := d.link.Load(); old != nil {
		for _, n := range d.numbers {
			u.SetPlainPeer(n, old.PlainPeer(n))
		}
		if d.stop != nil { // not after an attempt that failed
			err := d.stop()
			d.stop = nil
			if err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithCancel(d.ctx)
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	d.stop = func() error {
		cancel()
		return <-ended
	}
	select {
	case <-u.Ready():
		d.link.Store(u)
		return nil
	case err := <-ended:
		cancel()
		d.stop = nil
		if err == nil {
			err = ctx.Err()
		}
		return err
	}
}

// Get implements uapi.Backend.
func (d *wgDevice) Get() (uapi.Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.conf.Clone()
	u := d.link.Load()
	out.ListenPort = u.Port()
	stats := map[protocol.NodeNumber]engine.PeerStats{}
	for _, s := range d.eng.Stats() {
		stats[s.Number] = s
	}
	for i := range out.Peers {
		p := &out.Peers[i]
		n := d.numbers[p.Key]
		s := stats[n]
		p.Endpoint, p.RxBytes, p.TxBytes, p.LastHandshake = u.PlainPeer(n), s.RxBytes, s.TxBytes, s.LastHandshake
	}
	return out, nil
}

// Set implements uapi.Backend.
func (d *wgDevice) Set(c uapi.Change) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.conf.Clone()
	for i := range next.Peers {
		next.Peers[i].Endpoint = netip.AddrPort{} // what is set below is new
	}
	next.Apply(c)
	u := d.link.Load()
	port, mark := u.Port(), d.conf.Mark
	wantPort := port
	if c.ListenPort != nil {
		wantPort = *c.ListenPort
	}
	if wantPort != port || next.Mark != mark {
		if err := d.open(wantPort, next.Mark); err != nil {
			if back := d.open(port, mark); back != nil {
				d.failed <- back
			}
			return err
		}
		u = d.link.Load()
	}
	if next.PrivateKey != d.conf.PrivateKey && !next.PrivateKey.IsZero() {
		// A peer with that key has gone from next, and goes first.
		if err := d.eng.SetPeers(d.peers(&uapi.Device{PrivateKey: next.PrivateKey, Peers: d.keep(next)})); err != nil {
			return err
		}
		if err := d.eng.SetPrivateKey(next.PrivateKey); err != nil {
			return err
		}
	}
	gone := map[protocol.WireGuardPublicKey]bool{}
	for k := range d.numbers {
		gone[k] = true
	}
	for i := range next.Peers {
		p := &next.Peers[i]
		delete(gone, p.Key)
		if d.numbers[p.Key] == 0 {
			d.last++
			d.numbers[p.Key] = d.last
		}
		if p.Endpoint.IsValid() {
			u.SetPlainPeer(d.numbers[p.Key], p.Endpoint)
		}
	}
	if err := d.eng.SetPeers(d.peers(&next)); err != nil {
		return err
	}
	for k := range gone {
		u.SetPlainPeer(d.numbers[k], netip.AddrPort{})
		delete(d.numbers, k)
	}
	d.conf = next
	return nil
}

// keep returns those peers of now that next has too.
func (d *wgDevice) keep(next uapi.Device) (out []uapi.Peer) {
	stays := map[protocol.WireGuardPublicKey]bool{}
	for _, p := range next.Peers {
		stays[p.Key] = true
	}
	for _, p := range d.conf.Peers {
		if stays[p.Key] {
			out = append(out, p)
		}
	}
	return out
}

// peers are a configuration's peers for the engine: none without a key of our
// own. The kernel takes a key of zeros for a peer, which can never answer.
func (d *wgDevice) peers(c *uapi.Device) (out []engine.Peer) {
	if c.PrivateKey.IsZero() {
		return nil
	}
	for _, p := range c.Peers {
		if !p.Key.IsZero() {
			out = append(out, engine.Peer{Number: d.numbers[p.Key], Key: p.Key, PresharedKey: p.PresharedKey, AllowedIPs: p.AllowedIPs, Keepalive: p.Keepalive})
		}
	}
	return out
}
