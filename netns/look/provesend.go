package look

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// ProveSend sends the packets of the trial that goes on, once, and the second of each. peer says whether the tunnel leads
// to an address.
func (h *Host) ProveSend(ctx context.Context, secret uint32, peer func(netip.Addr) bool) ([]protocol.ProveSent, error) {
	g, err := h.now(secret)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sent {
		return nil, errors.New("its packets were sent")
	}
	g.sent = true
	if err := kernel.AddClsact(g.link); err != nil {
		return nil, err
	}
	tick := time.NewTicker(protocol.ProveEvery)
	defer tick.Stop()
	out := []protocol.ProveSent{}
	for _, p := range g.Send {
		s := protocol.ProveSent{Token: p.Token, Peer: peer(p.To)}
		for _, step := range []func(protocol.ProvePacket, *protocol.ProveSent) error{g.first, g.second} {
			select {
			case <-ctx.Done():
				return out, ctx.Err()
			case <-tick.C:
			}
			if err := step(p, &s); err != nil && s.Error == "" {
				s.Error = protocol.OneLine(err.Error(), 200)
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// first sends a packet so that it passes the sender's wall.
func (g *proving) first(p protocol.ProvePacket, s *protocol.ProveSent) error {
	if p.From.IsValid() {
		s.From = p.From
		err := g.bySocket(p)
		s.NoRoute = errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)
		if s.Sent = err == nil; s.NoRoute || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ECONNREFUSED) {
			err = nil // it was refused: what was counted says where
		}
		return err
	}
	dev := ""
	for _, a := range p.Among {
		if d := toward(a); d != "" && d != "lo" && d != g.plan.Interface && hasCarrier(d) {
			s.From, dev = a, d
			break
		}
	}
	if dev == "" {
		s.From = p.Among[0] // for the second
		return fmt.Errorf("nobody behind this host may have %s: there is no link with a carrier toward it", p.Among[0])
	}
	to, err := kernel.LinkByName(dev)
	if err != nil || to == nil {
		return errors.Join(err, fmt.Errorf("link %s is gone", dev))
	}
	s.Forward = true
	err = g.redirected(p, s.From, p.Token, netlink.TCA_INGRESS_REDIR, to.Attrs().Index)
	s.Sent = err == nil
	return err
}

// second sends a packet into the engine.
func (g *proving) second(p protocol.ProvePacket, s *protocol.ProveSent) error {
	err := g.redirected(p, s.From, p.Behind, netlink.TCA_EGRESS_REDIR, g.link.Attrs().Index)
	s.Behind = err == nil
	return err
}

// redirected gives the kernel a packet that a filter takes at once and hands to a link, in or out.
func (g *proving) redirected(p protocol.ProvePacket, from netip.Addr, token uint32, action netlink.MirredAct, index int) error {
	ip, proto := int32(20), uint16(unix.ETH_P_IP)
	if p.To.Is6() {
		ip, proto = 40, unix.ETH_P_IPV6
	}
	at := ip + 8 // what a datagram or an echo request carries
	if p.Proto == protocol.ProtoTCP {
		at = ip + 4 // sequence and acknowledgement
	}
	f := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: g.link.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: trialFilter, Protocol: proto},
		Sel: &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Nkeys: 2, Keys: []netlink.TcU32Key{
			{Mask: 0xffffffff, Val: token, Off: at}, {Mask: 0xffffffff, Val: g.Secret, Off: at + 4}}},
		Actions: []netlink.Action{&netlink.MirredAction{ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: action, Ifindex: index}},
	}
	if proto == unix.ETH_P_IPV6 {
		f.Priority++ // a priority is of one protocol
	}
	if err := netlink.FilterAdd(f); err != nil {
		return fmt.Errorf("redirect a packet: %w", err)
	}
	defer netlink.FilterDel(f)
	return g.inject(provePacket(p, from, token, g.Secret))
}

// bySocket sends a packet as the host's own.
func (g *proving) bySocket(p protocol.ProvePacket) error {
	family, typ, proto := unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP
	if p.To.Is6() {
		family = unix.AF_INET6
	}
	switch {
	case p.Proto == protocol.ProtoTCP:
		typ, proto = unix.SOCK_STREAM, unix.IPPROTO_TCP
	case p.Proto == protocol.ProtoICMP && p.To.Is6():
		proto = unix.IPPROTO_ICMPV6
	case p.Proto == protocol.ProtoICMP:
		proto = unix.IPPROTO_ICMP
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if p.Proto == protocol.ProtoICMP && errors.Is(err, unix.EACCES) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	}
	if err != nil {
		return fmt.Errorf("make a socket to send as this host: %w", notRefused(err))
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, sockaddr(p.From, 0)); err != nil {
		return fmt.Errorf("send as %s: %w", p.From, notRefused(err))
	}
	if p.Proto != protocol.ProtoTCP {
		return unix.Sendto(fd, body(p, p.Token, g.Secret), 0, sockaddr(p.To, p.Port))
	}
	// The sequence number of the SYN is what is set as that of the send queue (TCP_REPAIR, tcp(7)).
	const sendQueue, off = 2, -1
	for _, o := range [][2]int{{unix.TCP_REPAIR, 1}, {unix.TCP_REPAIR_QUEUE, sendQueue}, {unix.TCP_QUEUE_SEQ, int(int32(p.Token))}, {unix.TCP_REPAIR, off}} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, o[0], o[1]); err != nil {
			return fmt.Errorf("choose the sequence number of a connection: %w", notRefused(err))
		}
	}
	if err := unix.Connect(fd, sockaddr(p.To, p.Port)); !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	return nil
}

// notRefused keeps an error from being taken for a refusal of the packet.
func notRefused(err error) error { return errors.New(err.Error()) }

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
}

// body is what a socket sends: of a datagram what it carries, of an echo request all but IP.
func body(p protocol.ProvePacket, token, secret uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, token)
	b = binary.BigEndian.AppendUint32(b, secret)
	b = append(b, make([]byte, 8)...)
	if p.Proto != protocol.ProtoICMP {
		return b
	}
	head := []byte{8, 0, 0, 0, byte(token >> 8), byte(token), 0, 1}
	if p.To.Is6() {
		head[0] = 128 // the kernel has the checksum
	}
	b = append(head, b...)
	if p.To.Is4() {
		binary.BigEndian.PutUint16(b[2:], ^fold(sumWords(0, b)))
	}
	return b
}

// provePacket is a whole packet of a trial.
func provePacket(p protocol.ProvePacket, from netip.Addr, token, secret uint32) []byte {
	var l4 []byte
	proto, sumAt := byte(p.Proto), 0
	switch source := 49152 + uint16(token)&0x3fff; p.Proto {
	case protocol.ProtoTCP:
		l4 = make([]byte, 20)
		binary.BigEndian.PutUint16(l4, source)
		binary.BigEndian.PutUint32(l4[4:], token)
		binary.BigEndian.PutUint32(l4[8:], secret)
		l4[12], l4[13], l4[14], sumAt = 5<<4, 2, 0xff, 16
	case protocol.ProtoUDP:
		l4 = append(make([]byte, 8), body(p, token, secret)...)
		binary.BigEndian.PutUint16(l4, source)
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		sumAt = 6
	default:
		l4 = body(p, token, secret)
		if sumAt = 2; from.Is6() {
			proto = unix.IPPROTO_ICMPV6
		}
	}
	if p.Proto != protocol.ProtoICMP {
		binary.BigEndian.PutUint16(l4[2:], p.Port)
	}
	if from.Is6() || p.Proto != protocol.ProtoICMP {
		sum := sumWords(sumWords(0, from.AsSlice()), p.To.AsSlice())
		sum = sumWords(sum, []byte{0, proto, 0, byte(len(l4))})
		binary.BigEndian.PutUint16(l4[sumAt:], ^fold(sumWords(sum, l4)))
	}
	if from.Is6() {
		ip := []byte{0x60, 0, 0, 0, 0, byte(len(l4)), proto, 64}
		return slices.Concat(ip, from.AsSlice(), p.To.AsSlice(), l4)
	}
	ip := slices.Concat([]byte{0x45, 0, 0, byte(20 + len(l4)), 0, 0, 0x40, 0, 64, proto, 0, 0}, from.AsSlice(), p.To.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^fold(sumWords(0, ip)))
	return append(ip, l4...)
}
