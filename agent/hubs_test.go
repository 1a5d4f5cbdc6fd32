package agent

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// An address at which the hub answers outlives its record, until the hub answers at a new one.
func TestKeepAnswering(t *testing.T) {
	l := func(s ...string) (out []netip.AddrPort) {
		for _, x := range s {
			out = append(out, netip.MustParseAddrPort(x))
		}
		return out
	}
	at := func(addr string, age time.Duration) protocol.Way {
		return protocol.Way{Kind: protocol.PathDirect, Addr: netip.MustParseAddrPort(addr), Answered: age}
	}
	const a, b, c = "192.0.2.1:51820", "192.0.2.2:51820", "192.0.2.3:51820"
	for _, x := range []struct {
		name              string
		before, now, want []netip.AddrPort
		ways              []protocol.Way
	}{
		{"the first", nil, l(a), l(a), nil},
		{"the same", l(a), l(a), l(a), []protocol.Way{at(a, time.Second)}},
		{"a wrong one", l(a, b), l(c), l(c, a), []protocol.Way{at(a, time.Second), at(b, -1)}},
		{"still wrong", l(c, a), l(c), l(c, a), []protocol.Way{at(c, -1), at(a, time.Second)}},
		{"it moved", l(c, a), l(c), l(c), []protocol.Way{at(c, time.Second), at(a, time.Second)}},
		{"it was away already", l(a), l(c), l(c), []protocol.Way{at(a, time.Minute)}},
	} {
		require.Equal(t, x.want, keepAnswering(x.before, x.now, x.ways), x.name)
	}
}

// Without the tunnel's device nothing is dialled through another one.
func TestDialWithoutDevice(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = dialer(func() string { return "" })(t.Context(), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddrPort(l.Addr().String()))
	require.ErrorIs(t, err, errNoDevice)
}
