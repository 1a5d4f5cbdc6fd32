package enginetest

import (
	"errors"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/tun"
)

// TUN is a tun.Device made of channels. What is sent to In is read by the
// engine; what the engine writes comes out of Out, whose reader must keep up:
// a packet that finds Out full is lost.
type TUN struct {
	In  chan []byte
	Out chan []byte

	mtu    int
	events chan tun.Event
	closed chan struct{}
	once   sync.Once
	fail   chan error
}

var _ tun.Device = (*TUN)(nil)

// NewTUN makes a device.
func NewTUN(mtu int) *TUN {
	t := &TUN{
		In: make(chan []byte, 1024), Out: make(chan []byte, 65536), mtu: mtu,
		events: make(chan tun.Event, 1), closed: make(chan struct{}), fail: make(chan error, 1),
	}
	t.events <- tun.EventUp
	return t
}

// File is nil: there is no descriptor.
func (t *TUN) File() *os.File { return nil }

// Fail makes the engine's next Read fail.
func (t *TUN) Fail(err error) { t.fail <- err }

// Closed reports whether the engine has closed the device.
func (t *TUN) Closed() bool {
	select {
	case <-t.closed:
		return true
	default:
		return false
	}
}

// Read returns as many packets as wait, at least one.
func (t *TUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(sizes) < len(bufs) {
		return 0, errors.New("fewer sizes than buffers")
	}
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	case err := <-t.fail:
		return 0, err
	case p := <-t.In:
		sizes[0] = copy(bufs[0][offset:], p)
	}
	for n := 1; n < len(bufs); n++ {
		select {
		case p := <-t.In:
			sizes[n] = copy(bufs[n][offset:], p)
		default:
			return n, nil
		}
	}
	return len(bufs), nil
}

// Write copies packets to Out.
func (t *TUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		select {
		case <-t.closed:
			return 0, os.ErrClosed
		case t.Out <- append([]byte(nil), b[offset:]...):
		default:
		}
	}
	return len(bufs), nil
}

// MTU is what NewTUN was given.
func (t *TUN) MTU() (int, error) { return t.mtu, nil }

// Name is test.
func (t *TUN) Name() (string, error) { return "test", nil }

// Events tells that the device is up.
func (t *TUN) Events() <-chan tun.Event { return t.events }

// BatchSize is that of the kernel's device with offloads.
func (t *TUN) BatchSize() int { return 128 }

// Close may be called more than once.
func (t *TUN) Close() error {
	t.once.Do(func() {
		close(t.closed)
		close(t.events)
	})
	return nil
}
