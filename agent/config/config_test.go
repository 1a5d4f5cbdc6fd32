package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	c, err := Parse("a.yaml", []byte(`
routes: [10.1.0.0/24, "fd00:1::/64"]
accept:
  - 10.0.0.0/8
labels: {rack: r1}
tunnel:
  interface: cw7
  listen_port: 51821
  mtu: 1300
  engine: inline
  queues: 2
  uapi: true
  private_candidates: off
proxy: http://proxy.example:3128
debug:
  socket: /run/x.sock
`))
	require.NoError(t, err)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}, c.Routes)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, c.Accept)
	require.Equal(t, Tunnel{"cw7", 51821, 1300, "inline", 2, true, "off"}, c.Tunnel)
	require.Equal(t, "proxy.example:3128", c.Proxy.Host)
	require.Equal(t, "/run/x.sock", c.Debug.Socket)
	require.Equal(t, map[string]string{"rack": "r1"}, c.Labels)
}

func TestParseEmptyIsDefault(t *testing.T) {
	for _, s := range []string{"", "\n", "# nothing\n", "routes:\n", "tunnel: {}\n"} {
		c, err := Parse("a.yaml", []byte(s))
		require.NoError(t, err, "%q", s)
		require.Equal(t, Default().Accept, c.Accept)
		require.Equal(t, Default().Tunnel, c.Tunnel)
	}
	c, err := Parse("a.yaml", []byte("accept: []\n"))
	require.NoError(t, err)
	require.Empty(t, c.Accept)
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"unknown key", "routes: []\nacept: []\n", `config a.yaml:2:1: unknown field "acept"; known keys:`},
		{"unknown tunnel key", "tunnel:\n  mtuu: 3\n", `config a.yaml:2:3: unknown field "mtuu"`},
		{"bad CIDR", "routes:\n  - 10.1.0.0/24\n  - 10.1.0.0/33\n", `config a.yaml:3:5: routes[1]: "10.1.0.0/33" is no CIDR; write for example`},
		{"host bits", "accept: [10.1.2.3/8]\n", "config a.yaml:1:10: accept[0]: \"10.1.2.3/8\" has host bits set; did you mean 10.0.0.0/8?"},
		{"mapped", "accept: [\"::ffff:10.0.0.0/104\"]\n", "write it as IPv4"},
		{"twice", "routes: [10.1.0.0/24, 10.1.0.0/24]\n", "config a.yaml:1:23: routes[1]: 10.1.0.0/24 is there twice"},
		{"default route", "routes: [0.0.0.0/0]\n", "a default route cannot be announced"},
		{"port", "tunnel:\n  listen_port: 70000\n", "config a.yaml:2:16: tunnel.listen_port: 70000 is no UDP port"},
		{"mtu", "tunnel: {mtu: 500}\n", "tunnel.mtu: 500 is not between 1280"},
		{"engine", "tunnel: {engine: kernel}\n", "use inline or wireguard-go"},
		{"queues", "tunnel: {queues: 17}\n", "tunnel.queues: 17 is not between 1 and 16"},
		{"interface", "tunnel: {interface: a-very-long-interface}\n", "is no interface name"},
		{"proxy", "proxy: socks5://u:secret@p:1\n", "proxy: not a proxy's URL"},
		{"socket", "debug: {socket: agent.sock}\n", "no absolute path"},
		{"metrics", "debug: {metrics: \":9464\"}\n", "no address with a port"},
		{"allow", "debug: {allow: [logs, everything]}\n", "cannot be allowed; there are logs, payload, pprof"},
		{"deny", "debug: {deny: [status]}\n", "cannot be denied; there are bench, capture, prove"},
		{"label", "labels: {\"a b\": c}\n", "label \"a b\": a key has 1 to 256 characters"},
		{"type", "tunnel: {mtu: big}\n", "config a.yaml:1:15:"},
		{"list for map", "tunnel: [1]\n", "config a.yaml:1:9:"},
		{"not yaml", "routes: [\n", "config a.yaml:"},
		{"tabs", "tunnel:\n\tmtu: 3\n", "config a.yaml:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("a.yaml", []byte(c.in))
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

func TestLoad(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"))
	require.ErrorContains(t, err, "no such file or directory; check --config")
	p := filepath.Join(t.TempDir(), "a.yaml")
	require.NoError(t, os.WriteFile(p, []byte("routes: [10.1.0.0/24]\n"), 0o600))
	c, err := Load(p)
	require.NoError(t, err)
	require.Len(t, c.Routes, 1)
	_, err = Load(t.TempDir())
	require.Error(t, err)
	require.NotContains(t, err.Error(), "\n")
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("routes: [10.1.0.0/24]\ntunnel: {mtu: 1300}\n"))
	f.Add([]byte("routes: !0000000000000000000000 00000000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("a.yaml", b)
		if err == nil && (c.Tunnel.MTU != 0 && c.Tunnel.MTU < MinMTU || c.Tunnel.Interface == "") {
			t.Fatal("accepted an impossible tunnel")
		}
	})
}
