// Package inline is a WireGuard engine that runs each packet to completion on
// the thread that read it: from the TUN device through lookup, segmentation
// and sealing to the carrier, and from the underlay's reader through opening
// and coalescing to the TUN device. Handshakes, timers and everything else
// that is rare happen on one control goroutine, which the data path tells by
// flags and which tells the data path by atomic pointers: per packet nothing
// is allocated and no lock is contended.
//
// It speaks WireGuard as in the paper (https://www.wireguard.com/papers/wireguard.pdf)
// and reuses the leaf packages of wireguard-go. The main calls are New and
// Engine.Run.
package inline

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/ratelimiter"
	"golang.zx2c4.com/wireguard/tun"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/underlay"
)

// Name is the engine's name in configuration and status.
const Name = "inline"

// Config is what an engine needs. Exactly one of Device and TUN is set; the
// engine owns it once New has succeeded and closes it when Run ends.
type Config struct {
	// Number is the node's own. Where initiations cross, the lower number's
	// wins; zero, in plain mode, leaves that to WireGuard's timers.
	Number     protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	Carrier    engine.Carrier
	Device     *Device    // a kernel TUN device by its file descriptors: the fast path
	TUN        tun.Device // any other device, a packet at a time
	Log        zerolog.Logger
	// Roamed, if set, is told from which address a peer's authenticated
	// messages come when the underlay does not know the peer (plain mode),
	// for each run of them. It is called by readers and the control goroutine
	// and must not block.
	Roamed func(protocol.NodeNumber, underlay.Source)
	// Unreachable answers packets for nobody by an ICMP error, as a stock
	// WireGuard device does. The error comes from the address that was asked
	// for: an address of the host itself would be taken for a forgery.
	Unreachable bool
	// AnyDestination says that the packets of peers may go anywhere: what is behind the
	// device sees to it. See engine.Engine.SetLocal.
	AnyDestination bool
}

// Answerer is a Carrier that can also answer a message whose sender is not
// known: a cookie reply in plain mode.
type Answerer interface {
	Answer(to underlay.Source, datagram []byte) error
}

// Engine is a WireGuard device. It implements engine.Engine.
type Engine struct {
	cfg     Config
	carrier engine.Carrier
	log     zerolog.Logger
	origin  time.Time
	public  []protocol.WireGuardPublicKey
	device  packetDevice

	mtu    atomic.Int32
	routes atomic.Pointer[routes]
	local  atomic.Pointer[engine.Local]
	events *eventStack
	staged atomic.Int64 // bytes
	counts counters

	// gate lets readers in while the device is open.
	gate sync.RWMutex
	up   bool

	mu       sync.Mutex // of the control side
	machine  *machine
	numbers  map[protocol.NodeNumber]*peer
	running  bool
	queue    chan message
	limiter  ratelimiter.Ratelimiter
	loadTill instant
	out      []outgoing
	control  *sender // the control goroutine's: seals what was staged
	changed  chan struct{}
}

// packetDevice is the TUN device behind its two kinds.
type packetDevice interface {
	// run reads packets into one or more senders until stop is called.
	run(e *Engine, g *errgroup.Group)
	// stop makes the readers of run return.
	stop()
	// sink is a way to write for one reader.
	sink(e *Engine) sink
	// close releases the device, after all others are done.
	close()
	mtu() int
}

// message is a handshake message on its way to the control goroutine.
type message struct {
	from underlay.Source
	n    int
	data [initiationSize]byte
}

var _ engine.Engine = (*Engine)(nil)

// New checks cfg. It opens and starts nothing.
func New(cfg Config) (*Engine, error) {
	switch {
	case cfg.PrivateKey.IsZero():
		return nil, errors.New("engine inline: no private key")
	case cfg.Carrier == nil:
		return nil, errors.New("engine inline: no carrier")
	case (cfg.Device == nil) == (cfg.TUN == nil):
		return nil, errors.New("engine inline: exactly one of Device and TUN has to be set")
	}
	e := &Engine{
		cfg: cfg, carrier: cfg.Carrier, log: cfg.Log, origin: time.Now(), public: []protocol.WireGuardPublicKey{cfg.PrivateKey.Public()},
		events: newEventStack(), numbers: map[protocol.NodeNumber]*peer{},
		queue: make(chan message, queueLength), changed: make(chan struct{}, 1),
	}
	if cfg.Device != nil {
		d, err := newRawDevice(cfg.Device)
		if err != nil {
			return nil, fmt.Errorf("engine inline: %w", err)
		}
		e.device = d
	} else {
		e.device = newPlainDevice(cfg.TUN)
	}
	e.mtu.Store(int32(e.device.mtu()))
	e.routes.Store(&routes{})
	e.machine = newMachine(cfg.Number, cfg.PrivateKey, e.origin, e, &e.counts)
	e.control = newSender(e)
	return e, nil
}

// Name implements engine.Engine.
func (e *Engine) Name() string { return Name }

func (e *Engine) now() instant { return instant(time.Since(e.origin)) + 1 }

// Run implements engine.Engine. It may be called once.
func (e *Engine) Run(ctx context.Context) error {
	e.limiter.Init()
	defer e.limiter.Close()
	g, ctx := errgroup.WithContext(ctx)
	e.mu.Lock()
	if e.running {
		e.mu.Unlock()
		return errors.New("engine inline: Run called twice")
	}
	e.running = true
	e.mu.Unlock()

	e.gate.Lock()
	e.up = true
	e.gate.Unlock()

	e.mu.Lock()
	now := time.Now()
	for _, p := range e.numbers {
		e.machine.add(p, now)
	}
	e.mu.Unlock()

	g.Go(func() error { e.runControl(ctx); return nil })
	e.device.run(e, g)
	g.Go(func() error { <-ctx.Done(); e.device.stop(); return nil })
	err := g.Wait()

	e.gate.Lock()
	e.up = false
	e.gate.Unlock()
	e.mu.Lock()
	for _, p := range e.numbers {
		e.machine.remove(p)
	}
	clear(e.numbers)
	e.mu.Unlock()
	e.routes.Store(&routes{})
	e.device.close()
	if err != nil {
		return fmt.Errorf("engine inline: %w", err)
	}
	return nil
}

// SetMTU tells the engine that the device's MTU has changed: packets are
// padded up to it and no further.
func (e *Engine) SetMTU(mtu int) { e.mtu.Store(int32(mtu)) }

// NewReader implements engine.Engine.
func (e *Engine) NewReader() underlay.Receiver {
	return &reader{e: e, sink: e.device.sink(e)}
}

// Stats implements engine.Engine.
func (e *Engine) Stats() []engine.PeerStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := make([]engine.PeerStats, 0, len(e.numbers))
	for _, p := range e.numbers {
		st := engine.PeerStats{Number: p.number, RxBytes: p.rxBytes.Load(), TxBytes: p.txBytes.Load()}
		if t := p.completed.Load(); t != 0 {
			st.LastHandshake = time.Unix(0, t)
		}
		s = append(s, st)
	}
	return s
}

// SetLocal implements engine.Engine.
func (e *Engine) SetLocal(l []netip.Prefix) { e.local.Store(engine.NewLocal(l)) }

// counters count what was dropped, by reason.
type counters struct {
	unknown      atomic.Uint64 // unknown type or index, expired session
	rejected     atomic.Uint64 // wrong tag, replayed or too old
	malformed    atomic.Uint64 // no valid packet inside, either way
	spoofed      atomic.Uint64 // source not the peer's
	elsewhere    atomic.Uint64 // destination not ours
	noRoute      atomic.Uint64 // destination nobody's
	unstaged     atomic.Uint64 // too much waits for sessions
	queueFull    atomic.Uint64 // too many handshakes at once
	badMAC       atomic.Uint64 // handshake message that fails the cheap checks
	badHandshake atomic.Uint64 // handshake message that does not authenticate
	replayed     atomic.Uint64 // initiation seen before, or too soon
	crossed      atomic.Uint64 // initiation while ours, which wins, is under way
	cookies      atomic.Uint64 // handshakes answered by a cookie
	limited      atomic.Uint64 // handshakes beyond the rate limit
	sendErrors   atomic.Uint64 // refused by the carrier
	writeErrors  atomic.Uint64 // refused by the TUN device
}

// Drops implements engine.Engine.
func (e *Engine) Drops() protocol.Drops {
	c := &e.counts
	return protocol.Drops{
		protocol.DropUnknown: c.unknown.Load(), protocol.DropRejected: c.rejected.Load(), protocol.DropMalformed: c.malformed.Load(),
		protocol.DropSpoofed: c.spoofed.Load(), protocol.DropElsewhere: c.elsewhere.Load(), protocol.DropNoRoute: c.noRoute.Load(),
		protocol.DropUnstaged: c.unstaged.Load(), protocol.DropQueueFull: c.queueFull.Load(), protocol.DropBadMAC: c.badMAC.Load(),
		protocol.DropBadHandshake: c.badHandshake.Load(), protocol.DropReplayed: c.replayed.Load(), protocol.DropCrossed: c.crossed.Load(),
		protocol.DropCookies: c.cookies.Load(), protocol.DropLimited: c.limited.Load(), protocol.DropSendErrors: c.sendErrors.Load(),
		protocol.DropWriteErrors: c.writeErrors.Load(),
	}
}
