package capture

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/net/bpf"
)

// Bounds of a filter, which comes from elsewhere.
const (
	maxFilter = 512 // bytes
	maxTerms  = 32  // cw0 and the hubs' addresses come on top
	maxDepth  = 32
)

// Grammar says what a filter may be; tcpdump understands the same.
const Grammar = "[src|dst] host ADDR, [src|dst] net CIDR, [tcp|udp] [src|dst] port N, tcp, udp, icmp, icmp6, ip, ip6, proto N, joined by and, or, not and parentheses"

// expr is a condition on an IP packet: one that compares, or several joined.
type expr struct {
	op   byte // '&' and '|' of kids, '!' of one, '=' compares
	kids []expr

	// Compared is what lies at off, after the IPv4 header if indirect, of size bytes.
	size     int
	off      uint32
	indirect bool
	mask     uint32
	val      uint32
}

func all(kids ...expr) expr    { return expr{op: '&', kids: kids} }
func either(kids ...expr) expr { return expr{op: '|', kids: kids} }
func not(e expr) expr          { return expr{op: '!', kids: []expr{e}} }

func equal(size int, off, mask, val uint32) expr {
	return expr{op: '=', size: size, off: off, mask: mask, val: val}
}

func isV4() expr { return equal(1, 0, 0xf0, 0x40) }
func isV6() expr { return equal(1, 0, 0xf0, 0x60) }

// proto does not look behind IPv6 extension headers, as in tcpdump.
func proto(n uint32) expr {
	return either(all(isV4(), equal(1, 9, 0xff, n)), all(isV6(), equal(1, 6, 0xff, n)))
}

func within(p netip.Prefix, off4, off6 uint32) expr {
	b, off, family := p.Masked().Addr().AsSlice(), off6, isV6()
	if p.Addr().Is4() {
		off, family = off4, isV4()
	}
	e := all(family)
	for i := 0; i < len(b); i += 4 {
		bits := min(max(p.Bits()-8*i, 0), 32)
		if bits == 0 {
			break
		}
		mask := ^uint32(0) << (32 - bits)
		e.kids = append(e.kids, equal(4, off+uint32(i), mask, uint32(b[i])<<24|uint32(b[i+1])<<16|uint32(b[i+2])<<8|uint32(b[i+3])))
	}
	return e
}

func port(n, at uint32) expr {
	v4 := equal(2, at, 0xffff, n)
	v4.indirect = true
	return either(all(isV4(), equal(2, 6, 0x1fff, 0), v4), all(isV6(), equal(2, 40+at, 0xffff, n)))
}

// directed joins what holds for source and destination as the words before it ask.
func directed(dir string, src, dst expr) expr {
	switch dir {
	case "src":
		return src
	case "dst":
		return dst
	}
	return either(src, dst)
}

// parser reads words.
type parser struct {
	words []string
	terms int
}

// parse reads a filter; an empty one lets everything through.
func parse(text string) (expr, error) {
	if len(text) > maxFilter {
		return expr{}, fmt.Errorf("the filter is longer than %d bytes", maxFilter)
	}
	text = strings.NewReplacer("(", " ( ", ")", " ) ").Replace(text)
	p := &parser{words: strings.FieldsFunc(text, unicode.IsSpace)}
	if len(p.words) == 0 {
		return all(), nil
	}
	e, err := p.or(0)
	if err == nil && len(p.words) > 0 {
		err = fmt.Errorf("filter: %.40q is not expected there; a filter is %s", p.words[0], Grammar)
	}
	return e, err
}

func (p *parser) peek() string {
	if len(p.words) == 0 {
		return ""
	}
	return p.words[0]
}

func (p *parser) take(words ...string) string {
	for _, w := range words {
		if p.peek() == w {
			p.words = p.words[1:]
			return w
		}
	}
	return ""
}

func (p *parser) or(depth int) (expr, error) {
	return p.joined(depth, "or", '|', func(d int) (expr, error) { return p.joined(d, "and", '&', p.not) })
}

func (p *parser) joined(depth int, word string, op byte, next func(int) (expr, error)) (expr, error) {
	e, err := next(depth)
	if err != nil {
		return e, err
	}
	out := expr{op: op, kids: []expr{e}}
	for p.take(word) != "" {
		if e, err = next(depth); err != nil {
			return e, err
		}
		out.kids = append(out.kids, e)
	}
	return out, nil
}

func (p *parser) not(depth int) (expr, error) {
	if depth > maxDepth {
		return expr{}, fmt.Errorf("filter: more than %d deep", maxDepth)
	}
	if p.take("not") != "" {
		e, err := p.not(depth + 1)
		return not(e), err
	}
	if p.take("(") != "" {
		e, err := p.or(depth + 1)
		if err == nil && p.take(")") == "" {
			err = fmt.Errorf("filter: a ) is missing")
		}
		return e, err
	}
	if p.terms++; p.terms > maxTerms {
		return expr{}, fmt.Errorf("filter: more than %d conditions", maxTerms)
	}
	return p.term()
}

func (p *parser) term() (expr, error) {
	l4 := p.take("tcp", "udp")
	dir := p.take("src", "dst")
	what := p.peek()
	if dir == "" && what != "port" && l4 != "" {
		return proto(map[string]uint32{"tcp": 6, "udp": 17}[l4]), nil
	}
	word := func() string {
		p.words = p.words[1:]
		w := p.peek()
		if w != "" {
			p.words = p.words[1:]
		}
		return w
	}
	switch what {
	case "port":
		w := word()
		n, err := strconv.ParseUint(w, 10, 16)
		if err != nil {
			return expr{}, fmt.Errorf("filter: %.40q is no port", w)
		}
		kinds := either(proto(6), proto(17))
		switch l4 {
		case "tcp":
			kinds = proto(6)
		case "udp":
			kinds = proto(17)
		}
		return all(kinds, directed(dir, port(uint32(n), 0), port(uint32(n), 2))), nil
	case "host", "net":
		if l4 != "" {
			break
		}
		w := word()
		px, err := netip.ParsePrefix(w)
		if what == "host" {
			var a netip.Addr
			if a, err = netip.ParseAddr(w); err == nil && a.Zone() == "" {
				px = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
			}
		}
		if err != nil || !px.IsValid() || px.Addr().Is4In6() {
			return expr{}, fmt.Errorf("filter: %.60q is no address or range after %s", w, what)
		}
		return directed(dir, within(px, 12, 8), within(px, 16, 24)), nil
	case "ip", "ip6", "icmp", "icmp6":
		if dir == "" {
			p.words = p.words[1:]
			return map[string]expr{"ip": isV4(), "ip6": isV6(), "icmp": all(isV4(), proto(1)), "icmp6": all(isV6(), proto(58))}[what], nil
		}
	case "proto":
		if dir == "" {
			w := word()
			n, err := strconv.ParseUint(w, 10, 8)
			if err != nil {
				return expr{}, fmt.Errorf("filter: %.40q is no protocol's number", w)
			}
			return proto(uint32(n)), nil
		}
	}
	if what == "" {
		what = "the end"
	}
	return expr{}, fmt.Errorf("filter: %.40q is not expected there; a filter is %s", what, Grammar)
}

// program makes classic BPF of e, for packets that begin with their IP header: keep bytes
// of what matches. Every comparison is followed by two jumps of any length, so that no
// condition is out of a conditional jump's reach.
func program(e expr, keep uint32) ([]bpf.RawInstruction, error) {
	var c compiler
	yes, no := c.label(), c.label()
	c.emit(e, yes, no)
	c.place(yes)
	c.code = append(c.code, bpf.RetConstant{Val: keep})
	c.place(no)
	c.code = append(c.code, bpf.RetConstant{Val: 0})
	for i, l := range c.jumps {
		c.code[i] = bpf.Jump{Skip: uint32(c.at[l] - i - 1)}
	}
	return bpf.Assemble(c.code)
}

type compiler struct {
	code  []bpf.Instruction
	at    []int       // of labels
	jumps map[int]int // by instruction: to which label
}

func (c *compiler) label() int { c.at = append(c.at, 0); return len(c.at) - 1 }

func (c *compiler) place(l int) { c.at[l] = len(c.code) }

func (c *compiler) jump(l int) {
	if c.jumps == nil {
		c.jumps = map[int]int{}
	}
	c.jumps[len(c.code)] = l
	c.code = append(c.code, bpf.Jump{})
}

// emit goes to yes where e holds, to no where not.
func (c *compiler) emit(e expr, yes, no int) {
	switch e.op {
	case '!':
		c.emit(e.kids[0], no, yes)
	case '&', '|':
		for _, k := range e.kids {
			next := c.label()
			if e.op == '&' {
				c.emit(k, next, no)
			} else {
				c.emit(k, yes, next)
			}
			c.place(next)
		}
		if e.op == '&' {
			c.jump(yes)
		} else {
			c.jump(no)
		}
	default:
		if e.indirect {
			c.code = append(c.code, bpf.LoadMemShift{Off: 0}, bpf.LoadIndirect{Off: e.off, Size: e.size})
		} else {
			c.code = append(c.code, bpf.LoadAbsolute{Off: e.off, Size: e.size})
		}
		c.code = append(c.code, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: e.mask}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: e.val, SkipFalse: 1})
		c.jump(yes)
		c.jump(no)
	}
}
