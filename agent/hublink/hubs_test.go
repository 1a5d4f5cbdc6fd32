package hublink

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/agent/config"
	"causeway/agent/identity"
)

// An address at which a hub answered outlives its record, and DNS, until the hub answers at a
// new one.
func TestBesideDNS(t *testing.T) {
	l := func(s ...string) (out []netip.Addr) {
		for _, x := range s {
			out = append(out, netip.MustParseAddr(x))
		}
		return out
	}
	const a, b, c = "192.0.2.1", "192.0.2.2", "192.0.2.3"
	for _, x := range []struct {
		name              string
		now, before, want []netip.Addr
		answers           string
	}{
		{"the first", l(a), nil, l(a), ""},
		{"the same", l(a), l(a), l(a), a},
		{"DNS is down", nil, l(b, a), l(b, a), ""},
		{"a wrong one", l(c), l(a), l(c, a), ""},
		{"it answers where it was", l(c), l(a), l(c, a), a},
		{"it moved", l(c), l(a), l(c), c},
	} {
		require.Equal(t, x.want, beside(x.now, x.before, func(y netip.Addr) bool { return y.String() == x.answers }), x.name)
	}
}

// Names lead to the addresses at which hubs answered when DNS fails, is slow, or knows no better,
// over restarts too; they are few.
func TestNamesRemember(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	store, err := identity.Create(dir)
	require.NoError(t, err)
	defer store.Close()
	addr := netip.MustParseAddr
	down := func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("DNS is down") }
	n := NewNames(store, down, zerolog.Nop())
	_, err = n.Lookup(t.Context(), "hub.example")
	require.ErrorContains(t, err, "DNS is down")
	n.answered("hub.example", addr("192.0.2.1"))
	n = NewNames(store, down, zerolog.Nop()) // the next run
	got, err := n.Lookup(t.Context(), "hub.example")
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{addr("192.0.2.1")}, got)

	n.ask = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{addr("192.0.2.7"), addr("192.0.2.1")}, nil
	}
	got, err = n.Lookup(t.Context(), "hub.example")
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{addr("192.0.2.7"), addr("192.0.2.1")}, got)

	synctest.Test(t, func(t *testing.T) {
		n.ask = func(ctx context.Context, _ string) ([]netip.Addr, error) { <-ctx.Done(); return nil, ctx.Err() }
		begun := time.Now()
		got, err = n.Lookup(t.Context(), "hub.example")
		require.NoError(t, err)
		require.Equal(t, []netip.Addr{addr("192.0.2.1")}, got)
		require.Equal(t, dnsGrace, time.Since(begun))
	})
	for i := range 10 {
		n.answered("hub.example", netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
	}
	require.Len(t, n.of("hub.example"), addrsPerName)
	require.Equal(t, addr("198.51.100.9"), n.of("hub.example")[0])
	known, err := store.Addrs()
	require.NoError(t, err)
	require.Equal(t, n.known, known)
}

// What the join reached the hub with is used where the service has nothing of its own, and said.
func TestJoinedProxy(t *testing.T) {
	for _, k := range proxySettings {
		t.Setenv(k, "")
	}
	j := &identity.Joined{Proxy: "http://me:secret@192.0.2.8:3128", From: "HTTPS_PROXY of the join's environment", CA: "SSL_CERT_FILE=/srv/ca.pem", Interface: "none0"}
	u := &url.URL{Scheme: "https", Host: "hub:443"}
	choose := ProxyFor(config.Default(), j)
	first, err := choose(u)
	require.NoError(t, err)
	require.Equal(t, "192.0.2.8:3128", first.Host)
	second, err := choose(u)
	require.NoError(t, err)
	require.Nil(t, second, "and then the direct way")
	said := Lacks(config.Default(), j)
	for _, want := range []string{"the proxy http://me:xxxxx@192.0.2.8:3128", "proxy: http://", "Environment=SSL_CERT_FILE=/srv/ca.pem", "interface none0"} {
		require.Contains(t, said, want)
	}
	require.NotContains(t, said, "secret")

	own := config.Default()
	own.Proxy = &url.URL{Scheme: "http", Host: "own:1"}
	for range 2 {
		got, err := ProxyFor(own, j)(u)
		require.NoError(t, err)
		require.Equal(t, "own:1", got.Host)
	}
	require.Empty(t, Lacks(own, &identity.Joined{Proxy: j.Proxy}))
	require.Empty(t, Lacks(own, nil))
	t.Setenv("HTTPS_PROXY", "http://own:2")
	require.Empty(t, Lacks(config.Default(), &identity.Joined{Proxy: j.Proxy}))
}

// Without the tunnel's device nothing is dialled through another one.
func TestDialWithoutDevice(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = Dialer(func() string { return "" })(t.Context(), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddrPort(l.Addr().String()))
	require.ErrorIs(t, err, errNoDevice)
}
