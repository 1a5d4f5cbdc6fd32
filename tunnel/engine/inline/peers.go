package inline

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"causeway/protocol"
	"causeway/tunnel/engine"
)

// SetPeers implements engine.Engine. A changed preshared key counts from the
// next handshake on, as in other implementations.
func (e *Engine) SetPeers(peers []engine.Peer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := engine.CheckPeers(e.public, peers); err != nil {
		return err
	}
	wanted := make(map[protocol.NodeNumber]bool, len(peers))
	table := &routes{}
	t := time.Now()
	var added []*peer
	keys := map[*peer]protocol.WireGuardPublicKey{}
	// Those that go, go first: their keys may come back under another number.
	for i := range peers {
		w := &peers[i]
		if e.numbers[w.Number] != nil {
			wanted[w.Number] = true
		}
	}
	var removed, rotated []*peer
	for n, p := range e.numbers {
		if !wanted[n] {
			removed = append(removed, p)
			delete(e.numbers, n)
		}
	}
	for i := range peers {
		w := &peers[i]
		p := e.numbers[w.Number]
		if p == nil {
			p = newPeer(w.Number, w.Key)
			p.keepalive = w.Keepalive
			e.numbers[w.Number] = p
			added = append(added, p)
		}
		p.psk = w.PresharedKey
		if p.key != w.Key {
			rotated = append(rotated, p)
			keys[p] = w.Key
		}
		if p.keepalive != w.Keepalive {
			greet := p.keepalive == 0
			p.keepalive = w.Keepalive
			if e.running {
				if greet {
					e.machine.keepalive(p, t)
				}
				e.machine.schedule(p, e.machine.instant(t))
			}
		}
		for _, a := range w.AllowedIPs {
			table.insert(a, p)
		}
		if len(w.Sources) > 0 {
			if table.sources == nil {
				table.sources = map[*peer][]netip.Prefix{}
			}
			table.sources[p] = slices.Clone(w.Sources)
		}
	}
	// From here on nothing is sent to or accepted from a removed peer.
	e.routes.Store(table)
	for _, p := range removed {
		e.machine.remove(p)
	}
	for _, p := range rotated {
		if e.running {
			e.machine.rekey(p, keys[p], t)
		} else {
			p.key, p.cookies = keys[p], newCookies(keys[p])
		}
	}
	if e.running {
		for _, p := range added {
			e.machine.add(p, t)
		}
	}
	e.poke()
	return nil
}

// SetPrivateKey gives the device another key. All sessions end: they vouch for
// the old one. It fails, changing nothing, if the key is a peer's.
func (e *Engine) SetPrivateKey(k protocol.WireGuardPrivateKey) error {
	if k.IsZero() {
		return errors.New("set private key: no key")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.setKeys(k); err != nil {
		return err
	}
	for _, p := range e.numbers {
		e.reset(p)
	}
	e.poke()
	return nil
}

// SetKeys implements engine.Engine.
func (e *Engine) SetKeys(keys []protocol.WireGuardPrivateKey) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(keys) == 0 {
		return errors.New("set private keys: no key")
	}
	if err := e.setKeys(keys...); err != nil {
		return err
	}
	if e.running {
		t := time.Now()
		for _, p := range e.numbers {
			if p.keepalive > 0 {
				e.machine.initiate(p, t, false)
			}
			e.machine.schedule(p, e.machine.instant(t))
		}
	}
	e.poke()
	return nil
}

// setKeys checks and takes the keys. e.mu is held.
func (e *Engine) setKeys(keys ...protocol.WireGuardPrivateKey) error {
	public := make([]protocol.WireGuardPublicKey, len(keys))
	for i, k := range keys {
		public[i] = k.Public()
		for n, p := range e.numbers {
			if p.key == public[i] {
				return fmt.Errorf("set private key: it is peer %d's", n)
			}
		}
	}
	e.public = public
	e.machine.setKeys(keys...)
	return nil
}

// ResetPeer implements engine.Engine.
func (e *Engine) ResetPeer(n protocol.NodeNumber) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.numbers[n]; p != nil {
		e.reset(p)
		e.poke()
	}
}

// reset forgets a peer's sessions and handshake. e.mu is held.
func (e *Engine) reset(p *peer) {
	m := e.machine
	// What is staged stays: it goes to whoever answers the next handshake.
	m.dropPending(p)
	for _, s := range p.forget() {
		m.index.remove(s.entry)
	}
	p.received = [len(p.received)]byte{}
	p.answeredAt, p.lastHandshake, p.retransmitAt, p.eraseAt = 0, 0, 0, 0
	p.attempts, p.lastMinute = 0, false
	p.unanswered.Store(0)
	p.unacked.Store(0)
	p.another.Store(false)
	p.asked.Store(0)
	p.cookies = newCookies(p.key)
	if e.running {
		p.mu.Lock()
		waiting := len(p.staged) > 0
		p.mu.Unlock()
		if waiting || p.keepalive > 0 {
			m.initiate(p, time.Now(), false)
		}
		m.schedule(p, e.now())
	}
}
