package sock

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/tunnel/underlay/sock/socktest"
)

// What came to one of several addresses is answered from there, as a group too.
func TestSticky(t *testing.T) {
	var hub4, hub, four, six *Conn
	socktest.InNamespace(t, func() {
		hub4 = open(t, Options{Addr: netip.MustParseAddrPort("0.0.0.0:0"), Sticky: true})
		hub = open(t, Options{Addr: netip.MustParseAddrPort("[::]:0"), Sticky: true})
		four = open(t, Options{Addr: netip.MustParseAddrPort("10.9.9.9:0")})
		six = open(t, Options{Addr: netip.MustParseAddrPort("[fd09::9]:0")})
	}, "ip addr add 10.9.9.1/32 dev lo", "ip addr add 10.9.9.2/32 dev lo", "ip addr add 10.9.9.9/32 dev lo",
		"ip addr add fd09::1/128 dev lo nodad", "ip addr add fd09::2/128 dev lo nodad", "ip addr add fd09::9/128 dev lo nodad")
	want := datagrams(20, 1000, 10)
	for _, c := range []struct {
		hub, agent *Conn
		at         string
	}{{hub4, four, "10.9.9.1"}, {hub4, four, "10.9.9.2"}, {hub, four, "10.9.9.1"}, {hub, four, "10.9.9.2"}, {hub, six, "fd09::1"}, {hub, six, "fd09::2"}} {
		at := netip.AddrPortFrom(netip.MustParseAddr(c.at), c.hub.LocalAddr().Port())
		require.NoError(t, c.agent.Write(at, want, 1000))
		got, ms := receive(t, c.hub, len(want))
		require.Equal(t, want, got)
		require.Equal(t, at.Addr(), ms[0].Local)

		require.NoError(t, c.hub.WriteFrom(ms[0].Local, ms[0].From, want, 1000))
		var g Group
		for o := 0; o < len(want); o += 1000 {
			require.True(t, g.Add(want[o:min(o+1000, len(want))]))
		}
		require.NoError(t, c.hub.WriteGroup(ms[0].Local, ms[0].From, &g))
		got, ms = receive(t, c.agent, 2*len(want))
		require.Equal(t, append(append([]byte{}, want...), want...), got)
		for _, m := range ms {
			require.Equal(t, at, m.From)
		}
		require.Less(t, len(ms), 10, "groups stay groups")
	}
	// An address that the host has lost.
	require.Error(t, hub.WriteFrom(netip.MustParseAddr("10.9.9.77"), four.LocalAddr(), want, 1000))
	require.False(t, hub.refused(four.LocalAddr()), "that is not for want of UDP_SEGMENT")
}

func TestShared(t *testing.T) {
	const n = 4
	cs, err := OpenShared(Options{Addr: netip.MustParseAddrPort("127.0.0.1:0")}, n)
	require.NoError(t, err)
	for _, c := range cs {
		t.Cleanup(func() { c.Close() })
		require.Equal(t, cs[0].LocalAddr(), c.LocalAddr())
	}
	_, err = OpenShared(Options{Addr: cs[0].LocalAddr()}, n)
	require.ErrorIs(t, err, unix.EADDRINUSE, "a second program")

	// Each sender's datagrams come to one of them.
	type got struct {
		socket int
		from   netip.AddrPort
	}
	all := make(chan got)
	for i, c := range cs {
		go func() {
			b := NewBatch()
			for {
				ms, err := c.Read(b)
				if err != nil {
					return
				}
				for _, m := range ms {
					for range (len(m.Data) + m.Segment - 1) / m.Segment {
						all <- got{i, m.From}
					}
				}
			}
		}()
	}
	at, used := map[netip.AddrPort]int{}, map[int]bool{}
	for range 40 {
		s := open(t, Options{})
		for range 3 {
			require.NoError(t, s.Write(cs[0].LocalAddr(), make([]byte, 50), 50))
			g := <-all
			require.Equal(t, s.LocalAddr(), g.from)
			if first, ok := at[g.from]; ok {
				require.Equal(t, first, g.socket)
			}
			at[g.from], used[g.socket] = g.socket, true
		}
	}
	require.Greater(t, len(used), 1, "40 senders are spread")
}
