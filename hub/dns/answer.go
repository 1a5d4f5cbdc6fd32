package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	headerLen = 12
	// maxQuery is the longest question that is read. One with a name as long as they can be and EDNS0 has 300 bytes.
	maxQuery = 512
	// maxUDP is the longest answer by UDP: what passes every IPv6 path without fragments (DNS flag day 2020).
	maxUDP = 1232
)

// Times to live, in seconds.
const (
	ttlZone = 3600 // of what the zone itself has
	ttlNone = 10   // that there is nothing: names come and go
)

// outcome is what became of a question, for metrics: a code, and a kind of question.
type outcome struct{ code, kind string }

// codeDropped counts what has no answer: it is no question.
const codeDropped = "dropped"

// Codes and Kinds are those by which questions are counted.
var (
	Codes = []string{"noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "badvers", codeDropped}
	Kinds = []string{"A", "AAAA", "NS", "SOA", "ANY", "other"}
)

// answer answers one message; nil: it is none that has an answer. It is pure: equal questions have equal answers for equal turns,
// by which the site of a name is chosen. A nil zone has everybody ask again.
func (z *zone) answer(query []byte, tcp bool, turn uint64) (out []byte, what outcome) {
	what = outcome{codeDropped, "other"}
	if len(query) < headerLen || len(query) > maxQuery || query[2]&0x80 != 0 { // an answer is not answered
		return nil, what
	}
	var q, a dns.Msg
	if err := q.Unpack(query); err != nil {
		return failed(query, dns.RcodeFormatError), outcome{codeOf(dns.RcodeFormatError), "other"}
	}
	a.SetReply(&q)
	a.RecursionAvailable = false
	size, opt := edns(&q, &a)
	if tcp {
		size = dns.MaxMsgSize
	}
	if a.Rcode == dns.RcodeSuccess {
		z.fill(&q, &a, turn)
	}
	what = outcome{codeOf(a.Rcode), kindOf(&q)}
	if opt != nil {
		a.Extra = append(a.Extra, opt)
	}
	a.Truncate(size)
	a.Compress = true // Truncate leaves it out where there is room, and an answer is to be short
	out, err := a.Pack()
	if err != nil { // of what is in a view nothing causes it
		return nil, outcome{codeDropped, what.kind}
	}
	return out, what
}

// failed is an answer of which all that is known of the question is how it began.
func failed(query []byte, rcode byte) []byte {
	out := make([]byte, headerLen)
	copy(out, query[:2])
	out[2] = 0x80 | query[2]&0x79 // opcode and RD as they came
	out[3] = rcode
	return out
}

// again is the answer that has a question repeated by TCP; nil: there is none. It is no longer than the question.
func again(query []byte) []byte {
	if len(query) < headerLen || len(query) > maxQuery || query[2]&0x80 != 0 {
		return nil
	}
	var q dns.Msg
	if q.Unpack(query) != nil || len(q.Question) != 1 {
		return nil
	}
	var a dns.Msg
	a.SetReply(&q)
	a.Truncated = true
	out, err := a.Pack()
	if err != nil || len(out) > len(query) {
		return nil
	}
	return out
}

// edns reads what the question says of EDNS0 (RFC 6891): how long an answer may be, and the record that goes with it. Options, the
// client's subnet among them, are not looked at.
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
func (z *zone) fill(q, a *dns.Msg, turn uint64) {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		a.Rcode = dns.RcodeNotImplemented
		return
	case len(q.Question) != 1:
		a.Rcode = dns.RcodeFormatError
		return
	}
	if z == nil {
		a.Rcode = dns.RcodeServerFailure
		return
	}
	ask := q.Question[0]
	name, ours := z.below(ask.Name)
	switch t := ask.Qtype; {
	case ask.Qclass != dns.ClassINET, !ours, t == dns.TypeAXFR, t == dns.TypeIXFR:
		a.Rcode = dns.RcodeRefused
		return
	case t == dns.TypeOPT, t == dns.TypeNone, t >= 128 && t < dns.TypeANY: // no type that data has (RFC 6895)
		a.Rcode = dns.RcodeNotImplemented
		return
	}
	a.Authoritative = true
	has, ttl, exists := z.find(name, turn)
	if !exists {
		a.Rcode = dns.RcodeNameError
	}
	z.records(ask, a, name, has, ttl)
	if len(a.Answer) == 0 {
		a.Ns = []dns.RR{z.soa(ttlNone)}
	}
}

// below is the part of a name below the zone, in small letters; empty: it is the zone's own.
func (z *zone) below(name string) (string, bool) {
	name = strings.ToLower(name)
	if name == z.Name {
		return "", true
	}
	rest, ok := strings.CutSuffix(name, "."+z.Name)
	escaped := (len(rest)-len(strings.TrimRight(rest, `\`)))%2 == 1 // the dot is part of a label
	return rest, ok && !escaped
}

// find is what there is at a name below the zone: addresses of one site for each family, or that it exists.
func (z *zone) find(name string, turn uint64) (has []netip.Addr, ttl uint32, exists bool) {
	if n, ok := z.view.Names[name]; ok {
		return slices.Concat(n.Four.pick(turn), n.Six.pick(turn)), n.TTL, true
	}
	if own, ok := z.own[name]; ok {
		return own, ttlZone, true
	}
	return nil, 0, name == "" || z.within[name]
}

// pick are the addresses of the site of a slot, from another one on for each turn.
func (x Addresses) pick(turn uint64) []netip.Addr {
	if len(x.Slots) == 0 {
		return nil
	}
	n := uint64(len(x.Slots))
	return turned(x.Sites[x.Slots[turn%n]], turn/n)
}

func turned(l []netip.Addr, turn uint64) []netip.Addr {
	if len(l) == 0 {
		return nil
	}
	n := int(turn % uint64(len(l)))
	return slices.Concat(l[n:], l[:n])
}

// records adds those of a type at a name. Addresses of name servers are not added: whoever comes here has them from the zone above,
// and a short answer is of no use to who forges questions.
func (z *zone) records(ask dns.Question, a *dns.Msg, name string, has []netip.Addr, ttl uint32) {
	head := dns.RR_Header{Name: ask.Name, Rrtype: ask.Qtype, Class: dns.ClassINET, Ttl: ttlZone}
	switch t := ask.Qtype; {
	case t == dns.TypeA, t == dns.TypeAAAA:
		for _, x := range has {
			if x.Is4() == (t == dns.TypeA) {
				a.Answer = append(a.Answer, address(ask.Name, ttl, x))
			}
		}
	case t == dns.TypeSOA && name == "":
		soa := z.soa(ttlZone)
		soa.Header().Name = ask.Name
		a.Answer = append(a.Answer, soa)
	case t == dns.TypeNS && name == "":
		for _, s := range z.Servers {
			a.Answer = append(a.Answer, &dns.NS{Hdr: head, Ns: s.Name})
		}
	case t == dns.TypeANY && (name == "" || len(has) > 0):
		head.Rrtype = dns.TypeHINFO
		a.Answer = append(a.Answer, &dns.HINFO{Hdr: head, Cpu: "RFC8482"})
	}
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
	return &dns.SOA{Hdr: dns.RR_Header{Name: z.Name, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns: z.Servers[0].Name, Mbox: "hostmaster." + z.Name, Serial: z.view.Serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttlNone}
}

func codeOf(rcode int) string {
	switch rcode {
	case dns.RcodeSuccess:
		return "noerror"
	case dns.RcodeFormatError:
		return "formerr"
	case dns.RcodeServerFailure:
		return "servfail"
	case dns.RcodeNameError:
		return "nxdomain"
	case dns.RcodeNotImplemented:
		return "notimp"
	case dns.RcodeRefused:
		return "refused"
	}
	return "badvers"
}

func kindOf(q *dns.Msg) string {
	if len(q.Question) == 1 {
		if s := dns.TypeToString[q.Question[0].Qtype]; slices.Contains(Kinds, s) {
			return s
		}
	}
	return "other"
}
