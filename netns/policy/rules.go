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
	"causeway/netns/internal/nf"
	"causeway/netns/internal/prod"
	"causeway/protocol"
)

// The chains of the table. What comes out of the tunnel is judged before destination NAT, what
// goes in where it can still be answered; what gets its last source or way only afterwards is
// judged at the end once more, where it can only be dropped.
const (
	chainIn      = "in"      // prerouting: out of the tunnel
	chainForward = "forward" // into the tunnel, of pods and LANs
	// chainTranslated is at prerouting: what will go into the tunnel once it is translated, of flows that were. Where bridges hand
	// frames to netfilter, a reset is sent by the bridge as it is, so it comes from a service's address before that alone.
	chainTranslated = "translated"
	chainOutput     = "output" // into the tunnel, of the host itself
	chainLast       = "last"   // postrouting: into the tunnel, what those two could not judge

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
	regKey  = unix.NFT_REG32_08 // the first of three that are looked up together
	regKey2 = unix.NFT_REG32_09
	regKey3 = unix.NFT_REG32_10

	icmpxAdm    = 3                // NFT_REJECT_ICMPX_ADMIN_PROHIBITED
	metaIIFKind = expr.MetaKey(26) // NFT_META_IIFKIND
)

// ends are where a rule finds the two ends of a flow: who began it, and what it was begun to.
type ends struct {
	from, to    nf.Source
	proto, port nf.Source
	local       bool // who began it lives at this node
}

// Flows as conntrack has them, by the addresses that they have inside the tunnel: what NAT
// makes of them at this host is in conntrack's other direction.

func begunThere(v6 bool) ends {
	return ends{nf.CtFrom(v6, nf.Original), nf.CtTo(v6, nf.Original), nf.CtProto, nf.CtDir(expr.CtKeyPROTODST, nf.Original), false}
}

func begunHere(v6 bool) ends {
	return ends{nf.CtTo(v6, nf.Reply), nf.CtFrom(v6, nf.Reply), nf.CtProto, nf.CtDir(expr.CtKeyPROTOSRC, nf.Reply), true}
}

// Conntrack took up a connection in its middle, by a packet of who had not begun it: from the
// other side, or from here. Only TCP tells: by a packet that cannot begin one.

func takenUpThere(v6 bool) ends {
	return ends{nf.CtTo(v6, nf.Original), nf.CtFrom(v6, nf.Original), nf.CtProto, nf.CtDir(expr.CtKeyPROTOSRC, nf.Original), true}
}

func takenUpHere(v6 bool) ends {
	return ends{nf.CtFrom(v6, nf.Reply), nf.CtTo(v6, nf.Reply), nf.CtProto, nf.CtDir(expr.CtKeyPROTODST, nf.Reply), false}
}

// headers are the ends of a packet as its headers have them, at offsets from a base. reply: it
// is one, so the ends are the other way round. in: it comes out of the tunnel.
func headers(v6 bool, base expr.PayloadBase, at uint32, in, isReply bool) ends {
	src, dst, n, proto := at+12, at+16, uint32(4), at+9
	transport, l4 := at+20, expr.PayloadBaseTransportHeader
	if v6 {
		src, dst, n, proto, transport = at+8, at+24, 16, at+6, at+40
	}
	protocol := nf.Payload(base, proto, 1)
	if base == expr.PayloadBaseNetworkHeader {
		transport, protocol = 0, nf.Meta(expr.MetaKeyL4PROTO)
	}
	e := ends{nf.Payload(base, src, n), nf.Payload(base, dst, n), protocol, nf.Payload(l4, transport+2, 2), !in}
	if isReply {
		e = ends{e.to, e.from, protocol, nf.Payload(l4, transport, 2), in}
	}
	return e
}

// opened writes a chain that accepts what a rule opens, and returns for all else.
//
// A class lies in the packet's priority in between: what a map gives can be no part of a key
// but by way of something of the packet (the program nft aborts where it lists that), and marks are
// other programs'. It is 0 again where a packet goes on.
func (w *batch) opened(chain string, v6 bool, e ends) {
	w.Chain(chain, nil, 0)
	w.Chain(chain+"-known", nil, 0)
	remote, local, side := e.from, e.to, sideTo
	if e.local {
		remote, local, side = e.to, e.from, sideFrom
	}
	w.Rule(chain, remote(nf.Reg), []expr.Any{nf.Lookup("remote"+nf.Suffix(v6), nf.Reg, regKey)}, priority, nf.Jump(chain+"-known"))
	chain += "-known"
	w.Rule(chain, local(nf.Reg), []expr.Any{nf.Lookup(side+nf.Suffix(v6), nf.Reg, unix.NFT_REG_VERDICT)})
	for _, m := range []string{mapPort, mapPorts} {
		w.Rule(chain, nf.Meta(expr.MetaKeyPRIORITY)(regKey), e.proto(regKey2), e.port(regKey3), []expr.Any{nf.Lookup(m, regKey, unix.NFT_REG_VERDICT)})
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
	w.Chain(name, nil, 0)
	w.Rule(name, nf.Meta(expr.MetaKeyPRIORITY)(regKey), []expr.Any{nf.Lookup(name, regKey, regKey)}, priority)
}

var accept = nf.Verdict(expr.VerdictAccept)

// hasSocket matches any user of a socket that there is.
var hasSocket = append(nf.Meta(expr.MetaKeySKUID)(nf.Reg), &expr.Cmp{Op: expr.CmpOpNeq, Register: nf.Reg, Data: []byte{255, 255, 255, 255}})

var (
	isNew     = nf.Bits(nf.CtState, expr.CtStateBitNEW, true)
	untracked = nf.Bits(nf.CtState, expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED, true)
)

// rules writes all chains but those of rules by name, and those that the kernel calls, anew.
func (w *batch) rules() {
	for _, n := range []string{chainJudgeIn, chainJudgeOut, chainOwn, chainRefuse, chainRefuseOut, chainAnswers, chainTold, chainToldBack, chainUntrackedIn, chainUntrackedOut} {
		w.Chain(n, nil, 0)
	}
	for _, v6 := range []bool{false, true} {
		w.opened(chainBegunThere+nf.Suffix(v6), v6, begunThere(v6))
		w.opened(chainBegunHere+nf.Suffix(v6), v6, begunHere(v6))
		w.opened(chainTakenUpThere+nf.Suffix(v6), v6, takenUpThere(v6))
		w.opened(chainTakenUpHere+nf.Suffix(v6), v6, takenUpHere(v6))
	}
	w.judge(chainJudgeIn, true)
	w.judge(chainJudgeOut, false)

	// A source that is none of this node's may become one by source NAT: see the last chain.
	for _, v6 := range []bool{false, true} {
		w.Rule(chainRefuseOut, isNew, nf.Family(v6), begunHere(v6).from(nf.Reg), []expr.Any{nf.Lookup("local"+nf.Suffix(v6), nf.Reg)}, nf.GoTo(chainRefuse))
	}
	w.Rule(chainRefuseOut, isNew, accept)
	w.Rule(chainRefuseOut, nf.GoTo(chainRefuse))
	// Netfilter's resets have no socket; what a program of the host sends has.
	w.Rule(chainAnswers, nf.TCP, nf.TCPFlags(nf.RST, nf.RST), hasSocket, nf.Verdict(expr.VerdictReturn))
	w.Rule(chainAnswers, nf.TCP, nf.TCPFlags(nf.RST, nf.RST), nf.Bits(nf.CtState, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, true), accept)
	w.Rule(chainAnswers, nf.Is(nf.Meta(expr.MetaKeyL4PROTO), byte(ICMP)), nf.Is(nf.Payload(expr.PayloadBaseTransportHeader, 0, 2), 3, 13), accept)
	w.Rule(chainAnswers, nf.Is(nf.Meta(expr.MetaKeyL4PROTO), byte(icmp6)), nf.Is(nf.Payload(expr.PayloadBaseTransportHeader, 0, 2), 1, 1), accept)

	prohibited := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: icmpxAdm}}
	w.Rule(chainRefuse, nf.Counter)
	w.Rule(chainRefuse, nf.Jump(chainTold))
	// The first packet of what a pod on a bridge begins is translated here already: see chainTranslated.
	w.Rule(chainRefuse, nf.TCP, nf.Device(metaIIFKind, "bridge"), nf.TCPFlags(nf.FlagsOfSYN, nf.SYN), nf.Bits(nf.Ct(expr.CtKeySTATUS), nf.StatusDNAT, true), prohibited)
	w.Rule(chainRefuse, nf.TCP, nf.TCPReset)
	w.Rule(chainRefuse, prohibited)
	w.own()
}

// hooks writes the chains that the kernel calls, anew.
func (w *batch) hooks(c Config) {
	for _, b := range []struct {
		name     string
		hook     *nftables.ChainHook
		priority int32
	}{
		{chainIn, nftables.ChainHookPrerouting, -140},         // conntrack -200, destination NAT -100
		{chainTranslated, nftables.ChainHookPrerouting, -170}, // conntrack -200, destination NAT -100
		{chainForward, nftables.ChainHookForward, -160},       // before others drop without an answer
		{chainOutput, nftables.ChainHookOutput, -50},          // after destination NAT
		{chainLast, nftables.ChainHookPostrouting, 250},       // after source NAT
	} {
		w.Chain(b.name, b.hook, b.priority)
	}
	prod.Rule(&w.Batch) // of Tell
	for n, way := range map[string]expr.MetaKey{chainIn: expr.MetaKeyIIFNAME, chainForward: expr.MetaKeyOIFNAME, chainLast: expr.MetaKeyOIFNAME} {
		w.Rule(n, nf.NotDevice(way, c.Interface), nf.Verdict(expr.VerdictReturn))
		// Whether firewalls let them pass is tried for open and closed alike.
		w.Rule(n, nf.Is(nf.Meta(expr.MetaKeyMARK), binary.NativeEndian.AppendUint32(nil, netns.TrialMark)...), nf.Verdict(expr.VerdictReturn))
	}
	w.Rule(chainIn, nf.Jump(chainJudgeIn))
	w.Rule(chainIn, nf.GoTo(chainRefuse))
	w.Rule(chainForward, nf.Jump(chainJudgeOut))
	w.Rule(chainForward, nf.GoTo(chainRefuseOut))
	out := nf.Device(expr.MetaKeyOIFNAME, c.Interface)
	w.Rule(chainOutput, out, nf.Jump(chainJudgeOut))
	w.Rule(chainOutput, out, nf.Jump(chainAnswers))
	w.Rule(chainOutput, out, nf.GoTo(chainRefuseOut))
	// A program of the host that speaks to a service's address: the kernel tells of the way that
	// the packet had before destination NAT gave it a remote end. Where it is not known yet
	// that it is closed, the last chain drops it.
	w.Rule(chainTranslated, nf.Bits(nf.Ct(expr.CtKeySTATUS), nf.StatusDNAT, false), nf.Verdict(expr.VerdictReturn)) // nearly all
	w.Rule(chainTranslated, nf.Device(expr.MetaKeyIIFNAME, c.Interface), nf.Verdict(expr.VerdictReturn))
	for _, v6 := range []bool{false, true} {
		e := begunHere(v6)
		dnat := slices.Concat(nf.Family(v6), nf.Direction(nf.Original), nf.Bits(nf.Ct(expr.CtKeySTATUS), nf.StatusDNAT, true), e.to(nf.Reg),
			[]expr.Any{nf.Lookup("remote"+nf.Suffix(v6), nf.Reg, regKey)})
		for _, n := range []string{chainOutput, chainTranslated} {
			w.Rule(n, dnat, nf.Jump(chainJudgeOut))
			w.Rule(n, dnat, nf.GoTo(chainRefuseOut))
		}
	}
	// Judged before, but for what begins, and what changed its way after the host's routing.
	w.Rule(chainLast, nf.Bits(nf.CtState, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, true), nf.Bits(nf.Ct(expr.CtKeySTATUS), nf.StatusDNAT, false), accept)
	w.Rule(chainLast, nf.Jump(chainJudgeOut))
	w.Rule(chainLast, nf.Jump(chainAnswers))
	w.Rule(chainLast, nf.Jump(chainTold))
	w.Rule(chainLast, nf.Counter, nf.Verdict(expr.VerdictDrop))
}

// judge writes the chain that accepts what is open and returns for all else.
func (w *batch) judge(chain string, in bool) {
	there, here, up1, up2, unknown := chainBegunThere, chainBegunHere, chainTakenUpThere, chainTakenUpHere, chainUntrackedIn
	if !in { // what goes in goes the other way of what conntrack says
		there, here, up1, up2, unknown = here, there, up2, up1, chainUntrackedOut
	}
	for _, v6 := range []bool{false, true} {
		w.Rule(chain, nf.Family(v6), nf.Direction(nf.Original), nf.Jump(there+nf.Suffix(v6)))
		w.Rule(chain, nf.Family(v6), nf.Direction(nf.Reply), nf.Jump(here+nf.Suffix(v6)))
	}
	w.Rule(chain, untracked, nf.GoTo(unknown))
	w.Rule(chain, nf.Jump(chainOwn))
	w.Rule(chain, nf.TCP, nf.TCPFlags(nf.FlagsOfSYN, nf.SYN), nf.Verdict(expr.VerdictReturn))
	for _, v6 := range []bool{false, true} {
		w.Rule(chain, nf.Family(v6), nf.Is(nf.CtProto, byte(TCP)), nf.Direction(nf.Original), nf.Jump(up1+nf.Suffix(v6)))
		w.Rule(chain, nf.Family(v6), nf.Is(nf.CtProto, byte(TCP)), nf.Direction(nf.Reply), nf.Jump(up2+nf.Suffix(v6)))
	}
	w.untracked(unknown, in)
}

// untracked judges a packet by its headers alone: as one of who began a flow, then as a reply. A
// reply is told by its port alone, so a rule opens its flows the other way round too, but
// for what begins one: a SYN, a question of echo.
func (w *batch) untracked(chain string, in bool) {
	echo := map[bool]byte{false: 8, true: 128}
	name := func(what string, v6 bool) string { return chain + "-" + what + nf.Suffix(v6) }
	// Discovery of neighbours and of groups is never tracked, and no packet of a rule.
	w.Rule(chain, nf.Is(nf.Meta(expr.MetaKeyL4PROTO), byte(icmp6)), nf.Payload(expr.PayloadBaseTransportHeader, 0, 1)(nf.Reg),
		[]expr.Any{&expr.Range{Op: expr.CmpOpEq, Register: nf.Reg, FromData: []byte{130}, ToData: []byte{143}}}, nf.Verdict(expr.VerdictReturn))
	w.Rule(chain, nf.Counter)
	w.Rule(chain, nf.Bits(nf.CtState, expr.CtStateBitUNTRACKED, true), nf.Counter)
	for _, v6 := range []bool{false, true} {
		w.opened(name("packet", v6), v6, headers(v6, expr.PayloadBaseNetworkHeader, 0, in, false))
		w.opened(name("reply", v6), v6, headers(v6, expr.PayloadBaseNetworkHeader, 0, in, true))
		// Errors have the packet that they are about inside, which went the other way.
		w.opened(name("error", v6), v6, headers(v6, expr.PayloadBaseTransportHeader, 8, !in, false))
		w.opened(name("error-reply", v6), v6, headers(v6, expr.PayloadBaseTransportHeader, 8, !in, true))
		for _, typ := range errorTypes(v6) {
			is := slices.Concat(icmpOf(v6), nf.Is(nf.Payload(expr.PayloadBaseTransportHeader, 0, 1), typ))
			w.Rule(chain, is, nf.Jump(name("error", v6)))
			w.Rule(chain, is, nf.Jump(name("error-reply", v6)))
			w.Rule(chain, is, nf.Verdict(expr.VerdictReturn))
		}
		w.Rule(chain, nf.Family(v6), nf.Jump(name("packet", v6)))
	}
	w.Rule(chain, nf.TCP, nf.TCPFlags(nf.FlagsOfSYN, nf.SYN), nf.Verdict(expr.VerdictReturn))
	for _, v6 := range []bool{false, true} {
		w.Rule(chain, icmpOf(v6), nf.Is(nf.Payload(expr.PayloadBaseTransportHeader, 0, 1), echo[v6]), nf.Verdict(expr.VerdictReturn))
		w.Rule(chain, nf.Family(v6), nf.Jump(name("reply", v6)))
	}
}

// icmpOf matches ICMP of a family.
func icmpOf(v6 bool) []expr.Any {
	if v6 {
		return slices.Concat(nf.Family(v6), nf.Is(nf.Meta(expr.MetaKeyL4PROTO), byte(icmp6)))
	}
	return slices.Concat(nf.Family(v6), nf.Is(nf.Meta(expr.MetaKeyL4PROTO), byte(ICMP)))
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
			mine := append(local(nf.Reg), nf.Lookup("own"+nf.Suffix(v6), nf.Reg))
			icmp := byte(ICMP)
			if v6 {
				icmp = byte(icmp6)
			}
			// Which of the two directions is meant shows in what the addresses are.
			w.Rule(chainOwn, nf.Family(v6), mine, remote(nf.Reg), []expr.Any{nf.Lookup("hubs"+nf.Suffix(v6), nf.Reg)}, accept)
			over := append(remote(nf.Reg), nf.Lookup("overlay"+nf.Suffix(v6), nf.Reg))
			w.Rule(chainOwn, nf.Family(v6), mine, over, nf.Is(nf.CtProto, icmp), accept)
			for _, p := range []Proto{TCP, UDP} {
				w.Rule(chainOwn, nf.Family(v6), mine, over, nf.Is(nf.CtProto, byte(p)), e.port(nf.Reg),
					[]expr.Any{&expr.Range{Op: expr.CmpOpEq, Register: nf.Reg, FromData: nf.Port(protocol.OverlayPortFirst), ToData: nf.Port(protocol.OverlayPortLast)}}, accept)
			}
		}
	}
}

// interval are the elements of a set of ranges for one range.
func interval(from, to netip.Addr, val []byte) []nf.Element {
	l := []nf.Element{{Key: from.AsSlice(), Data: val}}
	if end := to.Next(); end.IsValid() {
		l = append(l, nf.Element{Key: end.AsSlice(), End: true})
	}
	return l
}

func prefixInterval(p netip.Prefix) []nf.Element {
	return interval(p.Addr(), netipx.PrefixLastIP(p), nil)
}
