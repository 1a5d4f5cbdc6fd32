package nf

import (
	"encoding/binary"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Reg is where matches load what they compare, 16 bytes: what lies in it is lost by any of them.
const Reg = unix.NFT_REG_1

// Directions of a flow (IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY).
const (
	Original = 0
	Reply    = 1
)

// Source loads something of a packet, or of its flow, into a register.
type Source func(reg uint32) []expr.Any

// Ct is something of the packet's flow.
func Ct(key expr.CtKey) Source {
	return func(reg uint32) []expr.Any { return []expr.Any{&expr.Ct{Register: reg, Key: key}} }
}

// CtDir is something of a direction of it.
func CtDir(key expr.CtKey, dir uint32) Source {
	return func(reg uint32) []expr.Any { return []expr.Any{ctOf{key: uint32(key), dir: dir, reg: reg}} }
}

// CtFrom and CtTo are an end of a flow in a direction of conntrack's.
func CtFrom(v6 bool, dir uint32) Source { return ctEnd(v6, 0, dir) }

// CtTo is the other end.
func CtTo(v6 bool, dir uint32) Source { return ctEnd(v6, 1, dir) }

func ctEnd(v6 bool, end expr.CtKey, dir uint32) Source {
	key := 19 + end // NFT_CT_SRC_IP, NFT_CT_DST_IP
	if v6 {
		key += 2 // NFT_CT_SRC_IP6, NFT_CT_DST_IP6
	}
	return CtDir(key, dir)
}

// Meta is something that the host knows of a packet.
func Meta(key expr.MetaKey) Source {
	return func(reg uint32) []expr.Any { return []expr.Any{&expr.Meta{Key: key, Register: reg}} }
}

// Payload is n bytes of a packet.
func Payload(base expr.PayloadBase, offset, n uint32) Source {
	return func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: n}}
	}
}

// Is matches what a source loads.
func Is(s Source, value ...byte) []expr.Any {
	return append(s(Reg), &expr.Cmp{Op: expr.CmpOpEq, Register: Reg, Data: value})
}

// Bits matches where some of the bits of mask are set, or with none where none is.
func Bits(s Source, mask uint32, some bool) []expr.Any {
	op := expr.CmpOpNeq
	if !some {
		op = expr.CmpOpEq
	}
	return append(s(Reg), &expr.Bitwise{SourceRegister: Reg, DestRegister: Reg, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: Reg, Data: make([]byte, 4)})
}

// Family matches packets of one family.
func Family(v6 bool) []expr.Any {
	if v6 {
		return Is(Meta(expr.MetaKeyNFPROTO), unix.NFPROTO_IPV6)
	}
	return Is(Meta(expr.MetaKeyNFPROTO), unix.NFPROTO_IPV4)
}

// Suffix ends the names of what there is of each family.
func Suffix(v6 bool) string {
	if v6 {
		return "6"
	}
	return "4"
}

// Lookup finds what a register has in a set or a map.
func Lookup(set string, from uint32, to ...uint32) expr.Any {
	l := &expr.Lookup{SourceRegister: from, SetName: set}
	if len(to) > 0 {
		l.DestRegister, l.IsDestRegSet = to[0], true
	}
	return l
}

// Count counts in a set that rules add to, by what lies in a register; where the set is full it does not match.
func Count(set string, from uint32) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: from, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{&expr.Counter{}}}}
}

// Verdict is one, with a chain where it takes one.
func Verdict(k expr.VerdictKind, chain ...string) []expr.Any {
	v := &expr.Verdict{Kind: k}
	if len(chain) > 0 {
		v.Chain = chain[0]
	}
	return []expr.Any{v}
}

// Jump goes to a chain and comes back.
func Jump(chain string) []expr.Any { return Verdict(expr.VerdictJump, chain) }

// GoTo goes to a chain.
func GoTo(chain string) []expr.Any { return Verdict(expr.VerdictGoto, chain) }

// Device matches an interface.
func Device(key expr.MetaKey, name string) []expr.Any {
	b := make([]byte, 16)
	copy(b, name)
	return Is(Meta(key), b...)
}

// NotDevice matches all others.
func NotDevice(key expr.MetaKey, name string) []expr.Any {
	l := Device(key, name)
	l[len(l)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return l
}

// What many rules match.
var (
	TCP      = Is(Meta(expr.MetaKeyL4PROTO), unix.IPPROTO_TCP)
	CtProto  = Ct(expr.CtKeyPROTOCOL)
	CtState  = Ct(expr.CtKeySTATE)
	Counter  = []expr.Any{&expr.Counter{}}
	TCPReset = []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
)

// TCP flags; FlagsOfSYN are those of which the first packet of a connection has SYN alone.
const (
	SYN        = 0x02
	RST        = 0x04
	ACK        = 0x10
	FlagsOfSYN = 0x17 // FIN, SYN, RST, ACK
)

// Bits of a flow's status.
const (
	StatusAssured   = 1 << 2 // IPS_ASSURED: its handshake is complete
	StatusConfirmed = 1 << 3 // IPS_CONFIRMED: its first packet has passed
	StatusDNAT      = 1 << 5 // IPS_DST_NAT: its destination was translated
)

// TCPFlags matches TCP flags of a mask.
func TCPFlags(mask, value byte) []expr.Any {
	return append(Payload(expr.PayloadBaseTransportHeader, 13, 1)(Reg), &expr.Bitwise{SourceRegister: Reg, DestRegister: Reg, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: Reg, Data: []byte{value}})
}

// Direction matches packets of a direction of their flow.
func Direction(d byte) []expr.Any { return Is(Ct(expr.CtKeyDIRECTION), d) }

// Port is a port as packets have it.
func Port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
