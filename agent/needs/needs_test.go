package needs

import (
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFind(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"etc/resolv.conf":                                  "# nameserver 10.9.9.9\nsearch 10.9.9.8\nnameserver 10.0.0.53\nnameserver fd00::53%eth0\nnameserver 127.0.0.53\nnameserver\n",
		"run/systemd/resolve/resolv.conf":                  "nameserver 10.0.0.54\n",
		"etc/systemd/resolved.conf":                        "[Resolve]\nDNS=10.0.0.55#dns.example 10.0.0.56:5353 [fd00::56]:53\nDNSSEC=10.9.9.7\n",
		"etc/systemd/timesyncd.conf.d/x.conf":              "[Time]\nNTP=10.0.0.123 ntp.example\n",
		"etc/chrony/chrony.conf":                           "server 10.0.0.124 iburst\nallow 10.9.0.0/16\n",
		"etc/environment":                                  "https_proxy=\"http://me:secret@10.0.0.80:3128/\"\nno_proxy=10.9.9.6\n",
		"etc/docker/daemon.json":                           `{"registry-mirrors": ["https://10.0.0.90:5000"], "bip": "169.254.1.1"}`,
		"etc/containerd/certs.d/mirror.example/hosts.toml": "server = \"https://mirror\"\n[host.\"http://10.0.0.91:5000\"]\n",
	} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, path), []byte(text), 0o644))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(root, "etc/containers"), 0o755))
	require.NoError(t, syscall.Mkfifo(filepath.Join(root, "etc/containers/registries.conf"), 0o600), "it must not hang")
	found := map[string]string{}
	for _, x := range Find(Config{Root: root, Gateways: []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("fe80::1")}, Hubs: []netip.Addr{netip.MustParseAddr("::ffff:203.0.113.1")},
		Proxy:  &url.URL{Scheme: "http", User: url.UserPassword("me", "secret"), Host: "10.0.0.81:3128"},
		Getenv: func(k string) string { return map[string]string{"HTTPS_PROXY": "http://[fd00::82]:3128"}[k] }}) {
		found[x.Addr.String()] = x.What
	}
	require.Equal(t, map[string]string{
		"10.0.0.53": "resolver of /etc/resolv.conf", "fd00::53": "resolver of /etc/resolv.conf", "10.0.0.54": "resolver of /run/systemd/resolve/resolv.conf",
		"10.0.0.55": "resolver of /etc/systemd/resolved.conf", "10.0.0.56": "resolver of /etc/systemd/resolved.conf", "fd00::56": "resolver of /etc/systemd/resolved.conf",
		"10.0.0.123": "time server of /etc/systemd/timesyncd.conf.d/x.conf", "10.0.0.124": "time server of /etc/chrony/chrony.conf",
		"10.0.0.80": "proxy of /etc/environment", "10.0.0.90": "registry of /etc/docker/daemon.json", "10.0.0.91": "registry of /etc/containerd/certs.d/mirror.example/hosts.toml",
		"192.168.1.1": "default gateway", "203.0.113.1": "address of a hub", "10.0.0.81": "proxy of the agent", "fd00::82": "proxy of HTTPS_PROXY",
	}, found)
	require.Empty(t, Find(Config{Root: t.TempDir()}))
}
