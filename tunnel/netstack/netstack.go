// Package netstack is TCP/IP in the process: a tun.Device whose far side is a
// gVisor stack. The hub's WireGuard device runs over it, so that a hub needs
// no TUN and no privileges. Control connections end here and nothing else: it
// forwards nothing and answers for its own addresses alone. Who a connection's
// source address belongs to is vouched for by WireGuard's cryptokey routing.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	gvlog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// DefaultMTU fits every path that carries IPv6.
const DefaultMTU = 1280

const (
	nicID     = 1
	queueSize = 1024 // packets on their way to Read; beyond it they are lost and TCP sends again
	// In one Read. wireguard-go holds a buffer of 64 KB for each packet of the
	// largest batch that a peer ever had, for as long as it knows the peer.
	batchSize = 2
	backlog   = 4096 // connections that wait to be accepted

	// Buffers of one connection. Both grow with its rate. What is received is
	// taken at once by who reads; what is sent stays until the peer has it, and
	// all of it stays for as long as a peer is silent.
	bufferMin     = 4 << 10
	bufferSend    = 64 << 10
	bufferSendMax = 1 << 20
	bufferRecv    = 256 << 10
	bufferRecvMax = 256 << 10
)

// DefaultSilentAfter is longer than paths take to change, and than the silence
// after which the hub ends a control session.
const DefaultSilentAfter = 30 * time.Second

// lingerFor is how long a connection that was closed here, and whose peer knows so, waits
// for the peer to close it too.
const lingerFor = 5 * time.Second

// Config configures a stack.
type Config struct {
	Addresses []netip.Addr // its own; at least one
	MTU       int          // 0: DefaultMTU
	// SilentAfter is how long a peer may leave data of an accepted connection
	// unacknowledged before that ends and its buffers go, whether it was closed
	// on our side or not; 0: DefaultSilentAfter. Without an end the stack sends
	// again for ever.
	SilentAfter time.Duration
}

// Net is a stack and the device that leads to it. The stack works until the
// device is closed, which whoever reads the device does (a WireGuard engine at
// the end of its Run), or Close.
type Net struct {
	mtu    int
	silent time.Duration
	stack  *stack.Stack
	link   *channel.Endpoint
	events chan tun.Event
	ctx    context.Context // ends when the device closes: Read and pending dials
	cancel context.CancelFunc

	inject sync.RWMutex // held for reading while a packet goes in
	closed bool
	once   sync.Once
}

// New makes a stack. It has goroutines of its own until it is closed.
func New(cfg Config) (*Net, error) {
	quiet()
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.MTU < 1280 || cfg.MTU > 65535 {
		return nil, fmt.Errorf("netstack: mtu %d is not between 1280 and 65535", cfg.MTU)
	}
	if len(cfg.Addresses) == 0 {
		return nil, errors.New("netstack: no address")
	}
	if cfg.SilentAfter < 0 {
		return nil, fmt.Errorf("netstack: time of silence %s is negative", cfg.SilentAfter)
	}
	if cfg.SilentAfter == 0 {
		cfg.SilentAfter = DefaultSilentAfter
	}
	n := &Net{
		mtu:    cfg.MTU,
		silent: cfg.SilentAfter,
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
			HandleLocal:        true,
		}),
		link:   channel.New(queueSize, uint32(cfg.MTU), ""),
		events: make(chan tun.Event, 1),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.setUp(cfg.Addresses); err != nil {
		n.Close()
		return nil, fmt.Errorf("netstack: %w", err)
	}
	n.events <- tun.EventUp
	return n, nil
}

// quiet keeps gvisor from writing lines of its own form between the program's
// log lines: what they tell of single segments reaches the caller as errors.
var quiet = sync.OnceFunc(func() { gvlog.SetTarget(gvlog.GoogleEmitter{Writer: &gvlog.Writer{Next: io.Discard}}) })

func (n *Net) setUp(addrs []netip.Addr) error {
	sack := tcpip.TCPSACKEnabled(true)
	linger := tcpip.TCPLingerTimeoutOption(lingerFor)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &linger,
		&tcpip.TCPSendBufferSizeRangeOption{Min: bufferMin, Default: bufferSend, Max: bufferSendMax},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: bufferMin, Default: bufferRecv, Max: bufferRecvMax},
	} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	if err := n.stack.CreateNIC(nicID, n.link); err != nil {
		return fmt.Errorf("create nic: %s", err)
	}
	for _, a := range addrs {
		if !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.Zone() != "" {
			return fmt.Errorf("address %s cannot be used", a)
		}
		pa := tcpip.ProtocolAddress{Protocol: network(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := n.stack.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add address %s: %s", a, err)
		}
	}
	n.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return nil
}

func network(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// DialTCP connects to addr. It ends with ctx, and when the stack is closed.
func (n *Net) DialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	c, err := gonet.DialContextTCP(ctx, n.stack, full(addr), network(addr.Addr()))
	if err != nil {
		if n.ctx.Err() != nil {
			err = net.ErrClosed
		}
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return c, nil
}

// ListenTCP listens on one of the stack's addresses; port 0 is any free one.
// Accept returns net.ErrClosed once listener or stack is closed.
func (n *Net) ListenTCP(addr netip.AddrPort) (net.Listener, error) {
	if n.ctx.Err() != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, net.ErrClosed)
	}
	tl := &listener{closed: make(chan struct{}), stack: n.ctx.Done()}
	if err := n.listen(addr, tl); err != nil {
		return nil, fmt.Errorf("listen on %s: %s", addr, err)
	}
	tl.stop = context.AfterFunc(n.ctx, func() { tl.Close() })
	return tl, nil
}

// listen is gonet.ListenTCP with the time of silence, which accepted
// connections inherit.
func (n *Net) listen(addr netip.AddrPort, l *listener) tcpip.Error {
	ep, err := n.stack.NewEndpoint(tcp.ProtocolNumber, network(addr.Addr()), &l.wq)
	if err != nil {
		return err
	}
	silent := tcpip.TCPUserTimeoutOption(n.silent)
	if err = ep.SetSockOpt(&silent); err == nil {
		if err = ep.Bind(full(addr)); err == nil {
			err = ep.Listen(backlog)
		}
	}
	if err != nil {
		ep.Close()
		return err
	}
	l.TCPListener, l.ep = gonet.NewTCPListener(n.stack, &l.wq, ep), ep
	return nil
}

// Conn is an accepted connection.
type Conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Abort ends the connection at once, with all that the stack keeps of it; Close may come
// before or after. Closed alone it stays until the peer has taken what was sent to
// it, and one who never does so, or opens thousands, makes the stack keep them all.
func (c *Conn) Abort() { c.ep.Abort() }

// listener makes gonet's one end as net.Listener says, as its Close alone does
// not wake Accept, and hands out connections that can be aborted.
type listener struct {
	*gonet.TCPListener
	ep     tcpip.Endpoint
	wq     waiter.Queue
	once   sync.Once
	closed chan struct{}
	stack  <-chan struct{} // closed with the stack, which may fail Accept before our Close runs
	stop   func() bool
}

func (l *listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	closed := &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	for {
		ep, wq, err := l.ep.Accept(nil)
		if err == nil {
			return &Conn{gonet.NewTCPConn(wq, ep), ep}, nil
		}
		_, empty := err.(*tcpip.ErrWouldBlock)
		if empty {
			select {
			case <-ready:
				continue
			case <-l.closed:
			case <-l.stack:
			}
			return nil, closed
		}
		select {
		case <-l.closed:
			return nil, closed
		case <-l.stack:
			return nil, closed
		default:
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: errors.New(err.String())}
		}
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		if l.stop != nil {
			l.stop()
		}
		l.Shutdown()
		l.TCPListener.Close()
	})
	return nil
}

var _ tun.Device = (*Net)(nil)

// Read takes packets that the stack sends: it waits for one and adds those that
// are there.
func (n *Net) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	p := n.link.ReadContext(n.ctx)
	if p == nil {
		return 0, os.ErrClosed
	}
	i := 0
	for ; p != nil; p = n.link.Read() {
		v := p.ToView()
		sizes[i] = copy(bufs[i][offset:], v.AsSlice())
		v.Release()
		p.DecRef()
		if i++; i == min(len(bufs), batchSize) {
			break
		}
	}
	return i, nil
}

// Write gives packets to the stack, which copies them, and lets go of bufs:
// wireguard-go keeps the list for each peer as long as it knows it, and with it
// buffers of 64 KB that are in its pool already.
func (n *Net) Write(bufs [][]byte, offset int) (int, error) {
	n.inject.RLock()
	defer n.inject.RUnlock()
	if n.closed {
		return 0, os.ErrClosed
	}
	for _, b := range bufs {
		if b = b[offset:]; len(b) == 0 {
			continue
		}
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		switch b[0] >> 4 {
		case 4:
			n.link.InjectInbound(header.IPv4ProtocolNumber, p)
		case 6:
			n.link.InjectInbound(header.IPv6ProtocolNumber, p)
		}
		p.DecRef()
	}
	clear(bufs)
	return len(bufs), nil
}

// Close aborts all connections and waits for the stack to end. It may be called
// more than once, and while Read and Write run.
func (n *Net) Close() error {
	n.once.Do(func() {
		n.inject.Lock()
		n.closed = true
		n.inject.Unlock()
		n.cancel()
		n.stack.Close()
		n.stack.Wait()
		n.link.Close()
		close(n.events)
	})
	return nil
}

// File is nil: there is no descriptor.
func (n *Net) File() *os.File { return nil }

// MTU is that of the configuration.
func (n *Net) MTU() (int, error) { return n.mtu, nil }

// Name is netstack.
func (n *Net) Name() (string, error) { return "netstack", nil }

// Events tells that the device is up. It is closed by Close.
func (n *Net) Events() <-chan tun.Event { return n.events }

// BatchSize is how many packets a Read may return.
func (n *Net) BatchSize() int { return batchSize }
