package netns

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"causeway/protocol"
)

// drops finds rules of nftables, other tools' and our own (and of iptables, which the
// kernel keeps there), that drop packets of a flow or of the datagrams that carry it. The
// rules are read and followed as the kernel would; a condition that is not
// understood makes what follows from it uncertain, never certain.
func (h *Host) drops(ctx context.Context, p Plan, f Flow, pod string) ([]protocol.Drop, error) {
	rules, err := readRules(ctx)
	if err != nil {
		return nil, err
	}
	var out []protocol.Drop
	for _, k := range packetsOf(p, f, pod) {
		for _, d := range rules.all(k) {
			if len(out) >= protocol.MaxEvidenceLines {
				break
			}
			same := func(o protocol.Drop) bool {
				return o.Chain == d.Chain && o.Handle == d.Handle && o.Hook == d.Hook && o.Way == d.Way
			}
			if i := slices.IndexFunc(out, same); i >= 0 {
				out[i].Certain = out[i].Certain || d.Certain
				continue
			}
			if strings.HasPrefix(k.way, "underlay") {
				d.Port = f.UnderlayPort
			}
			d.Rule = ruleLineOf(ctx, d)
			out = append(out, d)
		}
	}
	if d, ok := rules.counted(f.Local); ok && pod != "" {
		d.Rule = ruleLineOf(ctx, d)
		out = append(out, d)
	}
	return out, nil
}

// counted is the rule of our own that has dropped packets from a or what is beside it, as
// they came by an interface where that is not. Whether they were those of a flow it cannot say.
func (r *nftRules) counted(a netip.Addr) (protocol.Drop, bool) {
	key := protocol.AccessTable + chainInterface
	w := &walk{nftRules: r, k: packet{src: a, dst: a}}
	for _, x := range r.chains[key] {
		from, packets := no, 0.0
		for _, e := range x.expr {
			if m, ok := e["match"].(map[string]any); ok {
				if left, _ := m["left"].(map[string]any); left["payload"] != nil {
					from = w.match(key, m)
				}
			}
			if c, ok := e["counter"].(map[string]any); ok {
				packets, _ = c["packets"].(float64)
			}
		}
		if from == yes && packets > 0 {
			return protocol.Drop{Way: "out", Hook: "prerouting", Chain: key, Handle: x.handle}, true
		}
	}
	return protocol.Drop{}, false
}

// ruleLineOf is a rule as nft prints it with these flags.
func ruleLineOf(ctx context.Context, d protocol.Drop, flags ...string) string {
	if d.Handle == 0 {
		return "policy drop"
	}
	list, err := run(ctx, "", "nft", slices.Concat(flags, []string{"-a", "list", "chain"}, strings.Fields(d.Chain))...)
	if err != nil {
		return ""
	}
	end := fmt.Sprintf(" # handle %d", d.Handle)
	for l := range strings.Lines(list) {
		if l = strings.TrimSpace(l); strings.HasSuffix(l, end) {
			return protocol.OneLine(strings.TrimSuffix(l, end), 200)
		}
	}
	return ""
}

// packet is one that a host handles, at one hook.
type packet struct {
	way          string // of protocol.Drop
	hook         string
	iif, oif     string
	src, dst     netip.Addr
	proto        string
	sport, dport uint16 // 0: any
	mark         uint32
	state        string // of conntrack
	local        bool   // ends at this host
}

// packetsOf are the packets of f at this host, hook by hook: those of the flow both
// ways, and the datagrams that carry it.
func packetsOf(p Plan, f Flow, pod string) (out []packet) {
	add := func(k packet, hooks ...string) {
		for _, hook := range hooks {
			k := k
			k.hook = hook
			if hook == "input" || hook == "prerouting" {
				k.oif = ""
			}
			out = append(out, k)
		}
	}
	into := packet{way: "in", iif: p.Interface, oif: pod, src: f.Remote, dst: f.Local, proto: f.Proto, state: "new", local: pod == ""}
	from := packet{way: "out", iif: pod, oif: p.Interface, src: f.Local, dst: f.Remote, proto: f.Proto, state: "new"}
	if f.Serves {
		into.dport, from.sport, from.state = f.Port, f.Port, "established"
	} else {
		from.dport, into.sport, into.state = f.Port, f.Port, "established"
	}
	if pod == "" {
		add(into, "prerouting", "input")
		add(from, "output", "postrouting")
	} else {
		add(into, "prerouting", "forward", "postrouting")
		add(from, "prerouting", "forward", "postrouting")
	}
	for _, to := range f.Underlay {
		rs := decide(routed{dst: to.Addr()})
		dev := rs.To
		add(packet{way: "underlay-out", oif: dev, dst: to.Addr(), proto: protocol.FlowUDP, sport: f.UnderlayPort, dport: to.Port(), mark: p.Mark, state: "new"}, "output", "postrouting")
		add(packet{way: "underlay-in", iif: dev, src: to.Addr(), proto: protocol.FlowUDP, sport: to.Port(), dport: f.UnderlayPort, state: "established", local: true}, "prerouting", "input")
	}
	return out
}

// nftRules is a ruleset.
type nftRules struct {
	base   []baseChain
	chains map[string][]nftRule // by "family table name"
	sets   map[string][]any     // elements, by "family table name"; of maps too: [key, value]
}

type baseChain struct {
	key, family, hook, policy string
	prio                      int
}

type nftRule struct {
	handle int
	expr   []map[string]any
}

// Bounds of a ruleset that is followed.
const (
	maxJumps = 16
	maxSteps = 20000
)

// readRules reads the host's.
func readRules(ctx context.Context) (*nftRules, error) {
	text, err := run(ctx, "", "nft", "-j", "list", "ruleset")
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	return parseRules([]byte(text))
}

func parseRules(b []byte) (*nftRules, error) {
	var list struct {
		Nftables []struct {
			Chain *struct {
				Family, Table, Name, Hook, Policy string
				Prio                              int
			}
			Rule *struct {
				Family, Table, Chain string
				Handle               int
				Expr                 []map[string]any
			}
			Set, Map *struct {
				Family, Table, Name string
				Elem                []any
			}
		}
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read nftables: %w", err)
	}
	r := &nftRules{chains: map[string][]nftRule{}, sets: map[string][]any{}}
	for _, e := range list.Nftables {
		switch {
		case e.Chain != nil:
			c := *e.Chain
			// Of ours the access list alone; a trial drops nothing but its own packets.
			if c.Family == "inet" && (c.Table == NftTable && !slices.Contains(accessChains, c.Name) || c.Table == trialTable) || c.Family == "bridge" || c.Family == "netdev" || c.Family == "arp" {
				continue
			}
			key := c.Family + " " + c.Table + " " + c.Name
			if c.Hook != "" {
				r.base = append(r.base, baseChain{key, c.Family, c.Hook, c.Policy, c.Prio})
			}
		case e.Rule != nil:
			key := e.Rule.Family + " " + e.Rule.Table + " " + e.Rule.Chain
			r.chains[key] = append(r.chains[key], nftRule{e.Rule.Handle, e.Rule.Expr})
		case e.Set != nil:
			r.sets[e.Set.Family+" "+e.Set.Table+" "+e.Set.Name] = e.Set.Elem
		case e.Map != nil:
			r.sets[e.Map.Family+" "+e.Map.Table+" "+e.Map.Name] = e.Map.Elem
		}
	}
	slices.SortStableFunc(r.base, func(a, b baseChain) int { return cmp.Compare(a.prio, b.prio) })
	return r, nil
}

// tri is what is known of a condition.
type tri int

const (
	no tri = iota
	maybe
	yes
)

// what a chain does with a packet
type fate int

const (
	goesOn fate = iota
	accepted
	dropped
)

// walk is a packet on its way through one base chain.
type walk struct {
	*nftRules
	k     packet
	steps int
	sure  bool           // no condition before was uncertain
	maybe *protocol.Drop // the first drop that is not certain
}

// follow finds the first rule that drops k; a certain one before others.
func (r *nftRules) follow(k packet) (protocol.Drop, bool) {
	if l := r.all(k); len(l) > 0 {
		return l[0], true
	}
	return protocol.Drop{}, false
}

// all finds what drops k, at most one rule of each base chain that it goes through: those
// that do for certain, or else the first that may.
func (r *nftRules) all(k packet) []protocol.Drop {
	var sure []protocol.Drop
	var unsure *protocol.Drop
	for _, c := range r.base {
		if c.hook != k.hook || c.family == "ip" && !k.addr().Is4() || c.family == "ip6" && !k.addr().Is6() {
			continue
		}
		w := &walk{nftRules: r, k: k, sure: true}
		fate, d := w.chain(c.key, 0)
		if fate == goesOn && c.policy == "drop" {
			fate, d = dropped, &protocol.Drop{Way: k.way, Hook: k.hook, Chain: c.key, Certain: w.sure}
		}
		switch {
		case fate == dropped && d.Certain:
			sure = append(sure, *d)
		case unsure != nil:
		case fate == dropped:
			unsure = d
		default:
			unsure = w.maybe
		}
	}
	if sure == nil && unsure != nil {
		sure = []protocol.Drop{*unsure}
	}
	for i := range sure {
		if r.ufw(sure[i].Chain) {
			sure[i].Owner = protocol.OwnerUfw
		}
	}
	return sure
}

// ufw reports whether the table of a chain is one that ufw writes.
func (r *nftRules) ufw(chain string) bool {
	table := chain[:strings.LastIndexByte(chain, ' ')+1]
	for key := range r.chains {
		if strings.HasPrefix(key, table+"ufw-") || strings.HasPrefix(key, table+"ufw6-") {
			return true
		}
	}
	return false
}

func (k packet) addr() netip.Addr {
	if k.dst.IsValid() {
		return k.dst
	}
	return k.src
}

func (w *walk) chain(key string, depth int) (fate, *protocol.Drop) {
	if depth > maxJumps {
		w.sure = false
		return goesOn, nil
	}
	for _, r := range w.chains[key] {
		if w.steps++; w.steps > maxSteps {
			w.sure = false
			return goesOn, nil
		}
		match, verdict, target := w.rule(key, r)
		if match == no || verdict == "" {
			continue
		}
		switch verdict {
		case "drop", "reject":
			d := &protocol.Drop{Way: w.k.way, Hook: w.k.hook, Chain: key, Handle: r.handle, Certain: match == yes && w.sure}
			if match == yes {
				return dropped, d
			}
			if w.maybe == nil {
				w.maybe = d
			}
		case "accept":
			if match == yes {
				return accepted, nil
			}
			w.sure = false
		case "return":
			if match == yes {
				return goesOn, nil
			}
			w.sure = false
		case "jump", "goto":
			was := w.sure
			w.sure = was && match == yes
			f, d := w.chain(key[:strings.LastIndexByte(key, ' ')+1]+target, depth+1)
			switch {
			case match == maybe:
				if f == dropped && w.maybe == nil {
					d.Certain = false
					w.maybe = d
				}
				w.sure = was && f != accepted && f != dropped
			case f != goesOn:
				return f, d
			case verdict == "goto":
				return goesOn, nil
			}
		}
	}
	return goesOn, nil
}

// rule says whether a rule's conditions hold, and its verdict; empty if it has none.
func (w *walk) rule(key string, r nftRule) (match tri, verdict, target string) {
	match = yes
	for _, e := range r.expr {
		for name, v := range e {
			switch name {
			case "match":
				match = min(match, w.match(key, v))
			case "drop", "reject", "accept", "return":
				verdict = name
			case "jump", "goto":
				verdict = name
				m, _ := v.(map[string]any)
				target, _ = m["target"].(string)
			case "counter", "log", "comment", "mangle", "notrack":
			case "xt":
				m, _ := v.(map[string]any)
				what, _ := m["name"].(string)
				switch {
				case m["type"] == "target" && (what == "REJECT" || what == "DROP"):
					verdict = "reject"
				case m["type"] == "match" && what == "comment":
				case m["type"] == "match":
					match = min(match, maybe)
				}
			case "limit", "quota", "connlimit", "ct count":
				match = min(match, maybe)
			case "vmap":
				if got, v, to, ok := w.vmap(key, v); ok {
					return min(match, got), v, to
				}
				// Any of its verdicts may follow.
				if text, _ := json.Marshal(v); strings.Contains(string(text), `"drop"`) {
					return maybe, "drop", ""
				}
				return maybe, "accept", ""
			}
			if match == no {
				return no, "", ""
			}
		}
	}
	return match, verdict, target
}

// vmap looks a packet up in a verdict map; ok is false where that cannot be said.
func (w *walk) vmap(key string, v any) (match tri, verdict, target string, ok bool) {
	m, _ := v.(map[string]any)
	is := w.left(m["key"])
	var list []any
	switch data := m["data"].(type) {
	case string:
		list, ok = w.sets[key[:strings.LastIndexByte(key, ' ')+1]+strings.TrimPrefix(data, "@")]
	case map[string]any:
		list, ok = data["set"].([]any)
	}
	if is == nil || !ok {
		return maybe, "", "", false
	}
	for _, x := range list {
		pair, _ := x.([]any)
		if len(pair) != 2 {
			return maybe, "", "", false
		}
		switch w.oneOf(key, pair[0], is, 0) {
		case maybe:
			return maybe, "", "", false
		case yes:
			does, _ := pair[1].(map[string]any)
			for name, v := range does {
				to, _ := v.(map[string]any)
				target, _ = to["target"].(string)
				return yes, name, target, true
			}
		}
	}
	return no, "", "", true
}

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

func truth(b bool) tri {
	if b {
		return yes
	}
	return no
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
