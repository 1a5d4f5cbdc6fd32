package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/protocol"
)

// The chains of the table. What comes out of the tunnel is judged before destination NAT, what
// goes in where it can still be answered; what gets its last source or way only afterwards is
// judged at the end once more, where it can only be dropped.
const (
	chainIn      = "in"      // prerouting: out of the tunnel
	chainForward = "forward" // into the tunnel, of pods and LANs
	chainOutput  = "output"  // into the tunnel, of the host itself
	chainLast    = "last"    // postrouting: into the tunnel, what those two could not judge
	chainProd    = "prod"    // output: our own prods, of Tell, which are no part of a connection

	chainJudgeIn   = "judge-in"
	chainJudgeOut  = "judge-out"
	chainOwn       = "own"    // flows that are no subject of rules
	chainRefuse    = "refuse" // with an answer
	chainRefuseOut = "refuse-out"
	chainAnswers   = "answers" // the host's own refusals, on their way into the tunnel
	chainTold      = "told"    // what is refused, for whoever listens: see tellRefused
	chainToldBack  = "told-answers"
	// chainUntracked judges packets that conntrack knows nothing of, each for itself.
	chainUntrackedIn  = "untracked-in"
	chainUntrackedOut = "untracked-out"
	chainAllow        = "allow-" // and a rule's name

	chainBegunThere   = "begun-there" // and the family, as of those that follow
	chainBegunHere    = "begun-here"
	chainTakenUpThere = "taken-up-there"
	chainTakenUpHere  = "taken-up-here"
)

// The sets that are no class maps.
const (
	mapPort  = "port"  // list, protocol, port: what is open
	mapPorts = "ports" // the same for ranges of them
	setHubs4 = "hubs4"
	setHubs6 = "hubs6"
	setOwn4  = "own4"
	setOwn6  = "own6"
	setOver4 = "overlay4"
	setOver6 = "overlay6"
)

// Registers.
const (
	regAddr = unix.NFT_REG_1    // 16 bytes
	regKey  = unix.NFT_REG32_08 // the first of three that are looked up together
	regKey2 = unix.NFT_REG32_09
	regKey3 = unix.NFT_REG32_10

	icmpxAdm = 3 // NFT_REJECT_ICMPX_ADMIN_PROHIBITED
)

// source loads something of a packet, or of its flow, into a register.
type source func(reg uint32) []expr.Any

func ct(key expr.CtKey) source {
	return func(reg uint32) []expr.Any { return []expr.Any{&expr.Ct{Register: reg, Key: key}} }
}

func ctDir(key expr.CtKey, dir uint32) source {
	return func(reg uint32) []expr.Any { return []expr.Any{ctOf{key: uint32(key), dir: dir, reg: reg}} }
}

func meta(key expr.MetaKey) source {
	return func(reg uint32) []expr.Any { return []expr.Any{&expr.Meta{Key: key, Register: reg}} }
}

func payload(base expr.PayloadBase, offset, n uint32) source {
	return func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: n}}
	}
}

// is matches what a source loads.
func is(s source, value ...byte) []expr.Any {
	return append(s(regAddr), &expr.Cmp{Op: expr.CmpOpEq, Register: regAddr, Data: value})
}

// bits matches where some of the bits of mask are set, or with none where none is.
func bits(s source, mask uint32, some bool) []expr.Any {
	op := expr.CmpOpNeq
	if !some {
		op = expr.CmpOpEq
	}
	return append(s(regAddr), &expr.Bitwise{SourceRegister: regAddr, DestRegister: regAddr, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: regAddr, Data: make([]byte, 4)})
}

// ctFrom and ctTo are an end of a flow in a direction of conntrack's.
func ctFrom(v6 bool, dir uint32) source { return ctEnd(v6, 0, dir) }
func ctTo(v6 bool, dir uint32) source   { return ctEnd(v6, 1, dir) }

func ctEnd(v6 bool, end expr.CtKey, dir uint32) source {
	key := 19 + end // NFT_CT_SRC_IP, NFT_CT_DST_IP
	if v6 {
		key += 2 // NFT_CT_SRC_IP6, NFT_CT_DST_IP6
	}
	return ctDir(key, dir)
}

// ends are where a rule finds the two ends of a flow: who began it, and what it was begun to.
type ends struct {
	from, to    source
	proto, port source
	local       bool // who began it lives at this node
}

const (
	original = 0 // IP_CT_DIR_ORIGINAL
	reply    = 1 // IP_CT_DIR_REPLY
)

var ctProto = ct(expr.CtKeyPROTOCOL)

// Flows as conntrack has them, by the addresses that they have inside the tunnel: what NAT
// makes of them at this host is in conntrack's other direction.

func begunThere(v6 bool) ends {
	return ends{ctFrom(v6, original), ctTo(v6, original), ctProto, ctDir(expr.CtKeyPROTODST, original), false}
}

func begunHere(v6 bool) ends {
	return ends{ctTo(v6, reply), ctFrom(v6, reply), ctProto, ctDir(expr.CtKeyPROTOSRC, reply), true}
}

// Conntrack took up a connection in its middle, by a packet of who had not begun it: from the
// other side, or from here. Only TCP tells: by a packet that cannot begin one.

func takenUpThere(v6 bool) ends {
	return ends{ctTo(v6, original), ctFrom(v6, original), ctProto, ctDir(expr.CtKeyPROTOSRC, original), true}
}

func takenUpHere(v6 bool) ends {
	return ends{ctFrom(v6, reply), ctTo(v6, reply), ctProto, ctDir(expr.CtKeyPROTODST, reply), false}
}

// headers are the ends of a packet as its headers have them, at offsets from a base. reply: it
// is one, so the ends are the other way round. in: it comes out of the tunnel.
func headers(v6 bool, base expr.PayloadBase, at uint32, in, isReply bool) ends {
	src, dst, n, proto := at+12, at+16, uint32(4), at+9
	transport, l4 := at+20, expr.PayloadBaseTransportHeader
	if v6 {
		src, dst, n, proto, transport = at+8, at+24, 16, at+6, at+40
	}
	protocol := payload(base, proto, 1)
	if base == expr.PayloadBaseNetworkHeader {
		transport, protocol = 0, meta(expr.MetaKeyL4PROTO)
	}
	e := ends{payload(base, src, n), payload(base, dst, n), protocol, payload(l4, transport+2, 2), !in}
	if isReply {
		e = ends{e.to, e.from, protocol, payload(l4, transport, 2), in}
	}
	return e
}

// family matches packets of one family.
func family(v6 bool) []expr.Any {
	if v6 {
		return is(meta(expr.MetaKeyNFPROTO), unix.NFPROTO_IPV6)
	}
	return is(meta(expr.MetaKeyNFPROTO), unix.NFPROTO_IPV4)
}

func suffix(v6 bool) string {
	if v6 {
		return "6"
	}
	return "4"
}

// lookup finds what a register has in a set or a map.
func lookup(set string, from uint32, to ...uint32) expr.Any {
	l := &expr.Lookup{SourceRegister: from, SetName: set}
	if len(to) > 0 {
		l.DestRegister, l.IsDestRegSet = to[0], true
	}
	return l
}

// opened writes a chain that accepts what a rule opens, and returns for all else.
//
// A class lies in the packet's priority in between: what a map gives can be no part of a key
// but by way of something of the packet (the program nft aborts where it lists that), and marks are
// other programs'. It is 0 again where a packet goes on.
func (w *batch) opened(chain string, v6 bool, e ends) {
	w.chain(chain, nil, 0)
	w.chain(chain+"-known", nil, 0)
	remote, local, side := e.from, e.to, sideTo
	if e.local {
		remote, local, side = e.to, e.from, sideFrom
	}
	w.rule(chain, remote(regAddr), []expr.Any{lookup("remote"+suffix(v6), regAddr, regKey)}, priority, jump(chain+"-known"))
	chain += "-known"
	w.rule(chain, local(regAddr), []expr.Any{lookup(side+suffix(v6), regAddr, unix.NFT_REG_VERDICT)})
	for _, m := range []string{mapPort, mapPorts} {
		w.rule(chain, meta(expr.MetaKeyPRIORITY)(regKey), e.proto(regKey2), e.port(regKey3), []expr.Any{lookup(m, regKey, unix.NFT_REG_VERDICT)})
	}
}

// priority puts what is in regKey into the packet's priority.
var priority = []expr.Any{&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: regKey}}

func setPriority(v uint32) []expr.Any {
	return append([]expr.Any{&expr.Immediate{Register: regKey, Data: binaryutil.NativeEndian.PutUint32(v)}}, priority...)
}

// The maps of local addresses, to the chains of their classes: as what a flow is begun to, and as
// who begins it. The chain of a class puts the number of the list, of what is open to or
// from the class in the priority, in its place.
const (
	sideTo   = "local-to"
	sideFrom = "local-from"
)

// side writes the chain of a local class; the map of that name must be there.
func (w *batch) side(name string) {
	w.chain(name, nil, 0)
	w.rule(name, meta(expr.MetaKeyPRIORITY)(regKey), []expr.Any{lookup(name, regKey, regKey)}, priority)
}

func verdict(k expr.VerdictKind, chain ...string) []expr.Any {
	v := &expr.Verdict{Kind: k}
	if len(chain) > 0 {
		v.Chain = chain[0]
	}
	return []expr.Any{v}
}

func jump(chain string) []expr.Any { return verdict(expr.VerdictJump, chain) }
func goTo(chain string) []expr.Any { return verdict(expr.VerdictGoto, chain) }

var (
	accept  = verdict(expr.VerdictAccept)
	counter = []expr.Any{&expr.Counter{}}
)

// device matches the tunnel's interface.
func device(key expr.MetaKey, name string) []expr.Any {
	b := make([]byte, 16)
	copy(b, name)
	return is(meta(key), b...)
}

// notDevice matches all others.
func notDevice(key expr.MetaKey, name string) []expr.Any {
	l := device(key, name)
	l[len(l)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return l
}

var (
	tcp      = is(meta(expr.MetaKeyL4PROTO), byte(TCP))
	tcpFlags = payload(expr.PayloadBaseTransportHeader, 13, 1)
)

// flags matches TCP flags of a mask.
func flags(mask, value byte) []expr.Any {
	return append(tcpFlags(regAddr), &expr.Bitwise{SourceRegister: regAddr, DestRegister: regAddr, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regAddr, Data: []byte{value}})
}

const (
	finSynRstAck, syn, rst = 0x17, 0x02, 0x04

	statusDNAT = 1 << 5 // IPS_DST_NAT
)

// hasSocket matches any user of a socket that there is.
var hasSocket = append(meta(expr.MetaKeySKUID)(regAddr), &expr.Cmp{Op: expr.CmpOpNeq, Register: regAddr, Data: []byte{255, 255, 255, 255}})

func direction(d byte) []expr.Any { return is(ct(expr.CtKeyDIRECTION), d) }

var (
	ctState   = ct(expr.CtKeySTATE)
	isNew     = bits(ctState, expr.CtStateBitNEW, true)
	untracked = bits(ctState, expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED, true)
)

// rules writes all chains but those of rules by name, anew.
func (w *batch) rules(c Config) {
	for _, b := range []struct {
		name     string
		hook     *nftables.ChainHook
		priority int32
	}{
		{chainIn, nftables.ChainHookPrerouting, -140},   // conntrack -200, destination NAT -100
		{chainForward, nftables.ChainHookForward, -160}, // before others drop without an answer
		{chainOutput, nftables.ChainHookOutput, -50},    // after destination NAT
		{chainLast, nftables.ChainHookPostrouting, 250}, // after source NAT
		{chainProd, nftables.ChainHookOutput, -300},     // before conntrack
	} {
		w.chain(b.name, b.hook, b.priority)
	}
	for _, n := range []string{chainJudgeIn, chainJudgeOut, chainOwn, chainRefuse, chainRefuseOut, chainAnswers, chainTold, chainToldBack, chainUntrackedIn, chainUntrackedOut} {
		w.chain(n, nil, 0)
	}
	for n, way := range map[string]expr.MetaKey{chainIn: expr.MetaKeyIIFNAME, chainForward: expr.MetaKeyOIFNAME, chainLast: expr.MetaKeyOIFNAME} {
		w.rule(n, notDevice(way, c.Interface), verdict(expr.VerdictReturn))
		// Whether firewalls let them pass is tried for open and closed alike.
		w.rule(n, is(meta(expr.MetaKeyMARK), binary.NativeEndian.AppendUint32(nil, netns.TrialMark)...), verdict(expr.VerdictReturn))
	}
	w.rule(chainProd, tcp, flags(0xff, 0x10), is(payload(expr.PayloadBaseTransportHeader, 18, 2), port(prodUrgent)...), []expr.Any{&expr.Notrack{}})
	w.rule(chainIn, jump(chainJudgeIn))
	w.rule(chainIn, goTo(chainRefuse))
	for _, v6 := range []bool{false, true} {
		w.opened(chainBegunThere+suffix(v6), v6, begunThere(v6))
		w.opened(chainBegunHere+suffix(v6), v6, begunHere(v6))
		w.opened(chainTakenUpThere+suffix(v6), v6, takenUpThere(v6))
		w.opened(chainTakenUpHere+suffix(v6), v6, takenUpHere(v6))
	}
	w.judge(chainJudgeIn, true)
	w.judge(chainJudgeOut, false)

	w.rule(chainForward, jump(chainJudgeOut))
	w.rule(chainForward, goTo(chainRefuseOut))
	out := device(expr.MetaKeyOIFNAME, c.Interface)
	w.rule(chainOutput, out, jump(chainJudgeOut))
	w.rule(chainOutput, out, jump(chainAnswers))
	w.rule(chainOutput, out, goTo(chainRefuseOut))
	// A program of the host that speaks to a service's address: the kernel tells of the way that
	// the packet had before destination NAT gave it a remote end. Where it is not known yet
	// that it is closed, the last chain drops it.
	for _, v6 := range []bool{false, true} {
		e := begunHere(v6)
		dnat := slices.Concat(family(v6), direction(original), bits(ct(expr.CtKeySTATUS), statusDNAT, true), e.to(regAddr),
			[]expr.Any{lookup("remote"+suffix(v6), regAddr, regKey)})
		w.rule(chainOutput, dnat, jump(chainJudgeOut))
		w.rule(chainOutput, dnat, goTo(chainRefuseOut))
	}
	// A source that is none of this node's may become one by source NAT: see the last chain.
	for _, v6 := range []bool{false, true} {
		w.rule(chainRefuseOut, isNew, family(v6), begunHere(v6).from(regAddr), []expr.Any{lookup("local"+suffix(v6), regAddr)}, goTo(chainRefuse))
	}
	w.rule(chainRefuseOut, isNew, accept)
	w.rule(chainRefuseOut, goTo(chainRefuse))
	// Judged before, but for what begins, and what changed its way after the host's routing.
	w.rule(chainLast, bits(ctState, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, true), bits(ct(expr.CtKeySTATUS), statusDNAT, false), accept)
	w.rule(chainLast, jump(chainJudgeOut))
	w.rule(chainLast, jump(chainAnswers))
	w.rule(chainLast, jump(chainTold))
	w.rule(chainLast, counter, verdict(expr.VerdictDrop))

	// Netfilter's resets have no socket; what a program of the host sends has.
	w.rule(chainAnswers, tcp, flags(rst, rst), hasSocket, verdict(expr.VerdictReturn))
	w.rule(chainAnswers, tcp, flags(rst, rst), bits(ctState, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, true), accept)
	w.rule(chainAnswers, is(meta(expr.MetaKeyL4PROTO), byte(ICMP)), is(payload(expr.PayloadBaseTransportHeader, 0, 2), 3, 13), accept)
	w.rule(chainAnswers, is(meta(expr.MetaKeyL4PROTO), byte(icmp6)), is(payload(expr.PayloadBaseTransportHeader, 0, 2), 1, 1), accept)

	w.rule(chainRefuse, counter)
	w.rule(chainRefuse, jump(chainTold))
	w.rule(chainRefuse, tcp, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	w.rule(chainRefuse, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: icmpxAdm}})
	w.own()
}

// judge writes the chain that accepts what is open and returns for all else.
func (w *batch) judge(chain string, in bool) {
	there, here, up1, up2, unknown := chainBegunThere, chainBegunHere, chainTakenUpThere, chainTakenUpHere, chainUntrackedIn
	if !in { // what goes in goes the other way of what conntrack says
		there, here, up1, up2, unknown = here, there, up2, up1, chainUntrackedOut
	}
	for _, v6 := range []bool{false, true} {
		w.rule(chain, family(v6), direction(original), jump(there+suffix(v6)))
		w.rule(chain, family(v6), direction(reply), jump(here+suffix(v6)))
	}
	w.rule(chain, untracked, goTo(unknown))
	w.rule(chain, jump(chainOwn))
	w.rule(chain, tcp, flags(finSynRstAck, syn), verdict(expr.VerdictReturn))
	for _, v6 := range []bool{false, true} {
		w.rule(chain, family(v6), is(ctProto, byte(TCP)), direction(original), jump(up1+suffix(v6)))
		w.rule(chain, family(v6), is(ctProto, byte(TCP)), direction(reply), jump(up2+suffix(v6)))
	}
	w.untracked(unknown, in)
}

// untracked judges a packet by its headers alone: as one of who began a flow, then as a reply. A
// reply is told by its port alone, so a rule opens its flows the other way round too, but
// for what begins one: a SYN, a question of echo.
func (w *batch) untracked(chain string, in bool) {
	echo := map[bool]byte{false: 8, true: 128}
	name := func(what string, v6 bool) string { return chain + "-" + what + suffix(v6) }
	// Discovery of neighbours and of groups is never tracked, and no packet of a rule.
	w.rule(chain, is(meta(expr.MetaKeyL4PROTO), byte(icmp6)), payload(expr.PayloadBaseTransportHeader, 0, 1)(regAddr),
		[]expr.Any{&expr.Range{Op: expr.CmpOpEq, Register: regAddr, FromData: []byte{130}, ToData: []byte{143}}}, verdict(expr.VerdictReturn))
	w.rule(chain, counter)
	w.rule(chain, bits(ctState, expr.CtStateBitUNTRACKED, true), counter)
	for _, v6 := range []bool{false, true} {
		w.opened(name("packet", v6), v6, headers(v6, expr.PayloadBaseNetworkHeader, 0, in, false))
		w.opened(name("reply", v6), v6, headers(v6, expr.PayloadBaseNetworkHeader, 0, in, true))
		// Errors have the packet that they are about inside, which went the other way.
		w.opened(name("error", v6), v6, headers(v6, expr.PayloadBaseTransportHeader, 8, !in, false))
		w.opened(name("error-reply", v6), v6, headers(v6, expr.PayloadBaseTransportHeader, 8, !in, true))
		for _, typ := range errorTypes(v6) {
			is := slices.Concat(icmpOf(v6), is(payload(expr.PayloadBaseTransportHeader, 0, 1), typ))
			w.rule(chain, is, jump(name("error", v6)))
			w.rule(chain, is, jump(name("error-reply", v6)))
			w.rule(chain, is, verdict(expr.VerdictReturn))
		}
		w.rule(chain, family(v6), jump(name("packet", v6)))
	}
	w.rule(chain, tcp, flags(finSynRstAck, syn), verdict(expr.VerdictReturn))
	for _, v6 := range []bool{false, true} {
		w.rule(chain, icmpOf(v6), is(payload(expr.PayloadBaseTransportHeader, 0, 1), echo[v6]), verdict(expr.VerdictReturn))
		w.rule(chain, family(v6), jump(name("reply", v6)))
	}
}

// icmpOf matches ICMP of a family.
func icmpOf(v6 bool) []expr.Any {
	if v6 {
		return slices.Concat(family(v6), is(meta(expr.MetaKeyL4PROTO), byte(icmp6)))
	}
	return slices.Concat(family(v6), is(meta(expr.MetaKeyL4PROTO), byte(ICMP)))
}

// errorTypes are the ICMP errors: unreachable, too big, time exceeded, parameter problem.
func errorTypes(v6 bool) []byte {
	if v6 {
		return []byte{1, 2, 3, 4}
	}
	return []byte{3, 11, 12}
}

// own accepts flows that are no subject of rules.
func (w *batch) own() {
	for _, v6 := range []bool{false, true} {
		for _, e := range []ends{begunThere(v6), begunHere(v6)} {
			local, remote := e.to, e.from
			if e.local {
				local, remote = e.from, e.to
			}
			mine := append(local(regAddr), lookup("own"+suffix(v6), regAddr))
			icmp := byte(ICMP)
			if v6 {
				icmp = byte(icmp6)
			}
			// Which of the two directions is meant shows in what the addresses are.
			w.rule(chainOwn, family(v6), mine, remote(regAddr), []expr.Any{lookup("hubs"+suffix(v6), regAddr)}, accept)
			over := append(remote(regAddr), lookup("overlay"+suffix(v6), regAddr))
			w.rule(chainOwn, family(v6), mine, over, is(ctProto, icmp), accept)
			for _, p := range []Proto{TCP, UDP} {
				w.rule(chainOwn, family(v6), mine, over, is(ctProto, byte(p)), e.port(regAddr),
					[]expr.Any{&expr.Range{Op: expr.CmpOpEq, Register: regAddr, FromData: port(protocol.OverlayPortFirst), ToData: port(protocol.OverlayPortLast)}}, accept)
			}
		}
	}
}

func port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

// interval are the elements of a set of ranges for one range.
func interval(from, to netip.Addr, val []byte) []element {
	l := []element{{key: from.AsSlice(), data: val}}
	if end := to.Next(); end.IsValid() {
		l = append(l, element{key: end.AsSlice(), end: true})
	}
	return l
}

func prefixInterval(p netip.Prefix) []element {
	return interval(p.Addr(), netipx.PrefixLastIP(p), nil)
}
