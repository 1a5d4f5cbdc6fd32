package look

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/netns/lab"
	"causeway/netns/policy"
)

// hearing gathers what a listener hears on a host.
type hearing struct {
	mu   sync.Mutex
	list []Heard
}

func hear(t *testing.T, h *lab.Host, open func() (*Listener, error)) *hearing {
	var l *Listener
	require.NoError(t, h.Do(func() (err error) { l, err = open(); return err }))
	ctx, cancel := context.WithCancel(context.Background())
	x, done := &hearing{}, make(chan error, 1)
	go func() {
		done <- l.Run(ctx, func(h Heard) {
			x.mu.Lock()
			x.list = append(x.list, h)
			x.mu.Unlock()
		})
	}()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done); require.Zero(t, l.Lost()) })
	return x
}

// wait waits for one that is so.
func (x *hearing) wait(t *testing.T, what string, is func(Heard) bool) (out Heard) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, lab.Wait(ctx, what, func(context.Context) error {
		x.mu.Lock()
		defer x.mu.Unlock()
		i := slices.IndexFunc(x.list, is)
		if i < 0 {
			return fmt.Errorf("%d heard: %+v", len(x.list), x.list)
		}
		out = x.list[i]
		return nil
	}))
	return out
}

// The kernel's own words: of what passes, of what the wall refuses, in both families and directions, and of what
// conntrack takes up in its middle.
func TestHeard(t *testing.T) {
	l := lab.New(t)
	a, b := l.Host("a"), l.Host("b")
	l.Wire(a, "cw0", []string{"198.18.0.1/24", "fd63::1/96"}, b, "cw0", []string{"198.18.0.2/24", "fd63::2/96"})
	for _, h := range []*lab.Host{a, b} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		require.NoError(t, h.Settle(ctx))
		cancel()
	}
	// Conntrack is on where a rule wants it.
	a.Sh("nft 'add table inet t; add chain inet t i { type filter hook input priority 0; }; add rule inet t i ct state new accept'")
	begun := hear(t, a, HearBegun)
	var servers []net.Listener
	for _, h := range []*lab.Host{a, b} {
		require.NoError(t, h.Do(func() error {
			s, err := net.Listen("tcp", ":443")
			servers = append(servers, s)
			return err
		}))
	}
	defer servers[0].Close()
	defer servers[1].Close()
	dial := func(h *lab.Host, network, to string) (c net.Conn, err error) {
		err = h.Do(func() error {
			c, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial(network, to)
			return err
		})
		return c, err
	}
	ap := netip.MustParseAddrPort
	for _, to := range []string{"198.18.0.1:443", "[fd63::1]:443"} {
		c, err := dial(b, "tcp", to)
		require.NoError(t, err)
		defer c.Close()
		h := begun.wait(t, "the connection to be heard of", func(h Heard) bool { return h.Orig.To == ap(to) })
		require.Equal(t, uint8(unix.IPPROTO_TCP), h.Orig.Proto)
		require.Equal(t, h.Orig.inverse(), h.Reply)
		require.False(t, h.Midway)
	}
	c, err := dial(b, "udp", "198.18.0.1:53")
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("question"))
	require.NoError(t, err)
	h := begun.wait(t, "the question", func(h Heard) bool { return h.Orig.To == ap("198.18.0.1:53") })
	require.False(t, h.Midway)

	// Taken up by what the server says.
	client, err := dial(a, "tcp", "198.18.0.2:443")
	require.NoError(t, err)
	defer client.Close()
	server, err := servers[1].Accept()
	require.NoError(t, err)
	defer server.Close()
	begun.wait(t, "the connection", func(h Heard) bool { return h.Orig.To == ap("198.18.0.2:443") })
	a.Sh("conntrack -F 2>/dev/null")
	_, err = server.Write([]byte("hello"))
	require.NoError(t, err)
	h = begun.wait(t, "the connection in its middle", func(h Heard) bool { return h.Orig.From == ap("198.18.0.2:443") })
	require.True(t, h.Midway)

	table := policy.NewTable()
	mp := netip.MustParsePrefix
	cfg := policy.Config{Interface: "cw0", Local: []policy.Member{{Prefix: mp("198.18.0.1/32"), Class: 1}, {Prefix: mp("fd63::1/128"), Class: 1}}, Remote: []policy.Member{{Prefix: mp("198.18.0.2/32"), Class: 2}, {Prefix: mp("fd63::2/128"), Class: 2}}}
	refused := hear(t, a, HearRefused)
	require.NoError(t, a.Do(func() error { return table.Set(cfg) }))
	for _, to := range []string{"198.18.0.1:443", "[fd63::1]:443"} {
		_, err := dial(b, "tcp", to)
		require.Error(t, err)
		h := refused.wait(t, "the refusal", func(h Heard) bool { return h.Orig.To == ap(to) })
		require.True(t, h.Inwards)
		require.False(t, h.Answers || h.Midway, "%+v", h)
	}
	_, err = dial(a, "tcp", "198.18.0.2:443")
	require.Error(t, err)
	h = refused.wait(t, "the refusal of what goes out", func(h Heard) bool { return h.Reply.From == ap("198.18.0.2:443") && !h.Inwards })
	require.False(t, h.Answers)
	// What is under way is refused by its own ends, whoever speaks.
	_, err = server.Write([]byte("more"))
	require.NoError(t, err)
	refused.wait(t, "the refusal of what is under way", func(h Heard) bool {
		return h.Inwards && (h.Orig.From == ap("198.18.0.2:443") || h.Reply.From == ap("198.18.0.2:443"))
	})
	require.NoError(t, a.Do(func() error { return kernel.DeleteTable(policy.TableName) }))
}

// The threat: the kernel hands over what strangers' packets say.
func FuzzHeard(f *testing.F) {
	f.Add(true, []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1, 0, 80, 1, 187})
	f.Add(false, []byte{12, 0, 1, 0x80, 8, 0, 1, 0x80, 4, 0, 1, 0})
	f.Fuzz(func(t *testing.T, packet bool, b []byte) {
		data := append([]byte{0, 0, 0, 0}, b...)
		typ := netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK << 8)
		if packet {
			attr, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: logPayload, Data: b[:min(len(b), 1000)]}})
			require.NoError(t, err)
			data, typ = append([]byte{0, 0, 0, 0}, attr...), logPacket
		}
		m := netlink.Message{Header: netlink.Header{Type: typ}, Data: data}
		for _, read := range []func(netlink.Message) (Heard, bool){readBegun, readRefused} {
			if h, ok := read(m); ok && !(h.Orig.From.IsValid() && h.Orig.To.IsValid() && h.Reply.From.IsValid()) {
				t.Fatal(errors.New("ends without addresses"))
			}
		}
	})
}
