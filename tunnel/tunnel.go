// Package tunnel puts underlay, engine and relay together: Node is an agent's
// side, Hub the hub's. Both are made by New…, which opens nothing, and work
// while Run runs; what they are told before Run takes effect with it.
package tunnel

import (
	"errors"
	"fmt"
	"os"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/inline"
	"causeway/tunnel/engine/wggo"
	"causeway/tunnel/tundev"

	"github.com/rs/zerolog"
)

// Engine names for NodeConfig.
const (
	EngineInline      = inline.Name
	EngineWireGuardGo = wggo.Name
	DefaultEngine     = EngineWireGuardGo
)

// DefaultMTU of a node's TUN device: what an Ethernet frame of 1500 bytes
// leaves inside IPv6, UDP and WireGuard. The relay adds nothing.
const DefaultMTU = 1500 - 40 - 8 - 32

// ErrNotRunning says that a call needs Run to have come to Ready, and not to
// have ended.
var ErrNotRunning = errors.New("tunnel: not running")

// engineConfig is what every engine over a kernel TUN needs.
type engineConfig struct {
	number  protocol.NodeNumber
	key     protocol.WireGuardPrivateKey
	iface   string
	mtu     int
	carrier engine.Carrier
	log     zerolog.Logger
}

// checkEngine says whether this build has an engine of that name.
func checkEngine(name string) error {
	switch name {
	case EngineInline, EngineWireGuardGo:
		return nil
	default:
		return fmt.Errorf("unknown engine %q: use %q or %q", name, EngineInline, EngineWireGuardGo)
	}
}

// openEngine opens the TUN device and makes an engine over it. The engine's Run
// closes the device.
func openEngine(name string, c engineConfig) (engine.Engine, error) {
	if err := checkEngine(name); err != nil {
		return nil, err
	}
	if name == EngineInline {
		return openInline(c)
	}
	dev, err := tundev.Open(c.iface, c.mtu)
	if err != nil {
		return nil, err
	}
	e, err := wggo.New(wggo.Config{Number: c.number, PrivateKey: c.key, TUN: dev, Carrier: c.carrier, Log: c.log})
	if err != nil {
		dev.Close()
		return nil, err
	}
	return e, nil
}

// openInline makes the inline engine on the device's bare descriptor.
func openInline(c engineConfig) (engine.Engine, error) {
	fd, err := tundev.OpenFD(c.iface, c.mtu)
	if err != nil {
		return nil, err
	}
	tso, uso := tundev.SetOffloads(fd)
	e, err := inline.New(inline.Config{PrivateKey: c.key, Carrier: c.carrier, Log: c.log, Device: &inline.Device{
		Name: c.iface, Queues: []int{fd}, Offloads: inline.Offloads{VNet: true, TSO: tso, USO: uso}, MTU: c.mtu}})
	if err != nil {
		os.NewFile(uintptr(fd), c.iface).Close()
		return nil, err
	}
	return e, nil
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
