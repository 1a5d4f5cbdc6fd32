package look

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/netns/internal/kernel"
)

// probe is one packet of a trial.
type probe struct {
	out     bool
	pod     netip.Addr
	dev     string // that the pod is behind
	remote  netip.Addr
	id      uint32
	passed  bool
	untried bool // nothing was sent: rules alone are asked
}

// leaves is how a probe should leave the host.
func (b probe) leaves(p netns.Plan) (dev string, from, to netip.Addr) {
	if b.out {
		return p.Interface, b.pod, b.remote
	}
	return b.dev, b.remote, b.pod
}

// probes are those of a trial; whole says that none of the plan's ranges is left out.
func probes(ctx context.Context, p netns.Plan) (out []probe, whole bool) {
	named := namedAddrs(ctx, p.Local)
	id := newSecret() &^ 0xff // of each, counted up
	whole = true
	for _, x := range p.Local {
		remote := remote(p, x.Addr().Is6())
		targets := targets(x, named)
		whole = whole && remote.IsValid() && len(targets) > 0
		for _, pod := range targets {
			dev := toward(pod)
			if dev == "" || dev == p.Interface || !remote.IsValid() || len(out) >= 2*mostTargets {
				continue
			}
			ways := []bool{false, true}
			if !hasCarrier(dev) { // nobody sends by it, and the kernel has nothing come by it
				ways = ways[:1]
			}
			for _, way := range ways {
				id++
				out = append(out, probe{out: way, pod: pod, dev: dev, remote: remote, id: id})
			}
		}
	}
	return out, whole
}

// remote is an address that the host sends into the tunnel: a peer's pod, if there is one. Of
// hubs it is none: the walls around them let nothing of pods through. The first and last of a
// route may be inside a network of the host's own.
func remote(p netns.Plan, v6 bool) (best netip.Addr) {
	for _, x := range p.Routes {
		if x.Addr().Is6() != v6 || slices.Contains(p.Local, x) {
			continue
		}
		overlay := slices.ContainsFunc(p.Overlay, x.Contains) || slices.ContainsFunc(p.Wall.Overlay, x.Overlaps)
		if best.IsValid() && overlay {
			continue
		}
		ends := []netip.Addr{x.Addr()}
		if !x.IsSingleIP() {
			ends = []netip.Addr{x.Addr().Next(), netipx.PrefixLastIP(x).Prev()}
		}
		for _, a := range ends {
			own := slices.Contains(p.Wall.Hubs, a) || slices.ContainsFunc(p.Local, func(l netip.Prefix) bool { return l.Contains(a) })
			if !own && toward(a) == p.Interface {
				best = a
				break
			}
		}
		if best.IsValid() && !overlay {
			return best
		}
	}
	return best
}

// targets are addresses of a range: those that firewalls have rules of their own for, those
// that the host knows as its neighbours, and if there is none one that anybody may have.
func targets(x netip.Prefix, named []netip.Addr) (out []netip.Addr) {
	for _, a := range named {
		if x.Contains(a) && !slices.Contains(out, a) && toward(a) != "" {
			out = append(out, a)
		}
	}
	if ns, err := netlink.NeighList(0, kernel.Family(x.Addr().Is6())); err == nil {
		for _, n := range ns {
			a, ok := netip.AddrFromSlice(n.IP)
			if a = a.Unmap(); ok && x.Contains(a) && n.State&(unix.NUD_FAILED|unix.NUD_NOARP) == 0 && !slices.Contains(out, a) && len(out) < mostTargets/2 {
				out = append(out, a)
			}
		}
	}
	a := x.Addr()
	for range 4 { // the first are often the host's own
		if len(out) == 0 && x.Contains(a) && toward(a) != "" && (x.IsSingleIP() || a != x.Addr()) {
			out = append(out, a)
		}
		a = a.Next()
	}
	return out[:min(len(out), mostTargets/2)]
}

// namedAddrs are the single addresses inside ranges that rules of firewalls name.
func namedAddrs(ctx context.Context, ranges []netip.Prefix) (out []netip.Addr) {
	text := ""
	var tables []*nftables.Table
	if c, err := nftables.New(); err == nil {
		tables, _ = c.ListTables()
	}
	families := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyBridge: "bridge"}
	for _, t := range tables {
		family := families[t.Family]
		if family == "" || ours(family, t.Name) {
			continue
		}
		s, _ := kernel.Run(ctx, "", "nft", "list", "table", family, t.Name)
		text += s
	}
	for _, prog := range kernel.IPTables(ctx, "raw") {
		if strings.HasSuffix(prog, "-legacy") {
			text += strings.Join(kernel.RawRules(ctx, prog), "\n")
		}
	}
	for _, w := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\n{},/", r) }) {
		a, err := netip.ParseAddr(w)
		if err == nil && !slices.Contains(out, a) && slices.ContainsFunc(ranges, func(x netip.Prefix) bool { return x.Contains(a) && a != x.Addr() }) {
			out = append(out, a)
		}
	}
	return out
}

// ports are a probe's, of the dynamic ones (RFC 6335).
func (b probe) ports() (from, to uint16) {
	return 49152 + uint16(b.id>>8)&0x3fff, 49152 + uint16(b.id>>10)&0x3fff
}

// packet is the probe: a SYN without options.
func (b probe) packet(secret uint32) []byte {
	_, src, dst := b.leaves(netns.Plan{})
	tcp := make([]byte, 20)
	from, to := b.ports()
	binary.BigEndian.PutUint16(tcp, from)
	binary.BigEndian.PutUint16(tcp[2:], to)
	binary.BigEndian.PutUint32(tcp[4:], b.id)
	binary.BigEndian.PutUint32(tcp[8:], secret)
	tcp[12], tcp[13], tcp[14] = 5<<4, 2, 0xff // 20 bytes, SYN, window
	sum := sumWords(0, src.AsSlice())
	sum = sumWords(sum, dst.AsSlice())
	sum = sumWords(sum, []byte{0, unix.IPPROTO_TCP, 0, 20})
	binary.BigEndian.PutUint16(tcp[16:], ^fold(sumWords(sum, tcp)))
	if src.Is6() {
		ip := []byte{0x60, 0, 0, 0, 0, 20, unix.IPPROTO_TCP, 64}
		return slices.Concat(ip, src.AsSlice(), dst.AsSlice(), tcp)
	}
	ip := slices.Concat([]byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0}, src.AsSlice(), dst.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^fold(sumWords(0, ip)))
	return append(ip, tcp...)
}

// sumWords adds 16-bit words (RFC 1071); the length of b is even.
func sumWords(sum uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// hasCarrier reports whether something is at the other end of a link, as far as the link knows.
func hasCarrier(dev string) bool {
	link, err := kernel.LinkByName(dev)
	return err == nil && link != nil && link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}
