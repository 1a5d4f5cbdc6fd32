package service

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// exposed are services that are met at addresses of the node's own on its two LANs, at their ports and 8000 more.
func exposed(l []Service) []Service {
	l = slices.Clone(l)
	for i := range l {
		for _, a := range [][2]string{{"192.168.5.1", "fd10:5::1"}, {"172.16.9.1", "fd10:9::1"}} {
			l[i].Expose = append(l[i].Expose, netip.AddrPortFrom(netip.MustParseAddr(a[second(l[i].VIP.Is6())]), l[i].Port+8000))
		}
	}
	return l
}

// door of the node's own to whoever asks from a LAN, at a service's port.
func doorOf(from string, v6 bool, port int) string {
	a := map[string][2]string{"lan": {"192.168.5.1", "fd10:5::1"}, "far": {"172.16.9.1", "fd10:9::1"}}[from]
	return net.JoinHostPort(a[second(v6)], fmt.Sprint(port+8000))
}

// Who comes to an address of the node's own is led to a service, and seen by a backend where its answer comes by the node.
func TestExposed(t *testing.T) {
	w := newWorld(t)
	w.n.NoBridgeFilter()
	w.config.Inside = []string{"pods0"}
	w.serve("a", "pl", "lan", "n")
	for _, to := range []string{"a", "pl", "lan", "n"} {
		w.set(exposed(services(64, to)))
		for _, from := range []string{"far", "lan"} {
			for _, v6 := range []bool{false, true} {
				want := addrs[from][second(v6)]
				switch {
				case to == "a" && from == "far": // whom peers do not know
					want = addrs["n"][second(v6)]
				case to == "lan":
					want = []string{"192.168.5.1", "fd10:5::1"}[second(v6)]
				}
				for _, network := range []string{"tcp", "udp"} {
					for _, port := range []int{80, 81} {
						name, seen, err := ask(w.host(from), network, doorOf(from, v6, port))
						require.NoError(t, err, "%s to %s by %s, IPv6 %v", from, to, network, v6)
						require.Equal(t, to, name)
						require.Equal(t, want, seen, "%s to %s", from, to)
					}
				}
			}
		}
	}
	require.Contains(t, w.n.Sh("nft list table inet causeway-service"), "192.168.5.1 . tcp . 8080")

	// What is not exposed, and the same ports at another address, are the host's own; what is taken back is, too.
	_, _, err := ask(w.far, "tcp", "172.16.9.1:8079")
	require.Error(t, err)
	_, _, err = ask(w.far, "tcp", "192.168.5.1:8080") // an address of the node all the same
	require.NoError(t, err)
	w.set(services(64, "a"))
	name, _, err := ask(w.far, "tcp", doorOf("far", false, 80))
	require.NoError(t, err)
	require.Equal(t, "n", name, "a program of the host listens there")
	w.set(exposed(services(64)))
	name, _, err = ask(w.far, "tcp", doorOf("far", false, 80))
	require.NoError(t, err)
	require.Equal(t, "n", name, "nobody serves")
}

// A dead backend's connections are reset, those that only begin go elsewhere, and flows of others with the same port are left alone.
func TestExposedSwitch(t *testing.T) {
	w := newWorld(t)
	w.serve("a", "b")
	w.set(exposed(services(64, "a")))
	open, err := dial(w.far, "tcp", doorOf("far", false, 80))
	require.NoError(t, err)
	defer open.Close()
	name, _, err := answer(open)
	require.NoError(t, err)
	require.Equal(t, "a", name)
	idle, err := dial(w.far, "tcp", doorOf("far", true, 80))
	require.NoError(t, err)
	defer idle.Close()
	socket, err := dial(w.far, "udp", doorOf("far", false, 80))
	require.NoError(t, err)
	defer socket.Close()
	name, _, err = answer(socket)
	require.NoError(t, err)
	require.Equal(t, "a", name)

	w.on(func() error {
		flows, err := w.table.Flows(t.Context())
		require.Equal(t, 1, flows[Of{netip.MustParseAddr(vip4), tcp, 80, backend("a", false)}].Open, "%v", flows)
		return err
	})
	silent(w.a)
	w.set(exposed(services(64, "b")))
	w.on(func() error {
		n, err := w.table.Release(t.Context(), backends("a"))
		require.Equal(t, 1, n, "the UDP flow")
		return err
	})
	w.set(exposed(services(64, "b")), backends("a")...)
	w.on(func() error {
		_, err := w.table.Prod(t.Context(), backends("a"))
		return err
	})
	for _, c := range []net.Conn{open, idle} {
		_, _, err := answer(c)
		require.ErrorContains(t, err, "connection reset by peer")
	}
	name, _, err = answer(socket)
	require.NoError(t, err)
	require.Equal(t, "b", name)
	name, _, err = ask(w.far, "tcp", doorOf("far", false, 80))
	require.NoError(t, err)
	require.Equal(t, "b", name)
}

func TestExposedIsChecked(t *testing.T) {
	s := Service{VIP: netip.MustParseAddr(vip4), Proto: tcp, Port: 80}
	for at, want := range map[string]string{"127.0.0.1:80": "no plain address", "0.0.0.0:80": "no plain address", "192.0.2.1:0": "without a port", "[2001:db8::1]:80": "another family"} {
		x := s
		x.Expose = []netip.AddrPort{netip.MustParseAddrPort(at)}
		_, err := newLive([]Service{x}, nil, live{})
		require.ErrorContains(t, err, want, at)
	}
	a, b := s, s
	b.Port = 81
	a.Expose, b.Expose = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}
	_, err := newLive([]Service{a, b}, nil, live{})
	require.ErrorContains(t, err, "exposed at 192.0.2.1:80, where another one is")
}
