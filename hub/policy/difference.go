package policy

import (
	"encoding/binary"
	"slices"

	"causeway/protocol"
)

// Difference is what a change opens and closes for connections that one kind begins to another.
type Difference struct {
	From, To int     // places in Kinds
	Opens    []Allow // what was closed, with the rules that open it now
	Closes   []Allow // what was open, with the rules that opened it; without one: nothing closed it
	Stays    []Allow // of what was open whatever the protocol, what stays open
}

// Differences are what a change opens and closes.
type Differences struct {
	List          []Difference // the first of them
	Pairs         int          // of kinds, of which something opens or closes
	Opens, Closes int          // how many pairs there are of which something opens, and closes
	Closing       []bool       // of each kind: something closes from or to it
}

// Differences works out what opens and closes, and lists so many pairs of kinds at most. What never leaves one
// node counts for nothing.
func (c *Change) Differences(most int) (out Differences) {
	before, after := make([]*Class, len(c.Kinds)), make([]*Class, len(c.Kinds))
	for i, k := range c.Kinds {
		before[i], after[i] = c.Before.byID[k.Before], c.After.byID[k.After]
	}
	out.Closing = make([]bool, len(c.Kinds))
	type effect struct{ opens, closes, stays []Allow }
	seen := map[string]*effect{} // by the rules: many pairs have the same
	var was, is []int32
	var key []byte
	for i, from := range c.Kinds {
		for j, to := range c.Kinds {
			if from.only != 0 && from.only == to.only || !(from.family[0] && to.family[0] || from.family[1] && to.family[1]) {
				continue
			}
			was, is = c.Before.opening(was[:0], before[i], before[j]), c.After.opening(is[:0], after[i], after[j])
			if len(was) == 0 && len(is) == 0 {
				continue
			}
			key = ruleKey(key[:0], was, is)
			e := seen[string(key)]
			if e == nil {
				a, b := c.Before.allows(was), c.After.allows(is)
				e = &effect{opens: beyond(b, a), closes: beyond(a, b)}
				if slices.ContainsFunc(e.closes, func(x Allow) bool { return x.Proto == protocol.ProtoAny }) {
					e.stays = b
				}
				seen[string(key)] = e
			}
			if len(e.opens) > 0 {
				out.Opens++
			}
			if len(e.closes) > 0 {
				out.Closes++
				out.Closing[i], out.Closing[j] = true, true
			}
			if len(e.opens)+len(e.closes) == 0 {
				continue
			}
			if out.Pairs++; len(out.List) < most {
				out.List = append(out.List, Difference{i, j, e.opens, e.closes, e.stays})
			}
		}
	}
	return out
}

// ruleKey adds to key what tells two lists of rules from others.
func ruleKey(key []byte, was, is []int32) []byte {
	key = binary.LittleEndian.AppendUint32(key, uint32(len(was)))
	for _, l := range [][]int32{was, is} {
		for _, r := range l {
			key = binary.LittleEndian.AppendUint32(key, uint32(r))
		}
	}
	return key
}

// beyond is what l opens and by does not.
func beyond(l, by []Allow) (out []Allow) {
	for _, x := range l {
		rest := []protocol.Ports{x.Ports}
		for _, y := range by {
			var left []protocol.Ports
			for _, p := range rest {
				left = append(left, p.Less(y.Ports)...)
			}
			rest = left
		}
		for _, p := range rest {
			out = append(out, Allow{p, x.Rule})
		}
	}
	return out
}
