package conntrack

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/netnstest"
)

// What the kernel tracks is listed as it is, and the one that is meant is deleted alone.
func TestEachAndDelete(t *testing.T) {
	netnstest.Namespace(t)
	netnstest.Sh(t, "nft 'add table inet t; add chain inet t c { type filter hook output priority 0; }; add rule inet t c ct state new accept'") // so that it tracks
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		conns = append(conns, c)
	}
	flows := func() (out []Flow) {
		require.NoError(t, Each(t.Context(), All, func(f Flow) error { out = append(out, f); return nil }))
		return out
	}
	require.Len(t, flows(), 3)
	for _, f := range flows() {
		require.Equal(t, uint8(6), f.Proto)
		require.Equal(t, uint8(Established), f.State)
		require.True(t, f.Replied)
		require.Equal(t, l.Addr().String(), f.To.String())
		require.Equal(t, f.From, f.Answered)
		require.Equal(t, f.To, f.Answers)
	}
	d, err := NewDeleter()
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, Each(t.Context(), All, func(f Flow) error {
		if f.From.String() != conns[1].LocalAddr().String() {
			return nil
		}
		gone, err := d.Delete(f)
		require.True(t, gone)
		require.NoError(t, err)
		gone, err = d.Delete(f)
		require.False(t, gone, "it is gone already")
		return err
	}))
	require.Len(t, flows(), 2)
	require.NoError(t, Each(t.Context(), Translated, func(Flow) error { return errors.New("there is none that is translated") }))
	stop := errors.New("enough")
	require.ErrorIs(t, Each(t.Context(), All, func(Flow) error { return stop }), stop)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, Each(ctx, All, func(Flow) error { return nil }), context.Canceled)
}

// The kernel's messages are read within their bounds.
func FuzzRead(f *testing.F) {
	f.Add([]byte{8, 0, 3, 0, 0, 0, 0, 2})
	f.Add([]byte{28, 0, 1, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 1, 12, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if x, ok := read(b); ok {
			require.True(t, x.From.IsValid() && x.Answered.IsValid())
		}
	})
}
