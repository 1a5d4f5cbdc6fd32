package look

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"causeway/protocol"
)

// left judges what the left side of a condition names; nil: it is not understood.
func (w *walk) left(v any) func(any) tri {
	left, _ := v.(map[string]any)
	switch {
	case left["meta"] != nil:
		return w.meta(left["meta"])
	case left["payload"] != nil:
		return w.payload(left["payload"])
	case left["fib"] != nil:
		return w.fib(left["fib"])
	case left["&"] != nil: // of the mark alone
		l, _ := left["&"].([]any)
		if len(l) != 2 {
			return nil
		}
		m, _ := l[0].(map[string]any)
		meta, _ := m["meta"].(map[string]any)
		mask, ok := l[1].(float64)
		if meta["key"] != "mark" || !ok {
			return nil
		}
		return func(v any) tri {
			n, ok := v.(float64)
			if !ok {
				return maybe
			}
			return truth(uint32(n) == w.k.mark&uint32(mask))
		}
	case left["ct"] != nil:
		switch c, _ := left["ct"].(map[string]any); c["key"] {
		case "state":
			return func(v any) tri { return truth(v == w.k.state) }
		case "direction": // who begins a flow sends what is new
			return func(v any) tri {
				return truth(v == map[string]string{"new": "original", "established": "reply"}[w.k.state])
			}
		case "status": // the addresses of a flow are those that it has on its way
			return func(v any) tri {
				if v == "dnat" || v == "snat" {
					return no
				}
				return maybe
			}
		}
	}
	return nil
}

// match judges one condition.
func (w *walk) match(key string, v any) tri {
	m, ok := v.(map[string]any)
	if !ok {
		return maybe
	}
	op, _ := m["op"].(string)
	is := w.left(m["left"])
	if is == nil {
		return maybe
	}
	got := w.oneOf(key, m["right"], is, 0)
	switch op {
	case "==", "in":
		return got
	case "!=":
		return yes - got
	}
	return maybe
}

// oneOf judges a right side that may be a set, a list or a named set.
func (w *walk) oneOf(key string, v any, is func(any) tri, depth int) tri {
	if depth > 3 {
		return maybe
	}
	list := func(l []any) tri {
		best := no
		for _, x := range l {
			best = max(best, w.oneOf(key, x, is, depth+1))
		}
		return best
	}
	switch x := v.(type) {
	case []any:
		return list(x)
	case map[string]any:
		if l, ok := x["set"].([]any); ok {
			return list(l)
		}
		if e, ok := x["elem"].(map[string]any); ok {
			return w.oneOf(key, e["val"], is, depth+1)
		}
	case string:
		if name, ok := strings.CutPrefix(x, "@"); ok {
			l, ok := w.sets[key[:strings.LastIndexByte(key, ' ')+1]+name]
			if !ok {
				return maybe
			}
			return list(l)
		}
	}
	return is(v)
}

// meta judges what nft's meta expression names.
func (w *walk) meta(v any) func(any) tri {
	m, _ := v.(map[string]any)
	k := w.k
	switch m["key"] {
	case "iifname", "iif":
		return name(k.iif)
	case "oifname", "oif":
		return name(k.oif)
	case "l4proto", "protocol":
		return func(v any) tri {
			switch v {
			case k.proto:
				return yes
			case "icmpv6", "ipv6-icmp":
				return truth(k.proto == protocol.FlowICMP && k.addr().Is6())
			case "tcp", "udp", "icmp", "sctp", "gre", "esp":
				return no
			case "ip":
				return truth(k.addr().Is4())
			case "ip6":
				return truth(k.addr().Is6())
			}
			return maybe
		}
	case "nfproto":
		return func(v any) tri { return truth(v == "ipv4" && k.addr().Is4() || v == "ipv6" && k.addr().Is6()) }
	case "mark":
		return func(v any) tri {
			n, ok := v.(float64)
			if !ok {
				return maybe
			}
			return truth(uint32(n) == k.mark)
		}
	}
	return nil
}

// name judges an interface's name, which may end in '*'.
func name(have string) func(any) tri {
	return func(v any) tri {
		s, ok := v.(string)
		if !ok {
			return maybe
		}
		if p, ok := strings.CutSuffix(s, "*"); ok {
			return truth(strings.HasPrefix(have, p))
		}
		return truth(s == have)
	}
}

// payload judges a field of the packet.
func (w *walk) payload(v any) func(any) tri {
	m, _ := v.(map[string]any)
	proto, _ := m["protocol"].(string)
	field, _ := m["field"].(string)
	k := w.k
	switch proto {
	case "ip", "ip6":
		if (proto == "ip") != k.addr().Is4() {
			return func(any) tri { return no }
		}
		switch field {
		case "saddr":
			return inside(k.src)
		case "daddr":
			return inside(k.dst)
		case "protocol", "nexthdr":
			return func(v any) tri { return truth(v == k.proto) }
		}
	case "tcp", "udp", "th":
		if proto != "th" && proto != k.proto {
			return func(any) tri { return no }
		}
		switch field {
		case "sport":
			return port(k.sport, k.dport != 0)
		case "dport":
			return port(k.dport, k.sport != 0)
		}
	case "icmp", "icmpv6":
		if k.proto != protocol.FlowICMP || (proto == "icmp") != k.addr().Is4() {
			return func(any) tri { return no }
		}
		if field == "type" && k.state == "new" {
			return func(v any) tri { return truth(v == "echo-request") }
		}
	}
	return nil
}

// fib judges what the access list asks of the host's routes. A flow that is explained
// comes by the interface at which the host has its source: that is how it was found.
func (w *walk) fib(v any) func(any) tri {
	m, _ := v.(map[string]any)
	flags, _ := m["flags"].([]any)
	switch {
	case m["result"] == "type" && len(flags) == 1 && flags[0] == "daddr":
		return func(v any) tri { return truth(v == "local" && w.k.local || v == "unicast" && !w.k.local) }
	case m["result"] == "oif" && slices.Contains(flags, any("saddr")) && slices.Contains(flags, any("iif")):
		return func(v any) tri { return truth(v == true) }
	}
	return nil
}

func inside(a netip.Addr) func(any) tri {
	return func(v any) tri {
		if !a.IsValid() {
			return maybe
		}
		switch x := v.(type) {
		case string:
			if o, err := netip.ParseAddr(x); err == nil {
				return truth(o == a)
			}
		case map[string]any:
			if p, ok := x["prefix"].(map[string]any); ok {
				s, _ := p["addr"].(string)
				n, _ := p["len"].(float64)
				if o, err := netip.ParsePrefix(s + "/" + strconv.Itoa(int(n))); err == nil {
					return truth(o.Contains(a))
				}
			}
			if r, ok := x["range"].([]any); ok && len(r) == 2 {
				lo, ok1 := r[0].(string)
				hi, ok2 := r[1].(string)
				l, err1 := netip.ParseAddr(lo)
				h, err2 := netip.ParseAddr(hi)
				if ok1 && ok2 && err1 == nil && err2 == nil {
					return truth(l.Compare(a) <= 0 && a.Compare(h) <= 0)
				}
			}
		}
		return maybe
	}
}

// port judges a port; 0: any, and where the other one is known, one that a client has: none of
// those for services.
func port(p uint16, client bool) func(any) tri {
	return func(v any) tri {
		if p == 0 {
			if n, ok := v.(float64); ok && client && n < 1024 {
				return no
			}
			return maybe
		}
		switch x := v.(type) {
		case float64:
			return truth(x == float64(p))
		case map[string]any:
			if r, ok := x["range"].([]any); ok && len(r) == 2 {
				lo, ok1 := r[0].(float64)
				hi, ok2 := r[1].(float64)
				if ok1 && ok2 {
					return truth(lo <= float64(p) && float64(p) <= hi)
				}
			}
		}
		return maybe
	}
}
