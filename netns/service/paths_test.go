package service

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/lab"
)

// New connections are spread by slots, and a sticky service gives a client one backend.
func TestSpread(t *testing.T) {
	w := newWorld(t)
	w.serve("a", "b")
	l := services(64, "a", "a", "a", "b")
	big := services(256, "a", "b", "b", "b")
	for i := range big {
		big[i].Port += 10
	}
	w.set(append(l, big...))
	n := 300
	for _, v6 := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			for port, want := range map[int]float64{80: 0.75, 90: 0.25} {
				got := 0
				for range n {
					name, seen, err := ask(w.pc, network, at(v6, port))
					require.NoError(t, err)
					require.Equal(t, addrs["pc"][second(v6)], seen, "the client's own address arrives")
					if name == "a" {
						got++
					}
				}
				sigma := math.Sqrt(float64(n) * want * (1 - want))
				require.InDelta(t, want*float64(n), got, 3.5*sigma, "%s %v %d", network, v6, port)
				t.Logf("%s, IPv6 %v, port %d: %d of %d, %.0f expected, sigma %.1f", network, v6, port, got, n, want*float64(n), sigma)
			}
			for _, port := range []int{81, 91} {
				first, _, err := ask(w.pc, network, at(v6, port))
				require.NoError(t, err)
				for range 20 {
					name, _, err := ask(w.pc, network, at(v6, port))
					require.NoError(t, err)
					require.Equal(t, first, name)
				}
			}
		}
	}
	require.Contains(t, w.n.Sh("nft list table inet causeway-service"), "10.2.0.11 . 8080") // which nft aborts at for some sets
}

// Which slot a client has at a sticky service is the same at every node of every version: it depends on its address alone.
func TestStickySlots(t *testing.T) {
	w := newWorld(t)
	var l []Service
	for _, n := range []int{64, 256} {
		for _, v6 := range []bool{false, true} {
			s := Service{netip.MustParseAddr([]string{vip4, vip6}[second(v6)]), udp, uint16(n), true, nil, nil}
			for i := range n {
				s.Slots = append(s.Slots, netip.AddrPortFrom(backend("a", v6).Addr(), uint16(1000+i)))
			}
			l = append(l, s)
		}
	}
	w.set(l)
	got := map[string]uint16{}
	for _, s := range l {
		for _, from := range []string{"pc", "pl", "lan", "n"} {
			c, err := dial(w.host(from), "udp", netip.AddrPortFrom(s.VIP, s.Port).String())
			require.NoError(t, err)
			_, err = c.Write([]byte("x"))
			require.NoError(t, err)
			require.NoError(t, c.Close())
			var flows map[Of]Count
			w.on(func() (err error) { flows, err = w.table.Flows(t.Context()); return err })
			maps.DeleteFunc(flows, func(_ Of, n Count) bool { return n.Open+n.Unreplied == 0 }) // what is over and only counted
			require.Len(t, flows, 1)
			for of, n := range flows {
				require.Equal(t, 1, n.Unreplied)
				got[from+" "+netip.AddrPortFrom(s.VIP, s.Port).String()] = of.Backend.Port() - 1000
			}
			var n int
			w.on(func() (err error) {
				n, err = w.table.Release(t.Context(), []Backend{{udp, netip.AddrPortFrom(backend("a", s.VIP.Is6()).Addr(), got[from+" "+netip.AddrPortFrom(s.VIP, s.Port).String()]+1000)}})
				return err
			})
			require.Equal(t, 1, n)
		}
	}
	require.Equal(t, map[string]uint16{
		"pc 198.19.0.1:64": 18, "pl 198.19.0.1:64": 0, "lan 198.19.0.1:64": 13, "n 198.19.0.1:64": 45,
		"pc 198.19.0.1:256": 75, "pl 198.19.0.1:256": 0, "lan 198.19.0.1:256": 52, "n 198.19.0.1:256": 183,
		"pc [fd63:7761:7900::8:1]:64": 24, "pl [fd63:7761:7900::8:1]:64": 2, "lan [fd63:7761:7900::8:1]:64": 27, "n [fd63:7761:7900::8:1]:64": 55,
		"pc [fd63:7761:7900::8:1]:256": 98, "pl [fd63:7761:7900::8:1]:256": 11, "lan [fd63:7761:7900::8:1]:256": 111, "n [fd63:7761:7900::8:1]:256": 221,
	}, got)
}

// What finds no backend is refused at once, and nothing of it leaves.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	w.serve("a")
	l := services(64)
	for _, v6 := range []bool{false, true} {
		l = append(l, services(64, "a")[4*second(v6)])
		l[len(l)-1].Port = 90
	}
	w.set(l)
	for _, v6 := range []bool{false, true} {
		left := sniff(t, w.r, "cw0")
		for _, from := range []string{"pc", "lan", "far", "n"} {
			for _, to := range []string{at(v6, 80), at(v6, 81), at(v6, 7), []string{"198.19.7.7:80", "[fd63:7761:7900::8:77]:80"}[second(v6)]} {
				start := time.Now()
				_, _, err := ask(w.host(from), "tcp", to)
				require.ErrorIs(t, err, syscall.ECONNREFUSED, "%s %s", from, to)
				_, _, err = ask(w.host(from), "udp", to)
				require.True(t, refused(err), "%s %s: %v", from, to, err)
				require.Less(t, time.Since(start), time.Second)
			}
			name, _, err := ask(w.host(from), "tcp", at(v6, 90))
			require.NoError(t, err)
			require.Equal(t, "a", name)
			_, _, err = ask(w.host(from), "udp", at(v6, 90))
			require.True(t, refused(err), "%v", err)
		}
		passed := left()
		require.NotEmpty(t, passed)
		for _, p := range passed {
			require.False(t, host{ranges: w.config.Range}.inRange(p.to), "a packet to %s left", p.to)
		}
	}
}

// refused: a program of the host may be told by what sends.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPERM)
}

// second is 1 for the second family.
func second(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// Whose address a backend sees: the client's own, where its answer comes by the host. Where bridges hand frames to netfilter, a
// pod that is its own backend needs a port in hairpin mode, as with all that translates: what is translated there is bridged.
func TestSources(t *testing.T) {
	for _, bridged := range []bool{false, true} {
		t.Run(fmt.Sprintf("bridged %v", bridged), func(t *testing.T) { sources(t, bridged) })
	}
}

func sources(t *testing.T, bridged bool) {
	w := newWorld(t)
	if bridged {
		w.n.Sh("ip -o link show master pods0 | while IFS=': @' read -r _ p _; do ip link set $p type bridge_slave hairpin on; done; ls /proc/sys/net/bridge/bridge-nf-call-iptables >/dev/null")
	} else {
		w.n.NoBridgeFilter()
	}
	w.serve("a", "pl", "lan", "n")
	gateway := func(client, backend string, v6 bool) string {
		i := second(v6)
		switch {
		case slices.Contains([]string{"pc", "pl"}, client) && backend == "pl", client == "n" && backend == "pl":
			return []string{"10.1.0.1", "fd10:1::1"}[i]
		case slices.Contains([]string{"lan", "n"}, client) && backend == "lan":
			return []string{"192.168.5.1", "fd10:5::1"}[i]
		case client == "far" && backend == "a":
			return addrs["n"][i]
		}
		return addrs[client][i]
	}
	for _, to := range []string{"a", "pl", "lan", "n"} {
		w.set(services(64, to))
		for _, from := range []string{"pc", "pl", "lan", "far", "n"} {
			for _, v6 := range []bool{false, true} {
				for _, network := range []string{"tcp", "udp"} {
					name, seen, err := ask(w.host(from), network, at(v6, 80))
					require.NoError(t, err, "%s to %s by %s, IPv6 %v", from, to, network, v6)
					require.Equal(t, to, name)
					require.Equal(t, gateway(from, to, v6), seen, "%s to %s", from, to)
				}
			}
		}
	}
	// And what goes there otherwise is as it was.
	for _, v6 := range []bool{false, true} {
		_, seen, err := ask(w.pc, "tcp", backend("pl", v6).String())
		require.NoError(t, err)
		require.Equal(t, addrs["pc"][second(v6)], seen)
		_, seen, err = ask(w.n, "tcp", backend("lan", v6).String())
		require.NoError(t, err)
		require.Equal(t, []string{"192.168.5.1", "fd10:5::1"}[second(v6)], seen)
	}
}

// packet is one that was seen: its ends and what TCP or UDP carry.
type packet struct {
	from, to netip.Addr
	payload  []byte
}

// sniff gathers TCP and UDP that pass an interface of a host, until the function it returns is called.
func sniff(t *testing.T, h *lab.Host, dev string) func() []packet {
	t.Helper()
	fd := 0
	require.NoError(t, h.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}), Ifindex: i.Index})
	}))
	return func() (out []packet) {
		defer unix.Close(fd)
		for b := make([]byte, 65536); ; {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				require.ErrorIs(t, err, unix.EAGAIN)
				return out
			}
			var p packet
			var proto byte
			switch x := b[:n]; {
			case n >= 20 && x[0] == 0x45:
				p.from, p.to = netip.AddrFrom4([4]byte(x[12:])), netip.AddrFrom4([4]byte(x[16:]))
				proto, p.payload = x[9], slices.Clone(x[20:min(n, int(binary.BigEndian.Uint16(x[2:])))])
			case n >= 40 && x[0]>>4 == 6:
				p.from, p.to = netip.AddrFrom16([16]byte(x[8:])), netip.AddrFrom16([16]byte(x[24:]))
				proto, p.payload = x[6], slices.Clone(x[40:])
			}
			switch {
			case proto == tcp && len(p.payload) >= 20:
				p.payload = p.payload[min(len(p.payload), int(p.payload[12]>>4)*4):]
				out = append(out, p)
			case proto == udp && len(p.payload) >= 8:
				p.payload = p.payload[8:]
				out = append(out, p)
			}
		}
	}
}
