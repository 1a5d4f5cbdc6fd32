package service

import (
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/nf"
)

// MaxExposed is how many addresses and ports of a host lead to services.
const MaxExposed = 4096

// The chains of what comes to an address of the host's own that leads to a service.
const (
	chainOutside = "outside" // is it?
	chainGuest   = "guest"   // whose source a backend does not see
)

// setExposed are such addresses, with protocol and port.
const setExposed = "exposed"

// expose takes in where a service is met from outside: it has its slots there, too. All services are there by then.
func (l live) expose(s Service) error {
	k := s.key()
	for _, a := range s.Expose {
		d := key{a.Addr(), s.Proto, a.Port()}
		if err := plain(a.Addr()); err != nil {
			return fmt.Errorf("service: %s: exposed at %s, which %w", k, a, err)
		}
		if a.Addr().Is4() != s.VIP.Is4() || a.Port() == 0 {
			return fmt.Errorf("service: %s: exposed at %s, which is of another family, or without a port", k, a)
		}
		if l.services[d] != nil {
			return fmt.Errorf("service: %s is exposed at %s, where another one is", k, a)
		}
		if l.services[d], l.exposed[d] = l.services[k], k; len(l.exposed) > MaxExposed {
			return fmt.Errorf("service: more than %d addresses and ports are exposed", MaxExposed)
		}
	}
	return nil
}

// doors adds what of exposed is new against before, and deletes what is not there any more.
func doors(b *nf.Batch, e epoch, exposed, before map[key]key) {
	elements := func(l, other map[key]key, v6 bool) (out []nf.Element) {
		for d := range l {
			if _, there := other[d]; !there && d.vip.Is6() == v6 {
				out = append(out, nf.Element{Key: append(d.vip.AsSlice(), d.proto, 0, 0, 0, byte(d.port>>8), byte(d.port), 0, 0)})
			}
		}
		return out
	}
	for _, v6 := range []bool{false, true} {
		b.Elements(e.set(setExposed, v6), false, elements(before, exposed, v6))
		b.Elements(e.set(setExposed, v6), true, elements(exposed, before, v6))
	}
}

// met matches packets to an address that leads to a service.
func (e epoch) met(v6 bool) []expr.Any {
	next := after(v6)
	return slices.Concat(nf.Family(v6), to(v6)(regs), nf.Meta(expr.MetaKeyL4PROTO)(next), nf.Payload(expr.PayloadBaseTransportHeader, 2, 2)(next+1),
		[]expr.Any{nf.Lookup(e.set(setExposed, v6), regs)})
}

// guest matches packets of flows that came by such an address.
func (e epoch) guest(v6 bool) []expr.Any {
	next := after(v6)
	return slices.Concat(nf.Bits(nf.Ct(expr.CtKeySTATUS), nf.StatusDNAT, true), nf.Family(v6), nf.CtTo(v6, nf.Original)(regs), nf.CtProto(next),
		nf.CtDir(expr.CtKeyPROTODST, nf.Original)(next+1), []expr.Any{nf.Lookup(e.set(setExposed, v6), regs)})
}

// outside writes how what comes to an address of the host's own is led to a service. A backend sees the source where its answer comes
// by this host for sure: the host itself, its own containers, and what leaves by the tunnel with a source that peers know.
func outside(b *nf.Batch, h host, e epoch, lacks lacking) {
	back := nf.Verdict(expr.VerdictReturn)
	b.Rule(chainPre, nf.Jump(chainOutside))
	for _, v6 := range []bool{false, true} {
		n := nf.Suffix(v6)
		b.Rule(chainOutside, nf.TCP, nf.TCPFlags(nf.FlagsOfSYN, nf.SYN), e.met(v6), nf.GoTo(chainPick+n))
		b.Rule(chainOutside, nf.Is(nf.Meta(expr.MetaKeyL4PROTO), unix.IPPROTO_UDP), e.met(v6), nf.GoTo(chainPick+n))
		b.Rule(chainFlow, e.guest(v6), nf.GoTo(chainFlow+n))
		b.Rule(chainPost, e.guest(v6), nf.GoTo(chainGuest+n))
		b.Rule(chainGuest+n, nf.Device(expr.MetaKeyOIFNAME, h.device), nf.GoTo(chainLeaves+n))
		if !lacks[lackPairs] {
			b.Rule(chainGuest+n, nf.Family(v6), from(v6)(regs), to(v6)(after(v6)), []expr.Any{nf.Lookup(e.set(setSame, v6), regs), &expr.Masq{}})
		}
		for _, dev := range h.inside {
			b.Rule(chainGuest+n, nf.Device(expr.MetaKeyOIFNAME, dev), back)
		}
		b.Rule(chainGuest+n, []expr.Any{&expr.Masq{}})
	}
}
