package netns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"causeway/protocol"
)

// Whether pods are reached by the tunnel, and reach it, is tried and not read off rules: a
// packet goes the way that a peer's would, another the way of one that a pod sends, through
// all that the host's kernel has on that way, whoever put it there. Both are counted and
// dropped by chains of ours right before they would leave the host: no pod and no peer
// gets one, nothing remembers them.
//
//	in    written to the TUN device; counted at postrouting, about to leave to the pod
//	out   written there as well, and redirected (tc-mirred(8)) to the interface that the pod is
//	      behind as if it had come by that; counted at postrouting, about to enter the tunnel.
//	      A link without a carrier, as a container bridge that no container is on, is left out
//
// A probe is the SYN of a connection, known by two random words of its TCP header that
// nobody else sees. One that a firewall rejects makes the kernel answer: such answers are dropped too.

// trialTable is the name of our nftables table for the time of a trial, in family inet.
const trialTable = NftTable + "-trial"

// Bounds of a trial.
const (
	mostTargets = 32 // addresses of each round, half of each range's
	trialWait   = 100 * time.Millisecond
	trialLooks  = 3 // at least, on a host that is busy
	trialRounds = 2 // what did not come through is tried again, before it counts
)

// trialFilter is the priority of our tc filters at the TUN device.
const trialFilter = 0xca5e

// Inject gives the kernel a packet as one that came out of the tunnel.
type Inject func(packet []byte) error

// Trial is what became of probes.
type Trial struct {
	Whole   bool   // each range of the plan was tried, both ways where somebody is behind the host's link
	Tried   int    // probes
	Blocked string // what does not come through, and what mends it; empty: all did
}

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

// Try tries whether packets pass between the tunnel and what the last applied plan has
// behind this host. What Docker drops and leaves a place to open is opened and tried again.
func (h *Host) Try(ctx context.Context, inject Inject) (Trial, error) {
	h.trying.Lock()
	defer h.trying.Unlock()
	h.mu.Lock()
	p := h.last
	h.mu.Unlock()
	if !HasIPv6() {
		p = p.without6()
	}
	link, err := ownLink(p.Config)
	if err != nil || link == nil || link.Attrs().Flags&unix.IFF_UP == 0 {
		return Trial{}, err
	}
	probes, whole := h.probes(ctx, p)
	t, err := h.try(ctx, p, link, probes, inject)
	if err != nil || len(t) == 0 {
		return Trial{Whole: whole && err == nil && len(probes) > 0, Tried: len(probes)}, err
	}
	if opened, err := h.openAgain(ctx, p); err != nil {
		return Trial{}, err
	} else if opened {
		if t, err = h.try(ctx, p, link, t, inject); err != nil {
			return Trial{}, err
		}
	}
	return Trial{Whole: whole, Tried: len(probes), Blocked: h.blocked(ctx, p, t)}, nil
}

// openAgain is openFirewalls, and whether that opened something.
func (h *Host) openAgain(ctx context.Context, p Plan) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	rec, err := h.readRecord(ctx, p.Interface)
	if err != nil {
		return false, err
	}
	return h.openFirewalls(ctx, rec, p)
}

// probes are those of a trial; whole says that none of the plan's ranges is left out.
func (h *Host) probes(ctx context.Context, p Plan) (out []probe, whole bool) {
	named := namedAddrs(ctx, p.Local)
	var word [4]byte
	rand.Read(word[:])
	id := binary.BigEndian.Uint32(word[:]) &^ 0xff // of each, counted up
	whole = true
	for _, x := range p.Local {
		remote := h.remote(p, x.Addr().Is6())
		targets := h.targets(x, named)
		whole = whole && remote.IsValid() && len(targets) > 0
		for _, pod := range targets {
			dev := h.toward(pod)
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
func (h *Host) remote(p Plan, v6 bool) (best netip.Addr) {
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
			if !own && h.toward(a) == p.Interface {
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
func (h *Host) targets(x netip.Prefix, named []netip.Addr) (out []netip.Addr) {
	for _, a := range named {
		if x.Contains(a) && !slices.Contains(out, a) && h.toward(a) != "" {
			out = append(out, a)
		}
	}
	if ns, err := netlink.NeighList(0, nlFamily(x.Addr().Is6())); err == nil {
		for _, n := range ns {
			a, ok := netip.AddrFromSlice(n.IP)
			if a = a.Unmap(); ok && x.Contains(a) && n.State&(unix.NUD_FAILED|unix.NUD_NOARP) == 0 && !slices.Contains(out, a) && len(out) < mostTargets/2 {
				out = append(out, a)
			}
		}
	}
	a := x.Addr()
	for range 4 { // the first are often the host's own
		if len(out) == 0 && x.Contains(a) && h.toward(a) != "" && (x.IsSingleIP() || a != x.Addr()) {
			out = append(out, a)
		}
		a = a.Next()
	}
	return out[:min(len(out), mostTargets/2)]
}

// namedAddrs are the single addresses inside ranges that rules of firewalls name.
func namedAddrs(ctx context.Context, ranges []netip.Prefix) (out []netip.Addr) {
	text, _ := run(ctx, "", "nft", "list", "ruleset")
	for _, prog := range ipPrograms(ctx, "raw") {
		if strings.HasSuffix(prog, "-legacy") {
			text += strings.Join(rawRules(ctx, prog), "\n")
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

// try sends probes and returns those that did not come through in any round.
func (h *Host) try(ctx context.Context, p Plan, link netlink.Link, probes []probe, inject Inject) ([]probe, error) {
	for range trialRounds {
		if len(probes) == 0 {
			break
		}
		if err := tryOnce(ctx, p, link, probes, inject); err != nil {
			return nil, err
		}
		probes = slices.DeleteFunc(slices.Clone(probes), func(b probe) bool { return b.passed })
	}
	return probes, nil
}

func tryOnce(ctx context.Context, p Plan, link netlink.Link, probes []probe, inject Inject) error {
	var word [4]byte
	rand.Read(word[:])
	secret := binary.BigEndian.Uint32(word[:])
	if _, err := run(ctx, trialRules(p, probes, secret), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("set nftables table %s: %w", trialTable, err)
	}
	defer run(context.WithoutCancel(ctx), dropTrial, "nft", "-f", "-")
	undo, err := redirect(link, probes, secret)
	defer undo()
	if err != nil {
		return err
	}
	for _, b := range probes {
		if err := inject(b.packet(secret)); err != nil {
			return err
		}
	}
	end := time.Now().Add(trialWait)
	for n := 1; ; n++ {
		all, err := counted(ctx, probes)
		if err != nil || all || n > trialLooks && time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// dropTrial takes the table of a trial away.
const dropTrial = "add table inet " + trialTable + "\ndelete table inet " + trialTable + "\n"

// trialRules count and drop the probes. None of them leaves the host, whichever way it goes,
// and no answer to one that a firewall rejects.
func trialRules(p Plan, probes []probe, secret uint32) string {
	var b strings.Builder
	t := "inet " + trialTable
	b.WriteString(dropTrial + "add table " + t + "\n")
	fmt.Fprintf(&b, "add chain %s leaving { type filter hook postrouting priority 2147483646; policy accept; }\n", t)
	fmt.Fprintf(&b, "add chain %s arriving { type filter hook input priority -2147483647; policy accept; }\n", t)
	fmt.Fprintf(&b, "add chain %s answers { type filter hook output priority -2147483647; policy accept; }\n", t)
	for _, x := range probes {
		dev, from, to := x.dev, x.remote, x.pod
		if x.out {
			dev, from, to = p.Interface, x.pod, x.remote
		}
		f := nftFamily(to)
		fmt.Fprintf(&b, "add rule %s leaving tcp ackseq %d tcp sequence %d oifname %q %s saddr %s %s daddr %s counter drop\n", t, secret, x.id, dev, f, from, f, to)
	}
	for _, c := range []string{"leaving", "arriving"} {
		fmt.Fprintf(&b, "add rule %s %s tcp flags syn tcp ackseq %d drop\n", t, c, secret)
	}
	for _, x := range probes {
		fmt.Fprintf(&b, "add rule %s answers tcp flags & rst == rst tcp ackseq %d drop\n", t, x.id+1)
	}
	// The packet that an error is about follows its 8 bytes: 20 or 40 of IP, and TCP's.
	fmt.Fprintf(&b, "add rule %s answers icmp type destination-unreachable @th,%d,32 %d drop\n", t, (8+20+8)*8, secret)
	fmt.Fprintf(&b, "add rule %s answers icmpv6 type destination-unreachable @th,%d,32 %d drop\n", t, (8+40+8)*8, secret)
	return b.String()
}

// counted notes which probes were about to leave where they should, and whether all were.
func counted(ctx context.Context, probes []probe) (all bool, err error) {
	text, err := run(ctx, "", "nft", "-j", "list", "chain", "inet", trialTable, "leaving")
	if err != nil {
		return false, fmt.Errorf("list nftables table %s: %w", trialTable, err)
	}
	var list struct {
		Nftables []struct {
			Rule *struct {
				Expr []struct {
					Match   *struct{ Right any }
					Counter *struct{ Packets uint64 }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return false, errors.New("nft lists what does not read")
	}
	for _, e := range list.Nftables {
		if e.Rule == nil || len(e.Rule.Expr) < 2 || e.Rule.Expr[1].Match == nil {
			continue
		}
		id, _ := e.Rule.Expr[1].Match.Right.(float64)
		for _, x := range e.Rule.Expr {
			for i := range probes {
				if x.Counter != nil && x.Counter.Packets > 0 && probes[i].id == uint32(id) {
					probes[i].passed = true
				}
			}
		}
	}
	return !slices.ContainsFunc(probes, func(b probe) bool { return !b.passed }), nil
}

// addClsact gives a device the qdisc that trials hang their filters on. It comes before the device
// is up, and stays until that goes: the kernel shuts the queues for a moment when one comes
// or goes, and drops what is sent meanwhile.
func addClsact(link netlink.Link) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add qdisc clsact to %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// redirect has the kernel take probes that stand for a pod's for ones that came by the
// pod's interface. Call undo in any case.
func redirect(link netlink.Link, probes []probe, secret uint32) (undo func(), err error) {
	undo = func() {}
	if !slices.ContainsFunc(probes, func(b probe) bool { return b.out }) {
		return undo, nil
	}
	index := link.Attrs().Index
	if err := addClsact(link); err != nil {
		return undo, err
	}
	var added []*netlink.U32
	undo = func() {
		for _, f := range added {
			netlink.FilterDel(f)
		}
	}
	for _, b := range probes {
		if !b.out {
			continue
		}
		to, err := linkByName(b.dev)
		if err != nil || to == nil {
			return undo, err
		}
		tcp, proto := int32(20), uint16(unix.ETH_P_IP)
		if b.pod.Is6() {
			tcp, proto = 40, unix.ETH_P_IPV6
		}
		f := &netlink.U32{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: trialFilter, Protocol: proto},
			Sel: &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Nkeys: 2, Keys: []netlink.TcU32Key{
				{Mask: 0xffffffff, Val: b.id, Off: tcp + 4}, {Mask: 0xffffffff, Val: secret, Off: tcp + 8}}},
			Actions: []netlink.Action{&netlink.MirredAction{
				ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN},
				MirredAction: netlink.TCA_INGRESS_REDIR, Ifindex: to.Attrs().Index}},
		}
		if proto == unix.ETH_P_IPV6 {
			f.Priority++ // a priority is of one protocol
		}
		if err := netlink.FilterAdd(f); err != nil {
			return undo, fmt.Errorf("redirect to %s: %w", b.dev, err)
		}
		added = append(added, f)
	}
	return undo, nil
}

// ports are a probe's, of the dynamic ones (RFC 6335).
func (b probe) ports() (from, to uint16) {
	return 49152 + uint16(b.id>>8)&0x3fff, 49152 + uint16(b.id>>10)&0x3fff
}

// packet is the probe: a SYN without options.
func (b probe) packet(secret uint32) []byte {
	src, dst := b.remote, b.pod
	if b.out {
		src, dst = dst, src
	}
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

// ReadBlocked is what Try would say, as far as rules that can be read say it for certain, of
// packets that come by interface dev for pods in these ranges, or that pods send by it; empty: nothing.
func (h *Host) ReadBlocked(ctx context.Context, dev string, ranges []netip.Prefix) string {
	p := Plan{Config{Interface: dev}}
	for _, pod := range namedAddrs(ctx, ranges) {
		b := probe{pod: pod, dev: h.toward(pod), untried: true}
		for _, b.out = range []bool{false, true} {
			if b.dev == "" || b.dev == dev {
				continue
			}
			if why := h.blocked(ctx, p, []probe{b}); why != "" {
				return why
			}
		}
	}
	return ""
}

// blocked says what stopped probes, empty if there are none, and how to mend it as far as
// the rules that can be read say.
func (h *Host) blocked(ctx context.Context, p Plan, l []probe) string {
	if len(l) == 0 {
		return ""
	}
	b := l[0]
	k := packet{iif: p.Interface, oif: b.dev, src: b.remote, dst: b.pod}
	what := fmt.Sprintf("packets that come by %s for %s do not get to %s", p.Interface, b.pod, b.dev)
	if b.out {
		k = packet{iif: b.dev, oif: p.Interface, src: b.pod, dst: b.remote}
		what = fmt.Sprintf("packets that %s sends by %s do not get into %s", b.pod, b.dev, p.Interface)
	}
	k.proto, k.state = protocol.FlowTCP, "new"
	k.sport, k.dport = b.ports()
	rules, err := readRules(ctx)
	if err != nil && b.untried {
		return ""
	} else if err != nil {
		return what
	}
	oif := k.oif
	for _, k.hook = range []string{"prerouting", "forward", "postrouting"} {
		if k.oif = oif; k.hook == "prerouting" {
			k.oif = ""
		}
		d, ok := rules.follow(k)
		if !ok || !d.Certain && (k.hook != "forward" || b.untried) {
			continue
		}
		return what + ", " + dropText(ctx, p.Interface, b, k, d)
	}
	if b.untried {
		return ""
	}
	return what + ", and no rule that can be read says why: 'causeway diag explain' with such a pair looks closer"
}

// dropText says what d does to probe b, which is packet k there, and what mends it as far as rules that can be read say.
func dropText(ctx context.Context, dev string, b probe, k packet, d protocol.Drop) string {
	switch who, mend := d.Mend(dev, b.dev); who {
	case "Docker":
		return fmt.Sprintf("Docker drops them (nftables chain %s): %s", d.Chain, mend)
	case "ufw":
		return fmt.Sprintf("ufw drops them (nftables chain %s): run '%s'", d.Chain, mend)
	case "firewalld":
		return fmt.Sprintf("firewalld rejects them (nftables chain %s): run '%s'", d.Chain, mend)
	}
	// Without what it counted, so that the same fault is always the same text.
	what := fmt.Sprintf("nftables chain %s drops them: %s", d.Chain, protocol.OneLine(ruleLineOf(ctx, d, "-s"), mostRule))
	if d.Hook != "forward" || !plainChain(d) {
		return what
	}
	return what + runs(dev, []string{b.dev}, func(in, out string) string {
		if d.Handle != 0 && in != k.iif {
			return "" // the rule may be about one way alone
		}
		return letBetween(d, in, out)
	})
}

// mostRule bounds the text of a rule, so that what follows it is whole where a condition is cut.
const mostRule = 120
