// Package tunnel is what carries packets: underlay, engine and relay put together. Node is an agent's
// side, Hub the hub's. Both are made by New…, which opens nothing, and work
// while Run runs; what they are told before Run takes effect with it.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/tun"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/inline"
	"causeway/tunnel/engine/wggo"
	"causeway/tunnel/tundev"
)

// Engine names for NodeConfig.
const (
	EngineInline      = inline.Name
	EngineWireGuardGo = wggo.Name
	DefaultEngine     = EngineInline
)

// DefaultMTU of a node's TUN device: what the largest datagram that paths are
// searched for carries. Routes into the device have the MTU of the path behind
// them (protocol.PathStatus). It must be a multiple of WireGuard's padding, 16:
// engines pad up to the device's MTU and no further.
const DefaultMTU = protocol.ProbeSize + protocol.MaxProbePadding - protocol.MinTransportSize

// ErrNotRunning says that a call needs Run to have come to Ready, and not to
// have ended.
var ErrNotRunning = errors.New("tunnel: not running")

// engineConfig is what every engine over a kernel TUN needs.
type engineConfig struct {
	number  protocol.NodeNumber
	key     protocol.WireGuardPrivateKey
	iface   string
	mtu     int
	queues  int // of the TUN device; 0: by the number of processors
	carrier engine.Carrier
	log     zerolog.Logger
}

// checkEngine says whether there is an engine of that name.
func checkEngine(name string) error {
	switch name {
	case EngineWireGuardGo, EngineInline:
		return nil
	default:
		return fmt.Errorf("unknown engine %q: use %q or %q", name, EngineWireGuardGo, EngineInline)
	}
}

// openEngine opens the TUN device and makes an engine over it. The engine's Run
// closes the device; the handle, which the caller closes, brings it back when it was
// deleted meanwhile.
func openEngine(name string, c engineConfig) (engine.Engine, *tundev.Handle, error) {
	switch name {
	case EngineWireGuardGo:
		return openWireGuardGo(c)
	case EngineInline:
		return openInline(c)
	default:
		return nil, nil, checkEngine(name)
	}
}

func openWireGuardGo(c engineConfig) (engine.Engine, *tundev.Handle, error) {
	f, err := tundev.OpenFile(c.iface, c.mtu)
	if err != nil {
		return nil, nil, err
	}
	var h *tundev.Handle
	raw, err := f.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { h, err = tundev.NewHandle(c.iface, c.mtu, []int{int(fd)}) })
		err = errors.Join(err, cerr)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	dev, err := tun.CreateTUNFromFile(f, c.mtu)
	if err != nil {
		h.Close()
		f.Close()
		return nil, nil, fmt.Errorf("open tun %q: %w", c.iface, err)
	}
	e, err := wggo.New(wggo.Config{Number: c.number, PrivateKey: c.key, TUN: dev, Hold: true, Carrier: c.carrier, Log: c.log})
	if err != nil {
		h.Close()
		dev.Close()
		return nil, nil, err
	}
	return e, h, nil
}

// maxQueues is how many queues of a TUN device are used where nothing else was
// said.
const maxQueues = 4

// defaultQueues for a number of processors. With two, a second queue only
// takes turns with the first and the sockets' reader.
func defaultQueues(processors int) int {
	if processors <= 2 {
		return 1
	}
	return min(processors, maxQueues)
}

// spareProcs lets the data path's threads go on at once when they come back
// from a system call that blocked: with no more Ps than processors they may
// have to wait for one. On two processors it takes a tenth of the receiver's
// CPU time off (median of 7 pairs). An operator's GOMAXPROCS counts.
func spareProcs(queues int) {
	const readers = 1 // of the sockets, all but one of which are idle
	if os.Getenv("GOMAXPROCS") == "" {
		onceProcs.Do(func() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + queues + readers) })
	}
}

var onceProcs sync.Once

// openInline gives the engine the bare descriptors: it does its own reading and
// writing of super-packets.
func openInline(c engineConfig) (engine.Engine, *tundev.Handle, error) {
	queues := c.queues
	if queues == 0 {
		queues = defaultQueues(runtime.NumCPU())
	}
	fds, err := tundev.OpenFDs(c.iface, c.mtu, queues)
	if err != nil {
		return nil, nil, err
	}
	if len(fds) < queues {
		c.log.Info().Str("iface", c.iface).Int("queues", len(fds)).Msg("the tun device was made with one queue; it gets more when it is made anew, as after a reboot")
	}
	spareProcs(len(fds))
	h, err := tundev.NewHandle(c.iface, c.mtu, fds)
	var e *inline.Engine
	if err == nil {
		dev := &inline.Device{Name: c.iface, Queues: fds, MTU: c.mtu, Hold: true, Offloads: inline.Offloads{VNet: true}}
		dev.TSO, dev.USO = tundev.SetOffloads(fds[0]) // of the device, not of a queue
		e, err = inline.New(inline.Config{Number: c.number, PrivateKey: c.key, Carrier: c.carrier, Device: dev, Log: c.log})
	}
	if err != nil {
		if h != nil {
			h.Close()
		}
		for _, fd := range fds {
			tundev.CloseFD(fd)
		}
		return nil, nil, err
	}
	return e, h, nil
}

// part is something that runs until its context ends.
type part struct {
	name string
	run  func(context.Context) error
}

// runStack runs an engine and what carries its datagrams. The carrier ends
// first: its readers call the engine.
func runStack(ctx context.Context, g *errgroup.Group, eng engine.Engine, carrier part) {
	engCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return ended(engCtx, "engine", eng.Run(engCtx)) })
	g.Go(func() error {
		defer stop()
		return ended(ctx, carrier.name, carrier.run(ctx))
	})
}

// ended makes an error of a part that ended by itself.
func ended(ctx context.Context, part string, err error) error {
	if err == nil && ctx.Err() == nil {
		err = errors.New("it ended by itself")
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", part, err)
	}
	return nil
}

// notice is a coalescing notification.
type notice chan struct{}

func newNotice() notice { return make(notice, 1) }

func (s notice) send() {
	select {
	case s <- struct{}{}:
	default: // one is waiting
	}
}
