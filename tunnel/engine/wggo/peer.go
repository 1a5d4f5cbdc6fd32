package wggo

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"causeway/protocol"
	"causeway/tunnel/engine"
)

// wakeQueue bounds what waits for peers to be put into the device.
const wakeQueue = 256

// peer is one configured peer. cfg, base and the idle fields are guarded by
// Engine.mu, the others are for the data path too.
type peer struct {
	cfg  engine.Peer
	base counters // of earlier stays in the device

	idleSince time.Time
	idleAt    uint64 // bytes received at idleSince

	ep      *endpoint
	present atomic.Bool // in the device
	cross   cross
}

// pinned peers stay in the device: with keepalives on, they are never idle.
func (p *peer) pinned() bool { return p.cfg.Keepalive > 0 }

// canonical returns the prefixes without host bits, sorted, each once.
func canonical(in []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(in))
	for i, p := range in {
		out[i] = p.Masked()
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// without returns what is in a and not in b.
func without(a, b []netip.Prefix) (out []netip.Prefix) {
	for _, p := range a {
		if !slices.Contains(b, p) {
			out = append(out, p)
		}
	}
	return out
}

// wakeRequest asks tend to put a peer into the device: from the TUN reader,
// which waits for done, or from a reader of the underlay, which does not wait
// and leaves the handshake message that is to follow. With anew it asks for another handshake,
// in place of all that the device has of the peer.
type wakeRequest struct {
	number   protocol.NodeNumber
	datagram []byte
	done     chan struct{}
	anew     bool
}

// tend puts peers into the device and takes idle ones out. It is a goroutine
// of its own because the device's goroutines must not wait for its
// configuration lock: Close waits for them while holding it.
func (e *Engine) tend(ctx context.Context) {
	tick := time.NewTicker(max(e.cfg.IdleAfter/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			e.dropIdle(time.Now())
		case w := <-e.wake:
			if w.anew {
				e.beginAnew(w.number)
			} else {
				e.rouse(w)
			}
		}
	}
}

func (e *Engine) rouse(w wakeRequest) {
	e.mu.Lock()
	p := e.peers[w.number]
	if p != nil && e.dev != nil && !p.present.Load() {
		if err := e.addLocked(p); err != nil {
			e.cfg.Log.Warn().Err(err).Uint32("peer", uint32(w.number)).Msg("peer not added")
		}
	}
	e.mu.Unlock()
	if w.done != nil {
		close(w.done)
	}
	if w.datagram != nil && p != nil {
		e.bind.queue.push(p.ep, w.datagram, len(w.datagram))
		e.bind.queue.flush()
	}
}

// beginAnew forgets what the device has of a peer and has it send an initiation.
func (e *Engine) beginAnew(n protocol.NodeNumber) {
	e.ResetPeer(n)
	var in *device.Peer
	e.mu.Lock()
	if p := e.peers[n]; p != nil && e.dev != nil {
		in = e.dev.LookupPeer(device.NoisePublicKey(p.cfg.Key))
	}
	e.mu.Unlock()
	if in != nil {
		_ = in.SendHandshakeInitiation(false) // said in the device's log; the next packet tries again
	}
}

func (e *Engine) dropIdle(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dev == nil {
		return
	}
	live := e.countersLocked()
	for n, p := range e.peers {
		if !p.present.Load() || p.pinned() {
			continue
		}
		c := live[p.cfg.Key]
		// A peer that lives answers, if only by keepalives; what goes to one that
		// is dead may be its retries alone.
		if c.rx != p.idleAt || p.idleSince.IsZero() {
			p.idleAt, p.idleSince = c.rx, now
			continue
		}
		if now.Sub(p.idleSince) < e.cfg.IdleAfter {
			continue
		}
		p.base.add(c)
		if err := e.removeLocked(p); err != nil {
			e.cfg.Log.Warn().Err(err).Uint32("peer", uint32(n)).Msg("idle peer not dropped")
			continue
		}
		e.cfg.Log.Debug().Uint32("peer", uint32(n)).Msg("idle peer dropped")
	}
}

func (e *Engine) addLocked(p *peer) error {
	if e.dev == nil {
		return nil
	}
	if err := e.dev.IpcSet(new(script).add(p.cfg).String()); err != nil {
		return fmt.Errorf("add peer %d: %w", p.cfg.Number, err)
	}
	p.idleSince, p.idleAt = time.Time{}, 0
	p.present.Store(true)
	return nil
}

// removeLocked takes p out of the device. present falls first, so that a
// packet that comes meanwhile asks for it again.
func (e *Engine) removeLocked(p *peer) error {
	p.present.Store(false)
	p.cross.forget()
	if err := e.dev.IpcSet(new(script).remove(p.cfg.Key).String()); err != nil {
		return fmt.Errorf("remove peer %d: %w", p.cfg.Number, err)
	}
	return nil
}

func (e *Engine) applyLocked(s *script) error {
	if e.dev == nil || s.empty() {
		return nil
	}
	if err := e.dev.IpcSet(s.String()); err != nil {
		return fmt.Errorf("configure wireguard-go: %w", err)
	}
	return nil
}

// table is what the data path needs of the peers. It is never changed.
type table struct {
	byNumber map[protocol.NodeNumber]*peer
	byPrefix map[netip.Prefix]*peer
	bits4    []int // prefix lengths in use, longest first
	bits6    []int
}

func newTable(peers map[protocol.NodeNumber]*peer) *table {
	t := &table{byNumber: peers, byPrefix: map[netip.Prefix]*peer{}}
	for _, p := range peers {
		for _, a := range p.cfg.AllowedIPs {
			t.byPrefix[a] = p
			bits := &t.bits6
			if a.Addr().Is4() {
				bits = &t.bits4
			}
			if !slices.Contains(*bits, a.Bits()) {
				*bits = append(*bits, a.Bits())
			}
		}
	}
	for _, b := range [][]int{t.bits4, t.bits6} {
		slices.Sort(b)
		slices.Reverse(b)
	}
	return t
}

// lookup returns the peer that dst is routed to, or nil.
func (t *table) lookup(dst netip.Addr) *peer {
	bits := t.bits6
	if dst.Is4() {
		bits = t.bits4
	}
	for _, b := range bits {
		prefix, err := dst.Prefix(b)
		if err != nil {
			return nil
		}
		if p := t.byPrefix[prefix]; p != nil {
			return p
		}
	}
	return nil
}
