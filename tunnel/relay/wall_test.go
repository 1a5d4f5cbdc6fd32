package relay_test

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// wall is a NAT in front of one address that can be closed: it forwards both
// ways between whoever speaks to it and that address.
type wall struct {
	addr netip.AddrPort
	mu   sync.Mutex
	shut bool
}

func newWall(t *testing.T, inside netip.AddrPort) *wall {
	front, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	require.NoError(t, err)
	back, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(inside))
	require.NoError(t, err)
	w := &wall{addr: front.LocalAddr().(*net.UDPAddr).AddrPort()}
	var (
		wg      sync.WaitGroup
		outside netip.AddrPort
	)
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, from, err := front.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			w.mu.Lock()
			outside = from
			shut := w.shut
			w.mu.Unlock()
			if !shut {
				back.Write(b[:n])
			}
		}
	})
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, err := back.Read(b)
			if err != nil {
				return
			}
			w.mu.Lock()
			to, shut := outside, w.shut
			w.mu.Unlock()
			if !shut && to.IsValid() {
				front.WriteToUDPAddrPort(b[:n], to)
			}
		}
	})
	t.Cleanup(func() {
		front.Close()
		back.Close()
		wg.Wait()
	})
	return w
}

func (w *wall) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shut = true
}
