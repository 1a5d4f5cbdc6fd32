package wggo

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// tunDevice stands between the device and its TUN: it puts peers into the
// device when the first packet for one is read, and keeps the link's state
// from the device, which runs as long as the engine does: a link that is down
// for a moment shall not cost the sessions.
type tunDevice struct {
	tun.Device
	e        *Engine
	events   chan tun.Event
	stopping chan struct{}
	stop     sync.Once
	readErr  atomic.Pointer[error]
	warned   atomic.Int64 // when a failed write was last logged, Unix seconds

	// What Read looked up last: packets of a batch mostly go the same way.
	lastTable *table
	lastDst   netip.Addr
	lastPeer  *peer
}

func newTunDevice(e *Engine, t tun.Device) *tunDevice {
	d := &tunDevice{Device: t, e: e, events: make(chan tun.Event, 1), stopping: make(chan struct{})}
	go d.forwardEvents()
	return d
}

// forwardEvents ends when the inner device closes its channel.
func (d *tunDevice) forwardEvents() {
	defer close(d.events)
	for ev := range d.Device.Events() {
		if ev&tun.EventMTUUpdate == 0 {
			continue
		}
		select {
		case d.events <- tun.EventMTUUpdate:
		default: // one is waiting
		}
	}
}

func (d *tunDevice) Events() <-chan tun.Event { return d.events }

// Read reads packets and has their peers made.
func (d *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.Device.Read(bufs, sizes, offset)
	for errors.Is(err, os.ErrClosed) && d.e.cfg.Hold && d.await() {
		n, err = d.Device.Read(bufs, sizes, offset)
	}
	if err != nil && !errors.Is(err, tun.ErrTooManySegments) {
		d.readErr.CompareAndSwap(nil, &err)
	}
	t := d.e.table.Load()
	if t != d.lastTable {
		d.lastTable, d.lastDst, d.lastPeer = t, netip.Addr{}, nil
	}
	for i := range n {
		p := bufs[i][offset : offset+sizes[i]]
		mendUDPChecksum(p)
		dst, ok := destination(p)
		if !ok {
			continue
		}
		if dst != d.lastDst {
			d.lastDst, d.lastPeer = dst, t.lookup(dst)
		}
		if p := d.lastPeer; p != nil && !p.present.Load() {
			d.rouse(p)
		}
	}
	return n, err
}

// goneWait is how often a deleted device is looked for.
const goneWait = 20 * time.Millisecond

// await waits a moment for a device that was deleted; false: it closes.
func (d *tunDevice) await() bool {
	select {
	case <-d.stopping:
		return false
	case <-time.After(goneWait):
		return true
	}
}

// rouse waits until p is in the device or the device closes.
func (d *tunDevice) rouse(p *peer) {
	done := make(chan struct{})
	select {
	case d.e.wake <- wakeRequest{number: p.ep.number, done: done}:
	case <-d.stopping:
		return
	}
	select {
	case <-done:
	case <-d.stopping:
	}
}

// Write writes packets for destinations that are ours. A failure loses packets and nothing else (the link may
// be down), so it is logged once a minute.
func (d *tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	if !d.e.cfg.AnyDestination {
		if bufs = d.ours(bufs, offset); len(bufs) == 0 {
			return 0, nil
		}
	}
	n, err := d.Device.Write(bufs, offset)
	if err != nil && !errors.Is(err, os.ErrClosed) {
		now, last := time.Now().Unix(), d.warned.Load()
		if now-last >= 60 && d.warned.CompareAndSwap(last, now) {
			d.e.cfg.Log.Warn().Err(err).Msg("packets not written to the tun device")
		}
	}
	return n, nil
}

// ours moves the packets for our own destinations to the front of bufs and returns them.
func (d *tunDevice) ours(bufs [][]byte, offset int) [][]byte {
	local, n := d.e.local.Load(), 0
	for _, b := range bufs {
		if local.Holds(b[offset:]) {
			bufs[n] = b
			n++
		}
	}
	if n < len(bufs) {
		d.e.elsewhere.Add(uint64(len(bufs) - n))
	}
	return bufs[:n]
}

// Close unblocks Read.
func (d *tunDevice) Close() error {
	d.stop.Do(func() { close(d.stopping) })
	return d.Device.Close()
}

// failure is why Read failed.
func (d *tunDevice) failure() error {
	if err := d.readErr.Load(); err != nil {
		return *err
	}
	return os.ErrClosed
}

// destination is the destination address of an IP packet.
func destination(p []byte) (netip.Addr, bool) {
	if len(p) < 20 {
		return netip.Addr{}, false
	}
	switch p[0] >> 4 {
	case 4:
		return netip.AddrFrom4([4]byte(p[16:20])), true
	case 6:
		if len(p) >= 40 {
			return netip.AddrFrom16([16]byte(p[24:40])), true
		}
	}
	return netip.Addr{}, false
}
