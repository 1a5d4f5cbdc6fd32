package inline

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/tun"
)

// plainDevice runs the engine over any tun.Device: a userspace netstack, a
// channel in tests, or a kernel device that wireguard-go's package opened.
// It costs a copy for each packet read.
type plainDevice struct {
	dev      tun.Device
	stopping atomic.Bool
}

func newPlainDevice(d tun.Device) *plainDevice { return &plainDevice{dev: d} }

// plainBatch is how many packets are written by one call.
const plainBatch = 128

// defaultMTU is assumed where a device does not say.
const defaultMTU = 1420

func (d *plainDevice) mtu() int {
	if m, err := d.dev.MTU(); err == nil && m > 0 {
		return m
	}
	return defaultMTU
}

func (d *plainDevice) run(e *Engine, g *errgroup.Group) {
	g.Go(func() error {
		// The channel is closed by Close.
		for ev := range d.dev.Events() {
			if ev&tun.EventMTUUpdate != 0 {
				e.mtu.Store(int32(d.mtu()))
			}
		}
		return nil
	})
	g.Go(func() error { return d.read(e) })
}

func (d *plainDevice) read(e *Engine) error {
	w := newSender(e)
	n := max(d.dev.BatchSize(), 1)
	bufs, sizes := make([][]byte, n), make([]int, n)
	for i := range bufs {
		bufs[i] = make([]byte, readHead+65536+padding)
	}
	for {
		n, err := d.dev.Read(bufs, sizes, readHead)
		w.tick()
		for i, b := range bufs[:n] {
			if sizes[i] > 0 && sizes[i] <= 65535 {
				w.packet(nil, b, readHead, sizes[i])
			}
		}
		w.flush()
		switch {
		case err == nil || errors.Is(err, tun.ErrTooManySegments):
		case d.stopping.Load():
			return nil
		default:
			return fmt.Errorf("read tun: %w", err)
		}
	}
}

func (d *plainDevice) stop() {
	d.stopping.Store(true)
	d.dev.Close()
}

func (d *plainDevice) close() {}

func (d *plainDevice) sink(e *Engine) sink {
	return &plainSink{e: e, dev: d.dev, bufs: make([][]byte, 0, plainBatch)}
}

// plainSink writes packets where they were opened: the header of the message
// is the room that a tun.Device wants before each.
type plainSink struct {
	e    *Engine
	dev  tun.Device
	bufs [][]byte
}

func (s *plainSink) add(msg []byte, _ bool) {
	s.bufs = append(s.bufs, msg)
	if len(s.bufs) == plainBatch {
		s.flush()
	}
}

func (s *plainSink) flush() {
	if len(s.bufs) == 0 {
		return
	}
	if _, err := s.dev.Write(s.bufs, headerSize); err != nil {
		s.e.counts.writeErrors.Add(1)
	}
	clear(s.bufs)
	s.bufs = s.bufs[:0]
}
