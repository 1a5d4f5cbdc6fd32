package measure

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/protocol"
)

var lo = netip.MustParseAddr("127.0.0.1")

func run(t *testing.T, o protocol.MeasureOffer) protocol.Measured {
	t.Helper()
	r, err := Offer(o, lo, lo)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- r.Run(t.Context()) }()
	// Strangers do not take the sender's place.
	for _, say := range []string{"", "0123456789abcdef"} {
		c, err := net.Dial("tcp", r.Place().TCP.String())
		require.NoError(t, err)
		c.Write([]byte(say))
		if say == "" {
			c.Close()
		} else {
			defer c.Close()
		}
	}
	m, err := Run(t.Context(), protocol.MeasureRun{MeasureOffer: o, Place: r.Place()}, lo)
	require.NoError(t, err)
	require.NoError(t, <-done)
	return m
}

func TestThroughput(t *testing.T) {
	for _, kind := range []protocol.MeasureKind{protocol.MeasureTCP, protocol.MeasureUDP} {
		m := run(t, protocol.MeasureOffer{Kind: kind, Peer: 2, Time: time.Second, Rate: 8_000_000})
		require.Greater(t, m.Sent, uint64(100_000), kind)
		require.LessOrEqual(t, m.Sent, uint64(1_300_000), "the rate is held")
		require.Equal(t, m.Sent-m.Lost*udpSize, m.Received, kind)
		if kind == protocol.MeasureUDP {
			require.Equal(t, m.Sent/udpSize, m.Datagrams)
			require.Zero(t, m.Reordered)
			require.Less(t, m.Jitter, time.Second)
		}
	}
}

// Over loopback, whose MTU is 65536, the largest datagram is what IP allows.
func TestMTU(t *testing.T) {
	m := run(t, protocol.MeasureOffer{Kind: protocol.MeasureMTU, Peer: 2, Time: 20 * time.Second, Rate: 1_000_000})
	require.Equal(t, 65535, m.MTU)
}

func TestReceiverEnds(t *testing.T) {
	r, err := Offer(protocol.MeasureOffer{Kind: protocol.MeasureTCP, Peer: 2, Time: time.Second, Rate: 1000}, lo, lo)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, r.Run(ctx), "no sender came")
	// The port may be another's by now, or the sender's own: one is asked that is held and that nobody listens on.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: lo.As4()}))
	at, err := unix.Getsockname(fd)
	require.NoError(t, err)
	place := r.Place()
	place.TCP = netip.AddrPortFrom(lo, uint16(at.(*unix.SockaddrInet4).Port))
	_, err = Run(t.Context(), protocol.MeasureRun{MeasureOffer: r.offer, Place: place}, lo)
	require.ErrorContains(t, err, "refused")
}

// At a rate that lets one piece through in all the time, that is what is measured.
func TestSlowRate(t *testing.T) {
	for _, kind := range []protocol.MeasureKind{protocol.MeasureTCP, protocol.MeasureUDP} {
		m := run(t, protocol.MeasureOffer{Kind: kind, Peer: 2, Time: time.Second, Rate: 1000})
		require.Positive(t, m.Sent, kind)
		require.Equal(t, m.Sent, m.Received, kind)
	}
}

func TestCheck(t *testing.T) {
	ok := protocol.MeasureOffer{Kind: protocol.MeasureTCP, Peer: 2, Time: time.Second, Rate: 1e6}
	require.NoError(t, Check(ok))
	for want, bad := range map[string]func(*protocol.MeasureOffer){
		"no measurement": func(o *protocol.MeasureOffer) { o.Kind = "x" },
		"no peer":        func(o *protocol.MeasureOffer) { o.Peer = 0 },
		"takes up to":    func(o *protocol.MeasureOffer) { o.Time = time.Hour },
		"the rate is":    func(o *protocol.MeasureOffer) { o.Rate = 0 },
	} {
		o := ok
		bad(&o)
		require.ErrorContains(t, Check(o), want)
	}
}
