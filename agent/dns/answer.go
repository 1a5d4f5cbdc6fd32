package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	// maxQuery is the longest question that is read. One with a name as long as they can be and EDNS0 has 300 bytes.
	maxQuery = 1232
	// maxUDP is the longest answer by UDP: what passes every IPv6 path without fragments (DNS flag day 2020).
	maxUDP = 1232
	// maxAnswer is the longest answer by TCP.
	maxAnswer = dns.MaxMsgSize
)

// answer answers one message; nil: it is none that has an answer. code is what metrics count it as. It is pure: equal
// questions have equal answers, whose order follows the question's number.
func (z *zone) answer(query []byte, tcp bool) (out []byte, code string) {
	const headerLen = 12
	if len(query) < headerLen || len(query) > maxQuery || query[2]&0x80 != 0 { // an answer is not answered
		return nil, codeDropped
	}
	var q, a dns.Msg
	if err := q.Unpack(query); err != nil {
		// All that is known is how it began.
		out := make([]byte, headerLen)
		copy(out, query[:2])
		out[2] = 0x80 | query[2]&0x79 // opcode and RD as they came
		out[3] = dns.RcodeFormatError
		return out, codeOf(dns.RcodeFormatError)
	}
	a.SetReply(&q)
	a.Compress = true
	size, opt := edns(&q, &a)
	if tcp {
		size = maxAnswer
	}
	if a.Rcode == dns.RcodeSuccess {
		z.fill(&q, &a)
	}
	code = codeOf(a.Rcode)
	if opt != nil {
		a.Extra = append(a.Extra, opt)
	}
	if a.Len() > size { // addresses that nobody asked for go first, which is no truncation
		a.Extra = slices.DeleteFunc(a.Extra, func(r dns.RR) bool { return r != dns.RR(opt) })
	}
	a.Truncate(size)
	out, err := a.Pack()
	if err != nil { // only what is in the view could cause it, and that was looked at
		return nil, codeDropped
	}
	return out, code
}

// edns reads what the question says of EDNS0 (RFC 6891): how long an answer may be, and the record that goes with it.
func edns(q, a *dns.Msg) (size int, answer *dns.OPT) {
	var opts []*dns.OPT
	for _, r := range q.Extra {
		if o, ok := r.(*dns.OPT); ok {
			opts = append(opts, o)
		}
	}
	if len(opts) == 0 {
		return dns.MinMsgSize, nil
	}
	answer = &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	answer.SetUDPSize(maxUDP)
	switch {
	case len(opts) > 1:
		a.Rcode = dns.RcodeFormatError
	case opts[0].Version() != 0:
		a.Rcode = dns.RcodeBadVers
	}
	return min(max(int(opts[0].UDPSize()), dns.MinMsgSize), maxUDP), answer
}

// fill says what there is to the question, or why nothing.
func (z *zone) fill(q, a *dns.Msg) {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		a.Rcode = dns.RcodeNotImplemented
		return
	case len(q.Question) != 1:
		a.Rcode = dns.RcodeFormatError
		return
	}
	ask := q.Question[0]
	labels, ours := inZone(ask.Name)
	switch t := ask.Qtype; {
	case ask.Qclass != dns.ClassINET, !ours, t == dns.TypeAXFR, t == dns.TypeIXFR:
		a.Rcode = dns.RcodeRefused
		return
	case t == dns.TypeOPT, t == dns.TypeNone, t >= 128 && t < dns.TypeANY: // no type that data has (RFC 6895)
		a.Rcode = dns.RcodeNotImplemented
		return
	}
	a.Authoritative = true
	f := z.find(labels)
	if !f.exists {
		a.Rcode = dns.RcodeNameError
	}
	a.Answer, a.Extra = z.records(ask, f, q.Id)
	if len(a.Answer) == 0 {
		a.Ns = []dns.RR{z.soa(ttlNone)}
	}
}

// inZone is a name's labels from the zone's own down, in lower case.
func inZone(name string) (labels []string, ours bool) {
	name = strings.ToLower(name)
	if name != Zone && !strings.HasSuffix(name, "."+Zone) {
		return nil, false
	}
	labels = dns.SplitDomainName(name)
	if len(labels) == 0 || labels[len(labels)-1]+"." != Zone { // the dot before it may be part of a label
		return nil, false
	}
	labels = labels[:len(labels)-1]
	slices.Reverse(labels)
	return labels, true
}

// records are those of a type at a name, and the addresses of what they point to.
func (z *zone) records(ask dns.Question, f found, turn uint16) (out, extra []dns.RR) {
	head := func(typ uint16) dns.RR_Header {
		return dns.RR_Header{Name: ask.Name, Rrtype: typ, Class: dns.ClassINET, Ttl: f.ttl}
	}
	switch t := ask.Qtype; {
	case t == dns.TypeA, t == dns.TypeAAAA:
		of := slices.DeleteFunc(slices.Clone(f.addrs), func(x netip.Addr) bool { return x.Is4() != (t == dns.TypeA) })
		for _, x := range turned(of, turn) {
			out = append(out, address(ask.Name, f.ttl, x))
		}
	case t == dns.TypeSRV:
		for _, s := range turned(f.srv, turn) {
			out = append(out, &dns.SRV{Hdr: head(dns.TypeSRV), Weight: 1, Port: s.port, Target: s.name})
			for _, x := range s.addrs {
				extra = append(extra, address(s.name, f.ttl, x))
			}
		}
	case t == dns.TypeSOA && f.top:
		out = append(out, z.soa(ttlVIP))
	case t == dns.TypeNS && f.top:
		ns := nameServer + "." + Zone
		out = append(out, &dns.NS{Hdr: head(dns.TypeNS), Ns: ns})
		for _, x := range valid(z.view.Address) {
			extra = append(extra, address(ns, f.ttl, x))
		}
	case t == dns.TypeANY && (f.top || len(f.addrs)+len(f.srv) > 0):
		out = append(out, &dns.HINFO{Hdr: head(dns.TypeHINFO), Cpu: "RFC8482"})
	}
	return out, extra
}

// turned is l from another beginning on, so that not all clients take the first.
func turned[T any](l []T, turn uint16) []T {
	if len(l) == 0 {
		return nil
	}
	n := int(turn) % len(l)
	return slices.Concat(l[n:], l[:n])
}

func address(name string, ttl uint32, a netip.Addr) dns.RR {
	h := dns.RR_Header{Name: name, Class: dns.ClassINET, Ttl: ttl}
	if a.Is4() {
		h.Rrtype = dns.TypeA
		return &dns.A{Hdr: h, A: a.AsSlice()}
	}
	h.Rrtype = dns.TypeAAAA
	return &dns.AAAA{Hdr: h, AAAA: a.AsSlice()}
}

// soa is the zone's, whose last number says how long it is remembered that there is nothing (RFC 2308).
func (z *zone) soa(ttl uint32) dns.RR {
	return &dns.SOA{Hdr: dns.RR_Header{Name: Zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns: nameServer + "." + Zone, Mbox: "hostmaster." + Zone, Serial: z.view.Serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttlNone}
}

// codeDropped counts what has no answer: it is no question, or there are too many.
const codeDropped = "dropped"

// Codes are those by which questions are counted.
var Codes = []string{"noerror", "formerr", "nxdomain", "notimp", "refused", "badvers", codeDropped}

func codeOf(rcode int) string {
	switch rcode {
	case dns.RcodeSuccess:
		return "noerror"
	case dns.RcodeFormatError:
		return "formerr"
	case dns.RcodeNameError:
		return "nxdomain"
	case dns.RcodeNotImplemented:
		return "notimp"
	case dns.RcodeRefused:
		return "refused"
	}
	return "badvers"
}
