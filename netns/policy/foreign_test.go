package policy

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/lab"
)

// foreign is what the LAN and the host's pods see of each other, in fixed packets, and what
// others' counters have counted of them.
func (w *world) foreign(x *lab.Host) string {
	t := w.t
	w.a.Sh("conntrack -F 2>/dev/null || :")
	counters := func() string {
		return w.a.Sh(`iptables-legacy-save -c 2>/dev/null | grep '^.[0-9]*:' | grep -v '^:' || :; nft list ruleset | awk '/^table inet causeway-policy/ {skip=1} !skip {print} /^}/ {skip=0}'`)
	}
	before := counters()
	rx := sniff(t, x, "eth0")
	ask := func(h *lab.Host, network, from, to, text string) {
		require.NoError(t, h.Do(func() error {
			d := net.Dialer{Timeout: 300 * time.Millisecond}
			if network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(addrPort(from))
			} else {
				d.LocalAddr = net.TCPAddrFromAddrPort(addrPort(from))
			}
			c, err := d.Dial(network, to)
			if err != nil {
				return nil // refused alike, then
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := c.Write([]byte(text)); err == nil {
				c.Read(make([]byte, 100))
			}
			if tcp, ok := c.(*net.TCPConn); ok {
				tcp.SetLinger(0)
			}
			return nil
		}))
	}
	for i := range 2 {
		p := fmt.Sprint(20000 + i)
		ask(w.pa, "udp", "10.1.0.11:"+p, "192.168.1.50:5000", "from the pod "+p)
		ask(w.a, "udp", fmt.Sprint("192.168.1.1:", 21000+i), // not those that a pod may be masqueraded to
			"192.168.1.50:5000", "from the host "+p)
		ask(x, "udp", "192.168.1.50:"+p, "192.168.1.1:5000", "to the host "+p)
		ask(x, "udp", "192.168.1.50:"+p, "10.1.0.11:5000", "to the pod "+p)
		ask(x, "udp", "192.168.1.50:"+p, "10.1.0.11:9", "to a port that is closed "+p)
	}
	x.Sh("ping -n -c2 -i0.2 -s8 -e 7 -W1 192.168.1.1 >/dev/null || :; ping -n -c2 -i0.2 -s8 -e 8 -W1 10.1.0.11 >/dev/null || :")
	packets := rx()
	after := counters()
	return packets + "\n" + diff(before, after)
}

// diff is by how much counters differ, line by line.
func diff(before, after string) string {
	var out []string
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	if len(a) != len(b) {
		return fmt.Sprintf("%d lines of rules before, %d after", len(a), len(b))
	}
	number := regexp.MustCompile(`[0-9]+`)
	for i := range a {
		if a[i] == b[i] || strings.Contains(a[i], "table ip6") {
			continue
		}
		x, y := number.FindAllString(a[i], -1), number.FindAllString(b[i], -1)
		line := number.ReplaceAllString(b[i], "N")
		for k := range min(len(x), len(y)) {
			if x[k] != y[k] {
				m, _ := strconv.Atoi(x[k])
				n, _ := strconv.Atoi(y[k])
				line += fmt.Sprintf(" +%d", n-m)
			}
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// sniff gathers what a link sees of UDP and ICMP by IPv4 until what it returns is called, but
// for what differs from packet to packet: identification and checksums.
func sniff(t *testing.T, h *lab.Host, dev string) func() string {
	fd := 0
	require.NoError(t, h.Do(func() (err error) {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}), Ifindex: i.Index})
	}))
	return func() string {
		defer unix.Close(fd)
		var out []string
		b := make([]byte, 2000)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				require.ErrorIs(t, err, unix.EAGAIN)
				break
			}
			p := append([]byte(nil), b[:n]...)
			if n < 28 || p[0] != 0x45 || p[9] != byte(UDP) && p[9] != byte(ICMP) {
				continue
			}
			clear(p[4:6])
			clear(p[10:12])
			if p[9] == byte(ICMP) && n >= 48 && p[20] == 3 { // has the packet inside that it is about
				clear(p[22:24])
				clear(p[32:34])
				clear(p[38:40])
			}
			out = append(out, hex.EncodeToString(p))
		}
		slices.Sort(out)
		return strings.Join(out, "\n")
	}
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
