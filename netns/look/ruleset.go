package look

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// nftRules is a ruleset.
type nftRules struct {
	base   []baseChain
	chains map[string][]nftRule // by "family table name"
	sets   map[string][]any     // elements, by "family table name"; of maps too: [key, value]
}

type baseChain struct {
	key, family, typ, hook, policy string
	prio                           int
}

// sees reports whether a packet goes through a chain.
func (c baseChain) sees(k packet) bool {
	return c.hook == k.hook && (c.family != "ip" || k.addr().Is4()) && (c.family != "ip6" || k.addr().Is6())
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
	text, err := kernel.Run(ctx, "", "nft", "-j", "list", "ruleset")
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	return parseRules([]byte(text))
}

func parseRules(b []byte) (*nftRules, error) {
	var list struct {
		Nftables []struct {
			Chain *struct {
				Family, Table, Name, Type, Hook, Policy string
				Prio                                    int
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
			if c.Family == "inet" && (c.Table == netns.NftTable && !netns.IsAccessChain(c.Name) || c.Table == netns.TrialTable) || c.Family == "bridge" || c.Family == "netdev" || c.Family == "arp" {
				continue
			}
			key := c.Family + " " + c.Table + " " + c.Name
			if c.Hook != "" {
				r.base = append(r.base, baseChain{key, c.Family, c.Type, c.Hook, c.Policy, c.Prio})
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

func truth(b bool) tri {
	if b {
		return yes
	}
	return no
}

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
	// source says that it came through, and what gave it another source is looked for.
	source bool
	sure   bool           // no condition before was uncertain
	maybe  *protocol.Drop // the first drop that is not certain
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
		if !c.sees(k) {
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
		if match == no || verdict == "" || w.source && (verdict == "drop" || verdict == "reject") {
			continue
		}
		switch verdict {
		case "drop", "reject", anotherSourceVerdict:
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
			case "mangle", "snat", "masquerade":
				if w.source && (name != "mangle" || setsSource(v)) {
					verdict = anotherSourceVerdict
				}
			case "counter", "log", "comment", "notrack":
			case "xt":
				m, _ := v.(map[string]any)
				what, _ := m["name"].(string)
				switch {
				case m["type"] == "target" && (what == "REJECT" || what == "DROP"):
					verdict = "reject"
				case w.source && m["type"] == "target" && (what == "SNAT" || what == "MASQUERADE" || what == "NETMAP"):
					verdict = anotherSourceVerdict
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
