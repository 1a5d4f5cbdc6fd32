package service

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/nf"
)

// What a backend does with connections is seen by what passes: rules count, for each client and backend, the connections that begin, those
// that are answered and those that are refused. They count the handshake alone; what is in an open connection is none of a backend's signs.

// Sign is whom it is about: connections of a client to a backend.
type Sign struct {
	Backend Backend
	Client  netip.Addr // as it was before any translation
}

// Signs are how many there were since somebody began to count.
type Signs struct {
	Tried    uint64 // TCP: SYNs of new connections that left, each once
	Answered uint64 // TCP: SYN-ACKs; UDP: answers of flows that are new
	Refused  uint64 // resets in place of a SYN-ACK, and ICMP that says unreachable
}

const (
	// MaxSigns is how many clients and backends of a family are counted by; more are not.
	MaxSigns = 4096
	// signTime is how long one is kept that is not met again.
	signTime = time.Minute
)

// The sets that are counted in, of client . backend . protocol . port.
const (
	setTried    = "tried"
	setAnswered = "answered"
	setRefused  = "refused"
)

func signSets(e epoch, v6 bool) (out []nf.Set) {
	a := addrType(v6)
	for _, name := range []string{setTried, setAnswered, setRefused} {
		out = append(out, nf.Set{Name: e.set(name, v6), Key: []nftables.SetDatatype{a, a, nftables.TypeInetProto, nftables.TypeInetService}, Size: MaxSigns, Timeout: signTime})
	}
	return out
}

// ICMP that says that there is no way to somebody, or that he refuses: types and a code.
const (
	icmpUnreachable  = 3
	icmpFragment     = 4 // a code: it is too large, and no sign
	icmp6Unreachable = 1
)

// signs writes the rules that count. None has a verdict.
func signs(b *nf.Batch, e epoch) {
	dnat := nf.Bits(nf.Ct(expr.CtKeySTATUS), nf.StatusDNAT, true)
	first := nf.Bits(nf.Ct(expr.CtKeySTATUS), nf.StatusConfirmed, false)
	fresh := nf.Bits(nf.Ct(expr.CtKeySTATUS), nf.StatusAssured, false)
	icmp := nf.Payload(expr.PayloadBaseTransportHeader, 0, 1)
	code := nf.Payload(expr.PayloadBaseTransportHeader, 1, 1)
	for _, v6 := range []bool{false, true} {
		n := nf.Suffix(v6)
		who := func(set string) []expr.Any { return countSign(e.set(set, v6), v6) }
		b.Rule(chainTries, nf.TCP, nf.TCPFlags(nf.FlagsOfSYN, nf.SYN), first, dnat, e.in(nf.CtTo(v6, nf.Original), setRange, v6), nf.GoTo(chainTry+n))
		b.Rule(chainTry+n, who(setTried))

		b.Rule(chainSign+n, nf.TCP, nf.TCPFlags(nf.FlagsOfSYN, nf.SYN|nf.ACK), who(setAnswered), nf.Verdict(expr.VerdictReturn))
		b.Rule(chainSign+n, nf.TCP, nf.TCPFlags(nf.RST, nf.RST), fresh, who(setRefused), nf.Verdict(expr.VerdictReturn))
		b.Rule(chainSign+n, nf.Is(nf.Meta(expr.MetaKeyL4PROTO), unix.IPPROTO_UDP), fresh, who(setAnswered), nf.Verdict(expr.VerdictReturn))
		if v6 {
			b.Rule(chainSign+n, nf.Is(nf.Meta(expr.MetaKeyL4PROTO), unix.IPPROTO_ICMPV6), nf.Is(icmp, icmp6Unreachable), fresh, who(setRefused))
			continue
		}
		size := nf.Is(code, icmpFragment)
		b.Rule(chainSign+n, nf.Is(nf.Meta(expr.MetaKeyL4PROTO), unix.IPPROTO_ICMP), nf.Is(icmp, icmpUnreachable), size, nf.Verdict(expr.VerdictReturn))
		b.Rule(chainSign+n, nf.Is(nf.Meta(expr.MetaKeyL4PROTO), unix.IPPROTO_ICMP), nf.Is(icmp, icmpUnreachable), fresh, who(setRefused))
	}
}

// countSign counts a flow's packet in a set.
func countSign(set string, v6 bool) (l []expr.Any) {
	size := after(v6) - regs // of an address, in registers
	l = append(l, nf.CtFrom(v6, nf.Original)(regs)...)
	l = append(l, nf.CtFrom(v6, nf.Reply)(regs+size)...)
	l = append(l, nf.CtProto(regs+2*size)...)
	l = append(l, nf.CtDir(expr.CtKeyPROTOSRC, nf.Reply)(regs+2*size+1)...)
	return append(l, nf.Count(set, regs)...)
}

// Signs are what was counted. What was not met for a minute is forgotten; a table that was written anew begins to count anew.
func (t *Table) Signs(ctx context.Context) (map[Sign]Signs, error) {
	t.mu.Lock()
	h := t.have
	t.mu.Unlock()
	out := map[Sign]Signs{}
	if h == nil || h.lacks[lackCount] {
		return out, nil
	}
	for _, v6 := range []bool{false, true} {
		for _, set := range []string{setTried, setAnswered, setRefused} {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			l, err := nf.ListCounted(TableName, h.epoch.set(set, v6))
			if err != nil {
				return nil, err
			}
			for _, x := range l {
				k, ok := readSign(x.Key, v6)
				if !ok {
					continue
				}
				n := out[k]
				switch set {
				case setTried:
					n.Tried = x.Packets
				case setAnswered:
					n.Answered = x.Packets
				case setRefused:
					n.Refused = x.Packets
				}
				out[k] = n
			}
		}
	}
	return out, nil
}

// readSign reads a key: two addresses, a protocol and a port, each in multiples of four bytes.
func readSign(b []byte, v6 bool) (s Sign, ok bool) {
	n := 4
	if v6 {
		n = 16
	}
	if len(b) != 2*n+8 {
		return s, false
	}
	s.Client, _ = netip.AddrFromSlice(b[:n])
	to, _ := netip.AddrFromSlice(b[n : 2*n])
	s.Backend = Backend{b[2*n], netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2*n+4:]))}
	return s, true
}
