package beside

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

// Around is a host with its pod and a host of its LAN, whose traffic is no business of the tunnel.
type Around struct {
	Host, Pod, Outside *lab.Host
	// Their addresses by IPv4: the host's is that on the LAN.
	HostAddr, PodAddr, OutsideAddr string
	Port                           int    // where each echoes UDP
	Table                          string // of the agent, whose counters are its own
}

// Foreign is what the LAN and the host's pod see of each other, in fixed packets, and what others' counters have counted of them,
// by IPv4, and but for what depends on the time. It is the same with the agent's table and without.
func (a Around) Foreign(t *testing.T) string {
	t.Helper()
	x := a.Outside
	a.Host.Sysctl("net.ipv4.igmp_link_local_mcast_reports=0") // of bridges, which comes by chance
	a.Host.Sh("conntrack -F 2>/dev/null || :")
	counters := func() string {
		return a.Host.Sh(`iptables-legacy-save -c 2>/dev/null | grep '^.[0-9]*:' | grep -v '^:' || :; nft list ruleset | grep -v 'limit rate' | awk '/^table (ip6|inet ` + a.Table + `) / {skip=1} !skip {print} /^}/ {skip=0}'`)
	}
	before := counters()
	rx := Sniff(t, x, "eth0")
	ask := func(h *lab.Host, from string, fromPort int, to string, toPort int, text string) {
		require.NoError(t, h.Do(func() error {
			d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), uint16(fromPort)))}
			c, err := d.Dial("udp", net.JoinHostPort(to, strconv.Itoa(toPort)))
			if err != nil {
				return nil // refused alike, then
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := c.Write([]byte(text)); err == nil {
				c.Read(make([]byte, 100))
			}
			return nil
		}))
	}
	for i := range 2 {
		p := 20000 + i
		ask(a.Pod, a.PodAddr, p, a.OutsideAddr, a.Port, fmt.Sprint("from the pod ", p))
		ask(a.Host, a.HostAddr, 21000+i, // not those that a pod may be masqueraded to
			a.OutsideAddr, a.Port, fmt.Sprint("from the host ", p))
		ask(x, a.OutsideAddr, p, a.HostAddr, a.Port, fmt.Sprint("to the host ", p))
		ask(x, a.OutsideAddr, p, a.PodAddr, a.Port, fmt.Sprint("to the pod ", p))
		ask(x, a.OutsideAddr, p, a.PodAddr, 9, fmt.Sprint("to a port that is closed ", p))
	}
	x.Sh("ping -n -c2 -i0.2 -s8 -e 7 -W1 " + a.HostAddr + " >/dev/null || :; ping -n -c2 -i0.2 -s8 -e 8 -W1 " + a.PodAddr + " >/dev/null || :")
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
		if a[i] == b[i] {
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

// Sniff gathers what a link sees of UDP and ICMP by IPv4 until what it returns is called, but
// for what differs from packet to packet: identification and checksums.
func Sniff(t *testing.T, h *lab.Host, dev string) func() string {
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
			if n < 28 || p[0] != 0x45 || p[9] != unix.IPPROTO_UDP && p[9] != unix.IPPROTO_ICMP {
				continue
			}
			clear(p[4:6])
			clear(p[10:12])
			if p[9] == unix.IPPROTO_ICMP && n >= 48 && p[20] == 3 { // has the packet inside that it is about
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
