package look

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Bounds of looking for a pod.
const (
	maxProcesses = 20000
	maxSpaces    = 8
	maxListeners = 16
	podWait      = time.Second // for each answer
)

// Pod looks at f's local end where that is a pod's or another machine's behind this
// host, nil if it is the host's own address. It sends what a neighbour would, and
// enters no namespace: what the pod's processes listen at is read in /proc.
func (h *Host) Pod(ctx context.Context, f Flow) *protocol.PodEvidence {
	dev := toward(f.Local)
	if dev == "" {
		return nil
	}
	e := &protocol.PodEvidence{Interface: dev}
	if f.Proto == protocol.FlowTCP && f.Port != 0 && f.Serves {
		c := Connect(ctx, netip.Addr{}, netip.AddrPortFrom(f.Local, f.Port), podWait)
		e.Connect = &c
	} else {
		poke(f.Local)
	}
	e.MACs = whoHas(ctx, dev, f.Local)
	e.Neighbour, e.MAC = neighbour(ctx, dev, f.Local)
	e.Spaces = spacesOf(f)
	return e
}

// Connect tries a TCP connection, from an address of the host or, if that is not
// valid, the kernel's choice.
func Connect(ctx context.Context, from netip.Addr, to netip.AddrPort, wait time.Duration) protocol.Connect {
	d := net.Dialer{Timeout: wait}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	start := time.Now()
	c, err := d.DialContext(ctx, "tcp", to.String())
	out := protocol.Connect{From: from, Result: protocol.ConnectOK, After: time.Since(start)}
	var timeout net.Error
	var no syscall.Errno
	switch {
	case err == nil:
		c.Close()
	case errors.Is(err, syscall.ECONNREFUSED):
		out.Result = protocol.ConnectRefused
	case errors.As(err, &timeout) && timeout.Timeout():
		out.Result = protocol.ConnectTimeout
	case errors.As(err, &no):
		out.Result = unix.ErrnoName(no)
	default:
		out.Result = protocol.OneLine(err.Error(), 100)
	}
	return out
}

// poke makes the kernel look for a neighbour: a datagram to the discard port.
func poke(a netip.Addr) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte{0})
}

// neighbour waits for the kernel's word on a neighbour.
func neighbour(ctx context.Context, dev string, a netip.Addr) (state, mac string) {
	l, err := kernel.LinkByName(dev)
	if err != nil || l == nil {
		return "", ""
	}
	end := time.Now().Add(3*time.Second + podWait) // three solicitations, a second apart
	for {
		ns, err := netlink.NeighList(l.Attrs().Index, kernel.Family(a.Is6()))
		if err != nil {
			return "", ""
		}
		state = "none"
		for _, n := range ns {
			if ip, ok := netip.AddrFromSlice(n.IP); !ok || ip.Unmap() != a {
				continue
			}
			mac = n.HardwareAddr.String()
			switch {
			case n.State&(unix.NUD_REACHABLE|unix.NUD_PERMANENT|unix.NUD_NOARP|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE) != 0:
				return "reachable", mac
			case n.State&unix.NUD_FAILED != 0:
				return "failed", ""
			}
			state = "incomplete"
		}
		if time.Now().After(end) {
			return state, ""
		}
		select {
		case <-ctx.Done():
			return state, ""
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// whoHas asks by ARP who has an IPv4 address and returns all that answer, for two may.
// It needs CAP_NET_RAW; without it nobody is asked.
func whoHas(ctx context.Context, dev string, a netip.Addr) (out []string) {
	l, err := net.InterfaceByName(dev)
	if err != nil || !a.Is4() || len(l.HardwareAddr) != 6 {
		return nil
	}
	const arp = unix.ETH_P_ARP
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(arp)))
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(arp), Ifindex: l.Index}) != nil {
		return nil
	}
	src := ownAddress(l, a)
	// RFC 826: Ethernet, IPv4, request
	ask := binary.BigEndian.AppendUint16(nil, 1)
	ask = append(binary.BigEndian.AppendUint16(ask, unix.ETH_P_IP), 6, 4, 0, 1)
	ask = append(append(ask, l.HardwareAddr...), src.AsSlice()...)
	ask = append(append(ask, make([]byte, 6)...), a.AsSlice()...)
	to := &unix.SockaddrLinklayer{Protocol: htons(arp), Ifindex: l.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	if unix.Sendto(fd, ask, 0, to) != nil {
		return nil
	}
	end := time.Now().Add(500 * time.Millisecond)
	b := make([]byte, 64)
	for ctx.Err() == nil {
		left := time.Until(end)
		if left <= 0 {
			break
		}
		tv := unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			break
		}
		if n < 28 || binary.BigEndian.Uint16(b[6:]) != 2 || [4]byte(b[14:18]) != a.As4() {
			continue
		}
		if mac := net.HardwareAddr(b[8:14]).String(); !slices.Contains(out, mac) && len(out) < 8 {
			out = append(out, mac)
		}
	}
	return out
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// ownAddress is the address of an interface that is in one network with a.
func ownAddress(l *net.Interface, a netip.Addr) netip.Addr {
	as, _ := l.Addrs()
	for _, x := range as {
		if n, ok := x.(*net.IPNet); ok {
			if p, ok := kernel.PrefixOf(n); ok && p.Contains(a) {
				return p.Addr()
			}
		}
	}
	return netip.IPv4Unspecified()
}

// spacesOf finds the network namespaces behind this host that have f's local address, by
// their processes: /proc/PID/net shows those of each.
func spacesOf(f Flow) (out []protocol.PodSpace) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	seen := map[uint64]bool{}
	if st, err := os.Stat("/proc/self/net/dev"); err == nil {
		seen[st.Sys().(*syscall.Stat_t).Ino] = true
	}
	for i, d := range procs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || i > maxProcesses {
			continue
		}
		dir := filepath.Join("/proc", d.Name(), "net")
		st, err := os.Stat(filepath.Join(dir, "dev")) // one inode for each namespace
		if err != nil || seen[st.Sys().(*syscall.Stat_t).Ino] {
			continue
		}
		seen[st.Sys().(*syscall.Stat_t).Ino] = true
		if !hasAddress(dir, f.Local) || !attached(pid) {
			continue
		}
		s := protocol.PodSpace{PID: pid, Listeners: listeners(dir, f)}
		s.HasRoute, s.Gateway = routeOf(dir, f.Remote)
		if b, err := os.ReadFile(filepath.Join("/proc", d.Name(), "comm")); err == nil {
			s.Command = protocol.OneLine(strings.TrimSpace(string(b)), 32)
		}
		if out = append(out, s); len(out) == maxSpaces {
			break
		}
	}
	return out
}

// attached reports whether an interface of this host's leads, or was given, to the network
// namespace of a process: the kernel has a number for that namespace here then
// (ip-netns(8), set). One with the same address but without such a number, such as a
// rootless container's, is of no matter to the host's traffic.
func attached(pid int) bool {
	id, err := netlink.GetNetNsIdByPid(pid)
	return err != nil || id >= 0
}

// hasAddress reads fib_trie (the local table's leaves) or if_inet6.
func hasAddress(dir string, a netip.Addr) bool {
	if a.Is6() {
		return strings.Contains(readFile(dir, "if_inet6"), hex.EncodeToString(a.AsSlice())+" ")
	}
	found := false
	for l := range strings.Lines(readFile(dir, "fib_trie")) {
		l = strings.TrimSpace(l)
		if addr, ok := strings.CutPrefix(l, "|-- "); ok {
			found = addr == a.String()
		} else if found && strings.HasPrefix(l, "/32 host LOCAL") {
			return true
		}
	}
	return false
}

func readFile(dir, name string) string {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return string(b)
}

// routeOf reports whether the main table of a namespace has a route to a, and the gateway
// of the longest one, not valid where that leads to neighbours.
func routeOf(dir string, a netip.Addr) (has bool, gateway netip.Addr) {
	best := -1
	take := func(dst, via netip.Addr, bits int) {
		p := netip.PrefixFrom(dst, bits)
		if !p.IsValid() || !p.Contains(a) || bits <= best {
			return
		}
		if has, best, gateway = true, bits, via; via.IsUnspecified() {
			gateway = netip.Addr{}
		}
	}
	if a.Is6() {
		for l := range strings.Lines(readFile(dir, "ipv6_route")) {
			f := strings.Fields(l) // destination, length, source, length, gateway, …, flags, device
			if len(f) < 10 || f[9] == "lo" {
				continue
			}
			dst, ok := parseWords(f[0], false)
			via, ok2 := parseWords(f[4], false)
			if n, err := strconv.ParseUint(f[1], 16, 8); err == nil && ok && ok2 && dst.Is6() && via.Is6() {
				take(dst, via, int(n))
			}
		}
		return has, gateway
	}
	for l := range strings.Lines(readFile(dir, "route")) {
		f := strings.Fields(l) // iface, destination, gateway, flags, …, mask at 7
		if len(f) < 8 {
			continue
		}
		dst, ok := parseWords(f[1], true)
		via, ok2 := parseWords(f[2], true)
		mask, ok3 := parseWords(f[7], true)
		if ok && ok2 && ok3 && dst.Is4() && via.Is4() && mask.Is4() {
			ones, _ := net.IPMask(mask.AsSlice()).Size()
			take(dst, via, ones)
		}
	}
	return has, gateway
}

// parseWords reads an address in hexadecimal digits, native: of one word in the machine's order.
func parseWords(s string, native bool) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || native && len(b) != 4 {
		return netip.Addr{}, false
	}
	if native {
		binary.NativeEndian.PutUint32(b, binary.BigEndian.Uint32(b))
	}
	return netip.AddrFromSlice(b)
}

// listeners are the sockets of f's protocol that wait in a namespace.
func listeners(dir string, f Flow) (out []string) {
	name, waits := "tcp", "0A" // TCP_LISTEN
	switch f.Proto {
	case protocol.FlowUDP:
		name, waits = "udp", "07" // TCP_CLOSE: not connected
	case protocol.FlowTCP:
	default:
		return nil
	}
	for _, file := range []string{name, name + "6"} {
		for l := range strings.Lines(readFile(dir, file)) {
			s := strings.Fields(l) // sl, local, remote, state
			if len(s) < 4 || s[3] != waits {
				continue
			}
			at, ok := parseSocket(s[1])
			if text := at.String(); ok && !slices.Contains(out, text) && len(out) < maxListeners {
				out = append(out, text)
			}
		}
	}
	return out
}

// parseSocket reads 0100007F:1F90, words in the machine's order.
func parseSocket(s string) (netip.AddrPort, bool) {
	addr, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || err2 != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(n)), true
}
