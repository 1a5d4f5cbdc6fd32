package look

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// prove begins a trial.
func (w *wall) prove(t *testing.T, q protocol.ProveWatch) (end func()) {
	t.Helper()
	require.NoError(t, q.Check())
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- w.node.Do(func() error {
			return w.look.Prove(ctx, q, func(b []byte) error { _, err := w.tun.Write(b); return err }, func() { close(ready) })
		})
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

func (w *wall) proveSend(t *testing.T, secret uint32) (out []protocol.ProveSent) {
	t.Helper()
	require.NoError(t, w.node.Do(func() (err error) { out, err = w.look.ProveSend(t.Context(), secret, toAll); return err }))
	return out
}

func (w *wall) proveSeen(t *testing.T, secret uint32) (out protocol.ProveSeens) {
	t.Helper()
	require.NoError(t, w.node.Do(func() (err error) { out, err = w.look.ProveSeen(t.Context(), secret); return err }))
	return out
}

// provePackets are of all protocols and families, as the host's own and as a pod's.
func provePackets() (out []protocol.ProvePacket) {
	token := uint32(0xfffffffe) // SYNs are answered with the next number
	for _, proto := range []protocol.Proto{protocol.ProtoTCP, protocol.ProtoUDP, protocol.ProtoICMP} {
		for _, ends := range [][3]string{{"198.18.0.2", "", "10.2.0.9"}, {"fd63:7761:7900::2", "", "fd10:2::9"}, {"", "10.1.0.11", "10.2.0.9"}, {"", "fd10:1::11", "fd10:2::9"}} {
			p := protocol.ProvePacket{Token: token, Behind: token - 1, Proto: proto, To: netip.MustParseAddr(ends[2])}
			if proto != protocol.ProtoICMP {
				p.Port = 5432
			}
			if ends[0] != "" {
				p.From = netip.MustParseAddr(ends[0])
			} else {
				p.Among = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr(ends[1])}[1:]
			}
			token -= 2
			out = append(out, p)
		}
	}
	return out
}

// Packets of a trial go through what the host's kernel has, or past it, and are counted where they are seen.
func TestProveSends(t *testing.T) {
	t.Parallel()
	w := newWall(t)
	state := func() string {
		return w.node.Sh("nft -s list ruleset; tc qdisc show | grep -v clsact; tc filter show dev cw0 ingress 2>&1 || :")
	}
	before := state()
	packets := provePackets()
	const secret = 77
	end := w.prove(t, protocol.ProveWatch{Secret: secret, Send: packets})
	sent := w.proveSend(t, secret)
	got := w.proveSeen(t, secret)
	require.True(t, got.Counts)
	for i, s := range sent {
		require.Empty(t, s.Error, "%+v", packets[i])
		require.True(t, s.Sent && s.Behind, "%+v", s)
		require.Equal(t, !packets[i].From.IsValid(), s.Forward)
		require.Equal(t, protocol.ProveSeen{Token: packets[i].Token, Began: true, Entered: true}, got.Seen[i], "%+v", packets[i])
	}
	came := w.read(t, 2*len(packets))
	for _, p := range packets {
		for _, token := range []uint32{p.Token, p.Behind} {
			require.True(t, has(came, token), "%+v: %x", p, token)
		}
	}
	_, err := w.look.ProveSend(t.Context(), secret, toAll)
	require.ErrorContains(t, err, "were sent")
	_, err = w.look.ProveSend(t.Context(), secret+1, toAll)
	require.ErrorContains(t, err, "no such trial")
	end()
	require.Equal(t, before, state(), "something stays")

	// A wall of the host's: what is past it goes on.
	w.node.Sh("nft add table inet f; nft 'add chain inet f c { type filter hook forward priority -160; }'; nft add rule inet f c oifname cw0 reject with tcp reset; nft add rule inet f c oifname cw0 reject; " +
		"nft 'add chain inet f o { type filter hook output priority -50; }'; nft add rule inet f o meta l4proto tcp oifname cw0 reject with tcp reset; nft add rule inet f o oifname cw0 reject with icmpx admin-prohibited")
	end = w.prove(t, protocol.ProveWatch{Secret: secret, Send: packets})
	for _, s := range w.proveSend(t, secret) {
		require.Empty(t, s.Error, "%+v", s)
		require.True(t, s.Behind)
	}
	for i, s := range w.proveSeen(t, secret).Seen {
		require.Equal(t, protocol.ProveSeen{Token: packets[i].Token, Began: true}, s, "%+v", packets[i])
	}
	came = w.read(t, len(packets))
	for _, p := range packets {
		require.False(t, has(came, p.Token))
		require.True(t, has(came, p.Behind))
	}
	end()
	w.node.Sh("nft delete table inet f")

	// What leaves by another link is stopped there.
	w.node.Sh("ip route add 203.0.113.0/24 via 192.168.1.50")
	capture, err := w.lan.Capture("eth0", "host 203.0.113.9")
	require.NoError(t, err)
	packets[2].To = netip.MustParseAddr("203.0.113.9")
	end = w.prove(t, protocol.ProveWatch{Secret: secret, Send: packets[2:3]})
	w.proveSend(t, secret)
	require.Equal(t, protocol.ProveSeen{Token: packets[2].Token, Began: true, Elsewhere: true}, w.proveSeen(t, secret).Seen[0])
	end()
	require.NoError(t, capture.Stop())
	seen, err := os.ReadFile(capture.File)
	require.NoError(t, err)
	require.False(t, has([][]byte{seen}, packets[2].Token))
}

// What comes out of the tunnel is counted before and past the wall, and goes nowhere.
func TestProveReceives(t *testing.T) {
	t.Parallel()
	w := newWall(t)
	var packets []protocol.ProvePacket
	from := map[bool]netip.Addr{true: netip.MustParseAddr("10.2.0.9"), false: netip.MustParseAddr("fd10:2::9")}
	for _, p := range provePackets() {
		p.To = map[bool]netip.Addr{true: netip.MustParseAddr("10.1.0.11"), false: netip.MustParseAddr("fd10:1::11")}[p.To.Is4()]
		p.From, p.Among = netip.Addr{}, nil
		packets = append(packets, p)
	}
	const secret = 78
	capture, err := w.pod.Capture("eth0", "host 10.2.0.9 or host fd10:2::9")
	require.NoError(t, err)
	inject := func() {
		for _, p := range packets {
			for _, token := range []uint32{p.Token, p.Behind} {
				_, err := w.tun.Write(provePacket(p, from[p.To.Is4()], token, secret))
				require.NoError(t, err)
			}
			_, err := w.tun.Write(provePacket(p, from[p.To.Is4()], p.Token^0x80, secret)) // somebody else's
			require.NoError(t, err)
		}
	}
	end := w.prove(t, protocol.ProveWatch{Secret: secret, Receive: packets})
	for _, s := range w.proveSeen(t, secret).Seen {
		require.False(t, s.Came || s.Passed || s.BehindCame || s.BehindPassed)
	}
	inject()
	for i, s := range w.proveSeen(t, secret).Seen {
		require.Equal(t, protocol.ProveSeen{Token: packets[i].Token, Came: true, Passed: true, BehindCame: true, BehindPassed: true}, s)
	}
	end()

	w.node.Sh("nft add table inet f; nft 'add chain inet f c { type filter hook prerouting priority -140; }'; nft add rule inet f c iifname cw0 meta l4proto tcp reject with tcp reset; nft add rule inet f c iifname cw0 reject with icmpx admin-prohibited")
	w.read(t, 0)
	end = w.prove(t, protocol.ProveWatch{Secret: secret, Receive: packets})
	inject()
	for i, s := range w.proveSeen(t, secret).Seen {
		require.Equal(t, protocol.ProveSeen{Token: packets[i].Token, Came: true, BehindCame: true}, s)
	}
	answers := w.read(t, 1)
	for _, p := range packets {
		if p.Proto == protocol.ProtoTCP {
			require.False(t, has(answers, p.Token+1), "a packet of the trial is answered")
		} else {
			require.False(t, has(answers, p.Token), "a packet of the trial is answered")
		}
	}
	end()
	require.NoError(t, capture.Stop())
	seen, err := os.ReadFile(capture.File)
	require.NoError(t, err)
	for _, p := range packets {
		require.False(t, has([][]byte{seen}, p.Token) || has([][]byte{seen}, p.Behind), "a pod gets a packet of a trial")
	}
	require.True(t, has([][]byte{seen}, packets[2].Token^0x80), "the capture sees what is somebody else's")
}

func toAll(netip.Addr) bool { return true }

// read takes at least n packets out of the TUN device, and all that are there.
func (w *wall) read(t *testing.T, n int) (out [][]byte) {
	t.Helper()
	end := time.Now().Add(5 * time.Second)
	for b := make([]byte, 4096); ; {
		w.tun.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		k, err := w.tun.Read(b)
		if err == nil {
			out = append(out, bytes.Clone(b[:k]))
		} else if len(out) >= n || time.Now().After(end) {
			require.GreaterOrEqual(t, len(out), n)
			return out
		}
	}
}

func has(l [][]byte, token uint32) bool {
	for _, b := range l {
		if bytes.Contains(b, binary.BigEndian.AppendUint32(nil, token)) {
			return true
		}
	}
	return false
}
