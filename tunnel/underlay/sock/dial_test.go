package sock

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Of a name's addresses the first that answers is taken, wherever in the list it is.
func TestDialTCPTriesAll(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	good, dead := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	for name, addrs := range map[string][]netip.Addr{"first": {good, dead}, "last": {dead, dead, good}} {
		c, err := DialTCP(t.Context(), 0, func(_ context.Context, host string) ([]netip.Addr, error) {
			require.Equal(t, "hub.example", host)
			return addrs, nil
		}, "hub.example:"+port)
		require.NoError(t, err, name)
		require.Equal(t, l.Addr().String(), c.RemoteAddr().String(), name)
		c.Close()
	}
	_, err = DialTCP(t.Context(), 0, func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{dead}, nil }, "hub.example:"+port)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	none := errors.New("no such name")
	_, err = DialTCP(t.Context(), 0, func(context.Context, string) ([]netip.Addr, error) { return nil, none }, "hub.example:"+port)
	require.ErrorIs(t, err, none)
}
