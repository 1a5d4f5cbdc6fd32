// Package wggo is engine.Engine by wireguard-go: the reference and the
// fallback. A conn.Bind carries its datagrams over an engine.Carrier, with one
// endpoint object for each peer that stays the same whatever path the underlay
// chooses. A peer is put into the device when the first packet or handshake
// asks for it and taken out when it was idle for long: in wireguard-go an idle
// one costs two goroutines, tens of kilobytes, and buffers of 64 KB each for as
// many packets as it was ever sent or received at once.
package wggo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/underlay"
)

// Name is the engine's name in configuration and status.
const Name = "wireguard-go"

// DefaultIdleAfter is how long a peer of which nothing is heard stays in the
// device.
// WireGuard's keys are dead long before.
const DefaultIdleAfter = 10 * time.Minute

// Config configures an engine. Number, PrivateKey, TUN and Carrier are needed.
type Config struct {
	Number     protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	TUN        tun.Device // closed when Run ends
	Hold       bool       // a deleted device is waited for: its queue is to be attached again
	Carrier    engine.Carrier
	IdleAfter  time.Duration // 0: DefaultIdleAfter
	Log        zerolog.Logger
	// AnyDestination says that the packets of peers may go anywhere: what is behind the
	// device sees to it. See engine.Engine.SetLocal.
	AnyDestination bool
}

// Engine is one wireguard-go device.
type Engine struct {
	cfg    Config
	key    protocol.WireGuardPrivateKey // guarded by mu
	public []protocol.WireGuardPublicKey
	bind   *bind
	wake   chan wakeRequest

	// table is what the data path reads. It never takes mu: closing the device
	// waits for the data path.
	table     atomic.Pointer[table]
	local     atomic.Pointer[engine.Local]
	elsewhere atomic.Uint64 // packets of peers for a destination that is not ours

	mu    sync.Mutex // orders changes of the device
	ran   bool
	dev   *device.Device // nil unless Run runs
	peers map[protocol.NodeNumber]*peer
}

var _ engine.Engine = (*Engine)(nil)

// New checks cfg. It opens and starts nothing.
func New(cfg Config) (*Engine, error) {
	switch {
	case !cfg.Number.Valid():
		return nil, fmt.Errorf("engine: %d is not a node number", cfg.Number)
	case cfg.PrivateKey.IsZero():
		return nil, errors.New("engine: no private key")
	case cfg.TUN == nil:
		return nil, errors.New("engine: no tun device")
	case cfg.Carrier == nil:
		return nil, errors.New("engine: no carrier")
	case cfg.IdleAfter < 0:
		return nil, fmt.Errorf("engine: idle time %s is negative", cfg.IdleAfter)
	}
	if cfg.IdleAfter == 0 {
		cfg.IdleAfter = DefaultIdleAfter
	}
	e := &Engine{
		cfg:    cfg,
		key:    cfg.PrivateKey,
		public: []protocol.WireGuardPublicKey{cfg.PrivateKey.Public()},
		wake:   make(chan wakeRequest, wakeQueue),
		peers:  map[protocol.NodeNumber]*peer{},
	}
	e.bind = newBind(e)
	e.table.Store(newTable(nil))
	return e, nil
}

// Name is wireguard-go.
func (e *Engine) Name() string { return Name }

// NewReader returns a receiver for one reader of the underlay. All readers
// share the queue to the device.
func (e *Engine) NewReader() underlay.Receiver { return &reader{e} }

// Run runs the device until ctx ends (nil) or its TUN device fails. It may be
// called once.
func (e *Engine) Run(ctx context.Context) error {
	t := newTunDevice(e, e.cfg.TUN)
	dev, err := e.start(t)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var tender sync.WaitGroup
	tender.Go(func() { e.tend(ctx) })

	var closed bool
	select {
	case <-ctx.Done():
	case <-dev.Wait():
		closed = true
	}
	cancel()
	e.stop()
	dev.Close()
	tender.Wait()
	if closed {
		return fmt.Errorf("wireguard-go: tun device failed: %w", t.failure())
	}
	return nil
}

func (e *Engine) start(t *tunDevice) (*device.Device, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ran {
		return nil, errors.New("wireguard-go: Run was called before")
	}
	e.ran = true
	dev := device.NewDevice(t, e.bind, deviceLogger(e.cfg.Log))
	// Paths are the underlay's business: a peer's endpoint never changes.
	dev.DisableSomeRoamingForBrokenMobileSemantics()
	if err := dev.IpcSet(new(script).privateKey(e.key).String()); err != nil {
		dev.Close()
		return nil, fmt.Errorf("wireguard-go: set private key: %w", err)
	}
	if err := dev.Up(); err != nil {
		dev.Close()
		return nil, fmt.Errorf("wireguard-go: bring device up: %w", err)
	}
	e.dev = dev
	for _, p := range e.peers {
		if !p.pinned() {
			continue
		}
		if err := e.addLocked(p); err != nil {
			e.dev = nil
			dev.Close()
			return nil, err
		}
	}
	return dev, nil
}

func (e *Engine) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.foldLocked(slices.Collect(maps.Values(e.peers))...)
	e.dev = nil
	for _, p := range e.peers {
		p.present.Store(false)
	}
}

// SetPeers replaces all peers; see engine.Engine.
func (e *Engine) SetPeers(list []engine.Peer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := engine.CheckPeers(e.public, list); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}

	// Three steps, so that a prefix that moves from one peer to another is
	// never claimed twice: take away, switch the table, give.
	var take, give script
	next := make(map[protocol.NodeNumber]*peer, len(list))
	var fresh []*peer
	for _, c := range list {
		c.AllowedIPs = canonical(c.AllowedIPs)
		p := e.peers[c.Number]
		if p == nil || p.cfg.Key != c.Key || p.cfg.PresharedKey != c.PresharedKey {
			p = &peer{cfg: c, ep: newEndpoint(c.Number)}
			next[c.Number] = p
			if p.pinned() {
				fresh = append(fresh, p)
			}
			continue
		}
		next[c.Number] = p
		if p.present.Load() {
			take.allowedIPs(c.Key, "-", without(p.cfg.AllowedIPs, c.AllowedIPs))
			give.allowedIPs(c.Key, "", without(c.AllowedIPs, p.cfg.AllowedIPs))
			if c.Keepalive != p.cfg.Keepalive {
				give.keepalive(c.Key, c.Keepalive)
			}
		}
		p.cfg = c
		if p.pinned() && !p.present.Load() {
			fresh = append(fresh, p)
		}
	}
	for n, p := range e.peers {
		if next[n] != p && p.present.Swap(false) {
			take.remove(p.cfg.Key)
		}
	}
	if err := e.applyLocked(&take); err != nil {
		return err
	}
	e.peers = next
	e.table.Store(newTable(next))
	if err := e.applyLocked(&give); err != nil {
		return err
	}
	for _, p := range fresh {
		if err := e.addLocked(p); err != nil {
			return err
		}
	}
	return nil
}

// SetKeys takes the first key; see engine.Engine. wireguard-go has but one: what
// it sends next begins a handshake under the new key.
func (e *Engine) SetKeys(keys []protocol.WireGuardPrivateKey) error {
	if len(keys) == 0 {
		return errors.New("set private keys: no key")
	}
	public := make([]protocol.WireGuardPublicKey, len(keys))
	for i, k := range keys {
		public[i] = k.Public()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for n, p := range e.peers {
		if slices.Contains(public, p.cfg.Key) {
			return fmt.Errorf("set private keys: one is peer %d's", n)
		}
	}
	e.public = public
	if keys[0] == e.key {
		return nil
	}
	e.key = keys[0]
	return e.applyLocked(new(script).privateKey(e.key))
}

// SetLocal implements engine.Engine.
func (e *Engine) SetLocal(l []netip.Prefix) { e.local.Store(engine.NewLocal(l)) }

// Drops implements engine.Engine. wireguard-go itself counts nothing.
func (e *Engine) Drops() protocol.Drops {
	return protocol.Drops{protocol.DropElsewhere: e.elsewhere.Load()}
}

// ResetPeer forgets a peer's sessions, its handshake and the timestamp that
// would refuse one from a clock set back.
func (e *Engine) ResetPeer(n protocol.NodeNumber) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.peers[n]
	if p == nil || e.dev == nil || !p.present.Load() {
		return // nothing is kept of a peer outside the device
	}
	e.foldLocked(p)
	err := e.removeLocked(p)
	if err == nil {
		err = e.addLocked(p)
	}
	if err != nil {
		e.cfg.Log.Error().Err(err).Uint32("peer", uint32(n)).Msg("peer not reset")
	}
}

// Stats lists every peer's counters, by number.
func (e *Engine) Stats() []engine.PeerStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	live := e.countersLocked()
	out := make([]engine.PeerStats, 0, len(e.peers))
	for n, p := range e.peers {
		s := p.base
		s.add(live[p.cfg.Key])
		out = append(out, engine.PeerStats{Number: n, RxBytes: s.rx, TxBytes: s.tx, LastHandshake: s.handshake})
	}
	slices.SortFunc(out, func(a, b engine.PeerStats) int { return int(a.Number) - int(b.Number) })
	return out
}
