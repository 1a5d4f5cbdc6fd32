package uapi

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/protocol"
)

func key(b byte) string { return strings.Repeat(hex.EncodeToString([]byte{b}), 32) }

func public(b byte) (k protocol.WireGuardPublicKey) {
	for i := range k {
		k[i] = b
	}
	return k
}

func parse(text string) (Request, error) { return Read(NewReader(strings.NewReader(text))) }

func set(t *testing.T, d *Device, text string) {
	t.Helper()
	q, err := parse("set=1\n" + text + "\n")
	require.NoError(t, err)
	d.Apply(q.Set)
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestSet(t *testing.T) {
	var d Device
	set(t, &d, "private_key="+key(0x40)+"\nlisten_port=51820\nfwmark=7\nreplace_peers=true\n"+
		"public_key="+key(1)+"\npreshared_key="+key(9)+"\nendpoint=192.0.2.1:5\npersistent_keepalive_interval=25\n"+
		"replace_allowed_ips=true\nallowed_ip=10.1.2.3/8\nallowed_ip=fd00::1/64\nprotocol_version=1\n"+
		"public_key="+key(2)+"\nendpoint=[fe80::1%eth0]:6\nallowed_ip=10.0.0.0/16\n")
	require.Equal(t, uint16(51820), d.ListenPort)
	require.Equal(t, uint32(7), d.Mark)
	require.Len(t, d.Peers, 2)
	require.Equal(t, Peer{Key: public(1), PresharedKey: [32]byte(public(9)), Endpoint: netip.MustParseAddrPort("192.0.2.1:5"),
		Keepalive: 25 * time.Second, AllowedIPs: prefixes("10.0.0.0/8", "fd00::/64")}, d.Peers[0])
	require.Equal(t, "[fe80::1%eth0]:6", d.Peers[1].Endpoint.String())

	// A prefix moves to the last peer that claims it.
	set(t, &d, "public_key="+key(2)+"\nallowed_ip=10.0.0.0/8\nallowed_ip=-10.0.0.0/16\nallowed_ip=-192.168.0.0/16\n")
	require.Equal(t, prefixes("fd00::/64"), d.Peers[0].AllowedIPs)
	require.Equal(t, prefixes("10.0.0.0/8"), d.Peers[1].AllowedIPs)

	set(t, &d, "public_key="+key(3)+"\nupdate_only=true\nallowed_ip=10.0.0.0/8\n")
	require.Len(t, d.Peers, 2, "update_only makes no peer")
	require.Equal(t, prefixes("10.0.0.0/8"), d.Peers[1].AllowedIPs)

	set(t, &d, "public_key="+key(1)+"\npreshared_key="+key(0)+"\npersistent_keepalive_interval=0\npublic_key="+key(2)+"\nremove=true\npublic_key="+key(8)+"\nremove=true\n")
	require.Len(t, d.Peers, 1)
	require.Zero(t, d.Peers[0].PresharedKey)
	require.Zero(t, d.Peers[0].Keepalive)

	// No peer has the device's own key.
	own := d.PrivateKey.Public()
	text := "public_key=" + hex.EncodeToString(own[:]) + "\nallowed_ip=fd00::/64\n"
	set(t, &d, text)
	require.Len(t, d.Peers, 1)
	require.Equal(t, prefixes("fd00::/64"), d.Peers[0].AllowedIPs)
	set(t, &d, "private_key="+key(0)+"\n"+text)
	require.Len(t, d.Peers, 2)
	set(t, &d, "private_key="+key(0x40)+"\n")
	require.Len(t, d.Peers, 1)
	set(t, &d, "replace_peers=true\n")
	require.Empty(t, d.Peers)
}

func TestWrongRequests(t *testing.T) {
	p := "public_key=" + key(1) + "\n"
	for _, c := range []struct {
		text  string
		errno unix.Errno
	}{
		{"", 0}, {"get=1\n", 0}, {"set=1\nlisten_port=1", 0}, // cut off
		{"get=2\n\n", unix.EINVAL}, {"hello\n\n", unix.EINVAL}, {"get=1\nlisten_port=1\n\n", unix.EINVAL},
		{"set=1\nlisten_port\n\n", unix.EINVAL}, {"set=1\nlisten_port=\n\n", unix.EINVAL}, {"set=1\nlisten_port=65536\n\n", unix.EINVAL},
		{"set=1\nlisten_port=-1\n\n", unix.EINVAL}, {"set=1\nlisten_port=+1\n\n", unix.EINVAL}, {"set=1\nfwmark=0x10\n\n", unix.EINVAL},
		{"set=1\nnonsense=1\n\n", unix.EINVAL}, {"set=1\nreplace_peers=false\n\n", unix.EINVAL},
		{"set=1\nprivate_key=00\n\n", unix.EINVAL}, {"set=1\nprivate_key=" + strings.Repeat("g", 64) + "\n\n", unix.EINVAL},
		{"set=1\nendpoint=1.2.3.4:5\n\n", unix.EINVAL}, {"set=1\n" + p + "listen_port=1\n\n", unix.EINVAL},
		{"set=1\n" + p + "endpoint=host:1\n\n", unix.EINVAL}, {"set=1\n" + p + "allowed_ip=10.0.0.0\n\n", unix.EINVAL},
		{"set=1\n" + p + "allowed_ip=10.0.0.0/33\n\n", unix.EINVAL}, {"set=1\n" + p + "allowed_ip=::ffff:10.0.0.0/104\n\n", unix.EINVAL},
		{"set=1\n" + p + "persistent_keepalive_interval=65536\n\n", unix.EINVAL},
		{"set=1\n" + p + "protocol_version=2\n\n", unix.EPROTONOSUPPORT}, {"set=1\n" + p + "remove=1\n\n", unix.EINVAL},
		{"set=1\n" + p + "endpoint=" + strings.Repeat("1", 600) + "\n\n", unix.EINVAL},
	} {
		_, err := parse(c.text)
		require.Error(t, err, "%q", c.text)
		var e *Error
		if c.errno == 0 {
			require.False(t, errors.As(err, &e), "%q: %v", c.text, err)
			continue
		}
		require.ErrorAs(t, err, &e, "%q", c.text)
		require.Equal(t, c.errno, errno(err), "%q", c.text)
		require.NotContains(t, err.Error(), "gggg", "a key's text is in no error")
	}
}

// lines goes on forever.
type lines struct{ n int }

func (l *lines) Read(b []byte) (int, error) {
	text := "allowed_ip=10.0.0.0/8\n"
	if l.n == 0 {
		text = "set=1\npublic_key=" + key(1) + "\nreplace_allowed_ips=true\n"
	}
	n := copy(b, text)
	if n < len(text) {
		return 0, io.ErrShortBuffer
	}
	l.n++
	return n, nil
}

func TestRequestIsBounded(t *testing.T) {
	_, err := Read(NewReader(&lines{}))
	require.Equal(t, unix.E2BIG, errno(err))
}

// FuzzRead: the socket is open to root alone, but what configures a tunnel
// has to be exact: whatever is accepted is shown again as it was understood,
// and the bounds hold.
func FuzzRead(f *testing.F) {
	f.Add("get=1\n\n")
	f.Add("set=1\nprivate_key=" + key(0x40) + "\nlisten_port=1\nfwmark=4294967295\nreplace_peers=true\n\n")
	f.Add("set=1\npublic_key=" + key(1) + "\npreshared_key=" + key(2) + "\nendpoint=[fe80::1%25]:6\nallowed_ip=::/0\nallowed_ip=-0.0.0.0/0\npersistent_keepalive_interval=off\n\n")
	f.Add("set=1\npublic_key=" + key(1) + "\nallowed_ip=10.0.0.0/8\npublic_key=" + key(2) + "\nupdate_only=true\nallowed_ip=10.0.0.0/8\npublic_key=" + key(1) + "\nremove=true\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		q, err := parse(text)
		if err != nil {
			return
		}
		var d, again Device
		d.Apply(q.Set)
		var b strings.Builder
		if err := d.Write(&b); err != nil {
			t.Fatal(err)
		}
		var setting strings.Builder
		for l := range strings.Lines(b.String()) {
			if k, _, _ := strings.Cut(l, "="); k != "rx_bytes" && k != "tx_bytes" && k != "last_handshake_time_sec" && k != "last_handshake_time_nsec" {
				setting.WriteString(l)
			}
		}
		r, err := parse("set=1\n" + setting.String() + "\n")
		if err != nil {
			t.Fatalf("%v\n%s", err, setting.String())
		}
		again.Apply(r.Set)
		require.Equal(t, d, again)
	})
}

// memory is a device that is nothing but its configuration.
type memory struct {
	mu  sync.Mutex
	dev Device
	err error
}

func (m *memory) Get() (Device, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dev.Clone(), m.err
}

func (m *memory) Set(c Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.dev.Apply(c)
	}
	return m.err
}

func TestServer(t *testing.T) {
	dir, m := t.TempDir(), &memory{}
	s, err := Listen(dir, "x", m)
	require.NoError(t, err)
	_, err = Listen(dir, "x", m)
	require.ErrorIs(t, err, unix.EADDRINUSE)
	path := filepath.Join(dir, "x.sock")
	fi, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()

	ask := func(text string) string {
		c, err := net.Dial("unix", path)
		require.NoError(t, err)
		defer c.Close()
		_, err = io.WriteString(c, text)
		require.NoError(t, err)
		require.NoError(t, c.(*net.UnixConn).CloseWrite())
		b, err := io.ReadAll(c)
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, "errno=0\n\nlisten_port=5\nerrno=0\n\n", ask("set=1\nlisten_port=5\n\nget=1\n\n"), "two requests of one connection")
	require.Equal(t, "errno=-22\n\n", ask("set=1\nlisten_port=x\n\nget=1\n\n"), "nothing is served behind an error")
	m.mu.Lock()
	m.err = unix.EPERM
	m.mu.Unlock()
	require.Equal(t, "errno=-1\n\n", ask("get=1\n\n"))
	require.Empty(t, ask("get=1\n"))
	// More that say nothing than are served at once do not keep it from ending.
	for range maxClients + 1 {
		c, err := net.Dial("unix", path)
		require.NoError(t, err)
		defer c.Close()
	}
	cancel()
	require.NoError(t, <-ended)
	require.NoFileExists(t, path)

	// What a killed process left is replaced.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	old.SetUnlinkOnClose(false)
	old.Close()
	require.FileExists(t, path)
	s, err = Listen(dir, "x", m)
	require.NoError(t, err)
	ended2, stop := context.WithCancel(context.Background())
	stop()
	require.NoError(t, s.Run(ended2))
	require.NoFileExists(t, path)
}
