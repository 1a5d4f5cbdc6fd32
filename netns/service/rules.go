package service

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/nf"
	"causeway/netns/internal/prod"
)

// The chains of hooks, and their places.
const (
	chainPre     = "pre"     // nat prerouting, of pods and LANs
	chainOut     = "out"     // nat output, of the host itself
	chainPost    = "post"    // nat postrouting, where a reply would not come by this host
	chainArrives = "arrives" // prerouting: of flows at an end. Where bridges hand frames to netfilter, a reset is of whom the packet is to when it is refused, so that it is not translated yet
	chainForward = "forward" // of no flow
	chainOutput  = "output"  // both, of the host itself
	chainTries   = "tries"   // postrouting: connections that begin, and that no wall has kept (signs.go)

	beforeDNAT   = -105 // others translate destinations at -100
	beforeSNAT   = 95   // and sources at 100
	beforeWalls  = -170 // conntrack -200, the policy's table -160 and -140, others' from -150 on
	behindOutput = -60  // destinations are translated at -100, the policy's table is at -50
	behindWalls  = 80   // sources are translated from 90 on
)

// The chains that they lead to. Those with a family's number behind them are there for each.
const (
	chainTranslate = "translate"
	chainPick      = "pick"    // a slot
	chainFlow      = "flow"    // of a service: is it at an end?
	chainDead      = "dead"    // it is
	chainNowhere   = "nowhere" // is it to the address of a service, and nothing to translate that to?
	chainUnfound   = "unfound" // it is
	chainSource    = "source"
	chainLeaves    = "leaves" // by the tunnel
	chainTry       = "try"    // of a service: it counts
	chainSign      = "sign"   // what comes back: does it take connections?
)

// hooked are the chains that the kernel calls.
var hooked = []string{prod.Chain, chainPre, chainOut, chainPost, chainArrives, chainForward, chainOutput, chainTries}

// chainNames are all chains of the table.
func chainNames() []string {
	out := append(slices.Clone(hooked), chainTranslate, chainFlow, chainDead, chainNowhere, chainUnfound, chainFence, chainFenced, chainOutside)
	for _, n := range []string{chainTranslate, chainPick, chainFlow, chainSource, chainLeaves, chainTry, chainSign, chainGuest} {
		out = append(out, n+"4", n+"6")
	}
	return out
}

// seed of the hash of sticky services, the same at every node and for ever.
const seed = 0x63777379

// Codes of reject.
const icmpxPort = 1 // NFT_REJECT_ICMPX_PORT_UNREACH

// regs are where fields of a key lie that are looked up together; a client's address lies behind all of them.
const (
	regs      = unix.NFT_REG32_00
	regClient = unix.NFT_REG_4
)

// after is the register behind an address in regs.
func after(v6 bool) uint32 {
	if v6 {
		return regs + 4
	}
	return regs + 1
}

// Addresses of a packet's header.
func from(v6 bool) nf.Source {
	if v6 {
		return nf.Payload(expr.PayloadBaseNetworkHeader, 8, 16)
	}
	return nf.Payload(expr.PayloadBaseNetworkHeader, 12, 4)
}

func to(v6 bool) nf.Source {
	if v6 {
		return nf.Payload(expr.PayloadBaseNetworkHeader, 24, 16)
	}
	return nf.Payload(expr.PayloadBaseNetworkHeader, 16, 4)
}

// epoch is in the names of all sets. Each writing of the whole table makes new ones and fills them before the rules ask them, and
// those before go only then: of a set that is filled again in one transaction the kernel shows nothing for a moment.
type epoch uint32

// set is the name of a set of a family.
func (e epoch) set(name string, v6 bool) string {
	return fmt.Sprintf("%s%s-%d", name, nf.Suffix(v6), e)
}

// in matches packets of a family of which something lies in a set of it.
func (e epoch) in(s nf.Source, set string, v6 bool) []expr.Any {
	return append(append(nf.Family(v6), s(nf.Reg)...), nf.Lookup(e.set(set, v6), nf.Reg))
}

// The sets: ranges of services, local and own addresses, dead backends, and pairs of which both are in one local prefix.
const (
	setRange = "range"
	setLocal = "local"
	setOwn   = "own"
	setDead  = "dead"
	setSame  = "same"
)

func addrType(v6 bool) nftables.SetDatatype {
	if v6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// sizes are how many slots a service may have.
var sizes = []int{64, 256}

// kind is which of the maps of slots a service is in.
type kind struct {
	sticky bool
	size   int
	v6     bool
}

// name of the map.
func (k kind) name(e epoch) string {
	how := "spread"
	if k.sticky {
		how = "sticky"
	}
	return e.set(fmt.Sprintf("%s%d-v", how, k.size), k.v6)
}

func kinds(v6 bool) (out []kind) {
	for _, size := range sizes {
		out = append(out, kind{false, size, v6}, kind{true, size, v6})
	}
	return out
}

// slotMap is the map of a kind. A slot is a mark there, of the host's byte order as numgen has it: at an integer nft 1.0.6
// aborts when it lists the map.
func (k kind) slotMap(e epoch) nf.Set {
	a := addrType(k.v6)
	return nf.Set{Name: k.name(e), Key: []nftables.SetDatatype{a, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark},
		Data: []nftables.SetDatatype{a, nftables.TypeInetService}}
}

// pick is the rule that translates to what a slot of the kind has.
func (k kind) pick(e epoch) []expr.Any {
	next := after(k.v6)
	l := append(nf.Family(k.v6), to(k.v6)(regs)...)
	l = append(l, nf.Meta(expr.MetaKeyL4PROTO)(next)...)
	l = append(l, nf.Payload(expr.PayloadBaseTransportHeader, 2, 2)(next+1)...)
	if k.sticky {
		n := uint32(4)
		if k.v6 {
			n = 16
		}
		l = append(l, from(k.v6)(regClient)...)
		l = append(l, &expr.Hash{SourceRegister: regClient, DestRegister: next + 2, Length: n, Modulus: uint32(k.size), Seed: seed, Type: expr.HashTypeJenkins})
	} else {
		l = append(l, &expr.Numgen{Register: next + 2, Modulus: uint32(k.size), Type: unix.NFT_NG_RANDOM})
	}
	return append(l, nf.Lookup(k.name(e), regs, regs),
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family(k.v6), RegAddrMin: regs, RegProtoMin: next, Specified: true})
}

func family(v6 bool) uint32 {
	if v6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// makeSets makes all sets, empty.
func makeSets(b *nf.Batch, e epoch, lacks lacking) {
	id := uint32(0)
	for _, v6 := range []bool{false, true} {
		a := addrType(v6)
		l := []nf.Set{
			{Name: e.set(setRange, v6), Key: []nftables.SetDatatype{a}, Interval: true},
			{Name: e.set(setLocal, v6), Key: []nftables.SetDatatype{a}, Interval: true},
			{Name: e.set(setOwn, v6), Key: []nftables.SetDatatype{a}},
			{Name: e.set(setDead, v6), Key: []nftables.SetDatatype{a, nftables.TypeInetProto, nftables.TypeInetService}},
			{Name: e.set(setExposed, v6), Key: []nftables.SetDatatype{a, nftables.TypeInetProto, nftables.TypeInetService}},
		}
		if !lacks[lackPairs] {
			l = append(l, sameSet(e, v6))
		}
		l = append(l, fenceSets(e, v6)...)
		for _, k := range kinds(v6) {
			l = append(l, k.slotMap(e))
		}
		if !lacks[lackCount] {
			l = append(l, signSets(e, v6)...)
		}
		for _, s := range l {
			id++
			s.Plain = lacks[lackPairs]
			b.MakeSet(s, id)
		}
	}
}

// sameSet has pairs of addresses.
func sameSet(e epoch, v6 bool) nf.Set {
	a := addrType(v6)
	return nf.Set{Name: e.set(setSame, v6), Key: []nftables.SetDatatype{a, a}, Interval: true}
}

// hostSets adds, or deletes, what of a host is in sets and not in those of another.
func hostSets(b *nf.Batch, e epoch, add bool, h, other host, lacks lacking) {
	for _, v6 := range []bool{false, true} {
		b.Elements(e.set(setRange, v6), add, intervals(h.ranges, other.ranges, v6))
		b.Elements(e.set(setLocal, v6), add, intervals(h.local, other.local, v6))
		if !lacks[lackPairs] {
			b.Elements(e.set(setSame, v6), add, pairs(h.local, other.local, v6))
		}
		var own []nf.Element
		for _, x := range h.own {
			if x.Is6() == v6 && !slices.Contains(other.own, x) {
				own = append(own, nf.Element{Key: x.AsSlice()})
			}
		}
		b.Elements(e.set(setOwn, v6), add, own)
	}
}

// rules writes all chains, whatever is there of them; the sets are there.
func rules(b *nf.Batch, h host, e epoch, lacks lacking) {
	prod.Rule(b)
	b.NATChain(chainPre, nftables.ChainHookPrerouting, beforeDNAT)
	b.NATChain(chainOut, nftables.ChainHookOutput, beforeDNAT)
	b.NATChain(chainPost, nftables.ChainHookPostrouting, beforeSNAT)
	arrives := nftables.ChainHookPrerouting
	if lacks[lackReject] {
		arrives = nftables.ChainHookForward
	}
	b.Chain(chainArrives, arrives, beforeWalls)
	b.Chain(chainForward, nftables.ChainHookForward, beforeWalls)
	b.Chain(chainOutput, nftables.ChainHookOutput, behindOutput)
	b.Chain(chainTries, nftables.ChainHookPostrouting, behindWalls)
	for _, n := range chainNames() {
		if !slices.Contains(hooked, n) {
			b.Chain(n, nil, 0)
		}
	}
	translate(b, h, e)
	if !lacks[lackCount] {
		signs(b, e)
	}
	refuse(b, h, e)
	source(b, h, e, lacks)
	outside(b, h, e, lacks)
}

// translate writes how a flow gets its backend.
func translate(b *nf.Batch, h host, e epoch) {
	b.Rule(chainPre, nf.Device(expr.MetaKeyIIFNAME, h.device), nf.Verdict(expr.VerdictReturn))
	b.Rule(chainPre, nf.Jump(chainTranslate))
	b.Rule(chainOut, nf.Jump(chainTranslate))
	for _, v6 := range []bool{false, true} {
		n := nf.Suffix(v6)
		b.Rule(chainTranslate, e.in(to(v6), setRange, v6), nf.GoTo(chainTranslate+n))
		// What comes of a connection in its middle, and conntrack does not know, is no backend's but of the one that it had.
		b.Rule(chainTranslate+n, nf.TCP, nf.TCPFlags(nf.FlagsOfSYN, nf.SYN), nf.GoTo(chainPick+n))
		b.Rule(chainTranslate+n, nf.Is(nf.Meta(expr.MetaKeyL4PROTO), unix.IPPROTO_UDP), nf.GoTo(chainPick+n))
		for _, k := range kinds(v6) {
			b.Rule(chainPick+n, k.pick(e))
		}
	}
}

// refuse writes what is not let through.
func refuse(b *nf.Batch, h host, e epoch) {
	unreachable := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: icmpxPort}}
	drop := nf.Verdict(expr.VerdictDrop)
	// Resets of what is refused here belong to its flow.
	b.Rule(chainArrives, nf.Device(expr.MetaKeyIIFNAME, "lo"), nf.Verdict(expr.VerdictReturn))
	fence(b, h.device, e)
	b.Rule(chainArrives, nf.Jump(chainFlow))
	b.Rule(chainForward, nf.Jump(chainNowhere))
	b.Rule(chainOutput, nf.Direction(nf.Reply), nf.Verdict(expr.VerdictReturn))
	b.Rule(chainOutput, nf.Jump(chainFlow))
	b.Rule(chainOutput, nf.Jump(chainNowhere))
	for _, v6 := range []bool{false, true} {
		n := nf.Suffix(v6)
		b.Rule(chainFlow, nf.Bits(nf.Ct(expr.CtKeySTATUS), nf.StatusDNAT, true), e.in(nf.CtTo(v6, nf.Original), setRange, v6), nf.GoTo(chainFlow+n))
		b.Rule(chainNowhere, e.in(to(v6), setRange, v6), nf.GoTo(chainUnfound))
		next := after(v6)
		b.Rule(chainFlow+n, nf.Direction(nf.Reply), nf.Jump(chainSign+n))
		b.Rule(chainFlow+n, nf.CtFrom(v6, nf.Reply)(regs), nf.CtProto(next), nf.CtDir(expr.CtKeyPROTOSRC, nf.Reply)(next+1),
			[]expr.Any{nf.Lookup(e.set(setDead, v6), regs)}, nf.GoTo(chainDead))
		leavesFlow(b, e, v6)
	}
	b.Rule(chainDead, nf.Direction(nf.Reply), nf.Counter, drop)
	// Begun, and not yet moved by Release.
	b.Rule(chainDead, nf.TCP, nf.TCPFlags(nf.FlagsOfSYN, nf.SYN), nf.Verdict(expr.VerdictReturn))
	b.Rule(chainDead, nf.Counter)
	b.Rule(chainDead, nf.TCP, nf.TCPReset)
	b.Rule(chainDead, unreachable)

	// Of a flow that lives, but outside its window: conntrack has it translated no more, and a reset would end the flow.
	b.Rule(chainUnfound, nf.Bits(nf.CtState, expr.CtStateBitINVALID, true), drop)
	b.Rule(chainUnfound, nf.Counter)
	b.Rule(chainUnfound, nf.TCP, nf.TCPReset)
	b.Rule(chainUnfound, unreachable)
}

// source writes whose source a backend does not see, for its reply would not come by this host.
func source(b *nf.Batch, h host, e epoch, lacks lacking) {
	masquerade := []expr.Any{&expr.Masq{}}
	back := nf.Verdict(expr.VerdictReturn)
	for _, v6 := range []bool{false, true} {
		n := nf.Suffix(v6)
		b.Rule(chainPost, e.in(nf.CtTo(v6, nf.Original), setRange, v6), nf.GoTo(chainSource+n))
		b.Rule(chainSource+n, nf.Device(expr.MetaKeyOIFNAME, "lo"), back)
		if !lacks[lackPairs] {
			b.Rule(chainSource+n, nf.Family(v6), from(v6)(regs), to(v6)(after(v6)), []expr.Any{nf.Lookup(e.set(setSame, v6), regs)}, masquerade)
		}
		b.Rule(chainSource+n, nf.Device(expr.MetaKeyOIFNAME, h.device), nf.GoTo(chainLeaves+n))
		b.Rule(chainSource+n, e.in(from(v6), setOwn, v6), masquerade)
		b.Rule(chainLeaves+n, e.in(from(v6), setLocal, v6), back)
		b.Rule(chainLeaves+n, e.in(from(v6), setOwn, v6), back)
		for _, a := range h.own {
			if a.Is6() == v6 {
				b.Rule(chainLeaves+n, []expr.Any{&expr.Immediate{Register: regs, Data: a.AsSlice()}, &expr.NAT{Type: expr.NATTypeSourceNAT, Family: family(v6), RegAddrMin: regs}})
				break
			}
		}
	}
}

// intervals are the elements of a set of ranges: those of l and not of other.
func intervals(l, other []netip.Prefix, v6 bool) (out []nf.Element) {
	was := ranges(other, v6)
	for _, r := range ranges(l, v6) {
		if slices.Contains(was, r) {
			continue
		}
		out = append(out, nf.Element{Key: r.From().AsSlice()})
		if end := r.To().Next(); end.IsValid() {
			out = append(out, nf.Element{Key: end.AsSlice(), End: true})
		}
	}
	return out
}

// ranges are apart from each other, which prefixes need not be.
func ranges(l []netip.Prefix, v6 bool) []netipx.IPRange {
	var b netipx.IPSetBuilder
	for _, p := range l {
		if p.Addr().Is6() == v6 {
			b.AddPrefix(p)
		}
	}
	s, err := b.IPSet()
	if err != nil { // of valid prefixes there is none
		return nil
	}
	return s.Ranges()
}

// pairs are the elements of a set of pairs that lie in one prefix, of l and not of other. No prefix lies in another.
func pairs(l, other []netip.Prefix, v6 bool) (out []nf.Element) {
	for _, p := range l {
		if p.Addr().Is6() == v6 && !slices.Contains(other, p) {
			first, last := p.Addr().AsSlice(), netipx.PrefixLastIP(p).AsSlice()
			out = append(out, nf.Element{Key: append(first, first...), KeyEnd: append(last, last...)})
		}
	}
	return out
}

// deadElement is one of the set of dead backends.
func deadElement(b Backend) nf.Element {
	k := b.Addr.Addr().AsSlice()
	k = append(k, b.Proto, 0, 0, 0)
	return nf.Element{Key: append(binary.BigEndian.AppendUint16(k, b.Addr.Port()), 0, 0)}
}

// slotElements are elements of the map of a service: those slots for which want says so.
func slotElements(out []nf.Element, k key, e *entry, data bool, want func(i int) bool) []nf.Element {
	n, size := e.slots(k), 28
	if k.vip.Is4() {
		size = 16
	}
	keys := make([]byte, 0, n*size) // in one piece
	for i := range n {
		if !want(i) {
			continue
		}
		at := len(keys)
		if k.vip.Is4() {
			a := k.vip.As4()
			keys = append(keys, a[:]...)
		} else {
			a := k.vip.As16()
			keys = append(keys, a[:]...)
		}
		keys = append(keys, k.proto, 0, 0, 0)
		keys = append(binary.BigEndian.AppendUint16(keys, k.port), 0, 0)
		keys = binary.NativeEndian.AppendUint32(keys, uint32(i))
		x := nf.Element{Key: keys[at:]}
		if data {
			x.Data = e.slot(k, i)
		}
		out = append(out, x)
	}
	return out
}

// kind of a service's map.
func (e *entry) kind(k key) kind { return kind{e.sticky, e.slots(k), k.vip.Is6()} }
