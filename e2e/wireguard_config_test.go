package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// newSingle is one device, wg0, that nobody talks to.
func newSingle(t *testing.T, engine string) (*wgLab, *lab.Host) {
	w := newWgLab(t)
	h := w.Host("ns0")
	w.device(engine, "wg0", h, h)
	return w, h
}

func (w *wgLab) setconf(config string) {
	w.t.Helper()
	file := filepath.Join(w.Dir, "conf")
	require.NoError(w.t, os.WriteFile(file, []byte(config), 0o600))
	w.wg("setconf", "wg0", file)
}

// Very large configurations, which the kernel's netlink has to cut up, arrive
// and are shown whole.
func TestWireGuardManyAllowedIPs(t *testing.T) {
	t.Parallel()
	w, _ := newSingle(t, inlineEngine)
	var b strings.Builder
	private, public := w.key(), w.key()
	fmt.Fprintf(&b, "[Interface]\nPrivateKey=%s\n[Peer]\nPublicKey=%s\n", private.private, public.public)
	for i := 1; i <= 255; i++ {
		for j := range 256 {
			fmt.Fprintf(&b, "AllowedIPs=%d.%d.0.0/16,%x::%x/128\n", i, j, i, j)
		}
	}
	w.setconf(b.String())
	require.Len(t, strings.Fields(w.wg("show", "wg0", "allowed-ips")), 255*256*2+1)

	b.Reset()
	fmt.Fprintf(&b, "[Interface]\nPrivateKey=%s\n", private.private)
	for i := 1; i <= 40; i++ {
		fmt.Fprintf(&b, "[Peer]\nPublicKey=%s\n", w.key().public)
		for j := 1; j <= 52; j++ {
			fmt.Fprintf(&b, "AllowedIPs=%d.%d.0.0/16\n", i, j)
		}
	}
	w.setconf(b.String())
	lines := strings.Split(w.wg("show", "wg0", "allowed-ips"), "\n")
	require.Len(t, lines, 40)
	for _, l := range lines {
		require.Len(t, strings.Fields(l), 53)
	}

	b.Reset()
	for range 30 {
		fmt.Fprintf(&b, "[Peer]\nPublicKey=%s\n", w.key().public)
	}
	b.WriteString("AllowedIPs=255.2.3.4/32,abcd::255/128\n")
	w.setconf(b.String())
	require.Equal(t, 30, strings.Count(w.wg("showconf", "wg0"), "[Peer]"))

	b.Reset()
	for i := 1; i <= 197; i++ {
		fmt.Fprintf(&b, "abcd::%x,", i)
	}
	w.setconf("[Interface]\n")
	require.Empty(t, w.wg("show", "wg0", "peers"))
	one, two := w.key(), w.key()
	w.wg("set", "wg0", "peer", one.public)
	w.wg("set", "wg0", "peer", two.public, "allowed-ips", strings.TrimSuffix(b.String(), ","))
	lines = strings.Split(w.wg("show", "wg0", "allowed-ips"), "\n")
	require.Equal(t, one.public+"\t(none)", lines[0])
	require.Len(t, strings.Fields(lines[1]), 1+197)
}

// Keys are taken, shown and taken away as the kernel does it; keys that are
// low-order points are taken and never lead to a message.
func TestWireGuardConfiguration(t *testing.T) {
	t.Parallel()
	w, h := newSingle(t, inlineEngine)
	k1, k2, psk := w.key(), w.key(), w.key()
	_, err := w.tryWg("show", "doesnotexist")
	require.Error(t, err)
	w.wg("set", "wg0", "private-key", k1.file, "peer", k2.public, "preshared-key", psk.file)
	require.Equal(t, k1.private, w.wg("show", "wg0", "private-key"))
	require.Equal(t, k2.public+"\t"+psk.private, w.wg("show", "wg0", "preshared-keys"))
	w.wg("set", "wg0", "private-key", "/dev/null", "peer", k2.public, "preshared-key", "/dev/null")
	require.Equal(t, "(none)", w.wg("show", "wg0", "private-key"))
	require.Equal(t, k2.public+"\t(none)", w.wg("show", "wg0", "preshared-keys"))
	w.wg("set", "wg0", "private-key", k2.file)
	require.Equal(t, k2.public, w.wg("show", "wg0", "public-key"))
	require.Empty(t, w.wg("show", "wg0", "peers"), "a device is no peer of its own")
	w.wg("set", "wg0", "peer", k2.public)
	require.Empty(t, w.wg("show", "wg0", "peers"))
	w.wg("set", "wg0", "private-key", k1.file)
	w.wg("set", "wg0", "peer", k2.public)
	require.Equal(t, k2.public, w.wg("show", "wg0", "peers"))
	odd := filepath.Join(w.Dir, "odd")
	require.NoError(t, os.WriteFile(odd, []byte("/"+k1.private[1:]+"\n"), 0o600))
	w.wg("set", "wg0", "private-key", odd)
	require.Equal(t, "+"+k1.private[1:], w.wg("show", "wg0", "private-key"), "bits are cleared")
	for _, ips := range []string{"0.0.0.0/0,10.0.0.0/8,100.0.0.0/10,172.16.0.0/12,192.168.0.0/16", "0.0.0.0/0", "::/0,1700::/111,5000::/4,e000::/37,9000::/75", "::/0"} {
		w.wg("set", "wg0", "peer", k2.public, "allowed-ips", ips)
		require.ElementsMatch(t, strings.Split(ips, ","), strings.Fields(w.wg("show", "wg0", "allowed-ips"))[1:])
	}
	w.wg("set", "wg0", "peer", k2.public, "remove")

	// A port that is taken is refused, and the device goes on.
	port := w.wg("show", "wg0", "listen-port")
	w.device(inlineEngine, "wg7", h, h)
	w.wg("set", "wg7", "listen-port", "777")
	_, err = w.tryWg("set", "wg0", "listen-port", "777")
	require.ErrorContains(t, err, "Address already in use")
	require.Equal(t, port, w.wg("show", "wg0", "listen-port"))

	h.Nft(`table inet got {
	counter messages { }
	counter greeting { }
	chain inp { type filter hook input priority 0; udp dport 1111 counter name messages; udp dport 1112 counter name greeting; }
}`)
	for _, point := range []string{
		"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
		"X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=", "7P///////////////////////////////////////38=", "7f///////////////////////////////////////38=",
		"7v///////////////////////////////////////38=",
	} {
		w.wg("set", "wg0", "peer", point, "persistent-keepalive", "1", "endpoint", "127.0.0.1:1111")
	}
	require.Len(t, strings.Fields(w.wg("show", "wg0", "peers")), 7)
	// An honest peer, set last, is greeted: by then the others would have been.
	w.wg("set", "wg0", "peer", k2.public, "persistent-keepalive", "1", "endpoint", "127.0.0.1:1112")
	w.eventually(func() error {
		if s := h.Sh("nft list counter inet got greeting"); strings.Contains(s, "packets 0 ") {
			return errState(s)
		}
		return nil
	})
	require.Contains(t, h.Sh("nft list counter inet got messages"), "packets 0 ")
}

// Everything that was made is destroyed: descriptors of old sockets while a
// device runs; its socket, its interface and its process when it ends, in
// whatever way, also with interfaces that lie crosswise in namespaces. The
// kernel's reference counts, which netns.sh reads from its log, are no business
// of a userspace device: what a process holds ends with it.
func TestWireGuardDestroyed(t *testing.T) {
	t.Parallel()
	w := newWgLab(t)
	n1, n2 := w.Host("ns1"), w.Host("ns2")
	one := w.device(inlineEngine, "wg1", n1, n2)
	two := w.device(inlineEngine, "wg2", n2, n1)
	k, psk := w.key(), w.key()
	fds := func() int {
		l, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", one.PID()))
		require.NoError(t, err)
		return len(l)
	}
	w.wg("set", "wg1", "private-key", k.file)
	before := fds()
	for i := range 10 {
		w.wg("set", "wg1", "listen-port", fmt.Sprint(1000+i), "fwmark", fmt.Sprint(i), "peer", w.key().public, "preshared-key", psk.file,
			"allowed-ips", fmt.Sprintf("10.0.%d.0/24", i), "endpoint", "127.0.0.1:9", "persistent-keepalive", "1")
		w.setPeersGone("wg1")
	}
	w.eventually(func() error {
		if n := fds(); n > before {
			return fmt.Errorf("%d descriptors, %d at first", n, before)
		}
		return nil
	})
	sock := func(name string) string { return filepath.Join(w.run, "wireguard", name+".sock") }
	fi, err := os.Stat(sock("wg1"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
	require.NoError(t, one.Stop(step(t)), one.Output())
	require.NoFileExists(t, sock("wg1"))
	require.NotContains(t, n2.Sh("ip -o link"), "wg1")

	two.Kill()
	require.NotContains(t, n1.Sh("ip -o link"), "wg2")
	require.FileExists(t, sock("wg2"), "a killed process removes nothing")
	three := w.device(inlineEngine, "wg2", n2, n1)
	w.wg("show", "wg2")
	// The interface is taken away under a device: it ends and says so.
	n1.Sh("ip link del wg2")
	require.Error(t, three.Wait(step(t)))
	require.Contains(t, three.Output(), "wgtool:")
	require.NoFileExists(t, sock("wg2"))
}

// setPeersGone takes all peers away.
func (w *wgLab) setPeersGone(name string) {
	w.t.Helper()
	for _, k := range strings.Fields(w.wg("show", name, "peers")) {
		w.wg("set", name, "peer", k, "remove")
	}
	require.Empty(w.t, w.wg("show", name, "peers"))
}
