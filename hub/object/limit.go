package object

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// EachNode, as the node of a limit, is each node for itself.
const EachNode = "*"

// LimitKind is the kind of protocol.Limit.
const LimitKind = protocol.ItemLimit

type limits struct{}

func (limits) Kind() string  { return LimitKind }
func (limits) Shape() uint32 { return 1 }

// Essential: without it a relay carries more than it should, and nothing wrong.
func (limits) Essential() bool { return false }

func (limits) Canonical(spec json.RawMessage) (json.RawMessage, error) {
	var l protocol.Limit
	if err := state.ReadStrictly(spec, &l); err != nil {
		return nil, err
	}
	named := 0
	for _, one := range []bool{l.Node != "", l.Site != "", len(l.Between) > 0} {
		if one {
			named++
		}
	}
	switch {
	case named != 1:
		return nil, errors.New("say whom it is for, by one of node, site and between")
	case l.Node != "" && l.Node != EachNode && !protocol.ValidName(l.Node):
		return nil, fmt.Errorf("node: %.80q cannot name a node; use a node's name, or '%s' for each node", l.Node, EachNode)
	case l.Site != "" && !protocol.ValidName(l.Site):
		return nil, fmt.Errorf("site: %.80q cannot name a site", l.Site)
	case len(l.Between) > 0 && (len(l.Between) != 2 || l.Between[0] == l.Between[1]):
		return nil, errors.New("between: write two sites, such as [idc-sh, cloud-eu]")
	case l.Packets == 0 && l.Bytes == 0:
		return nil, errors.New("say how much, by packets, bytes or both: so many in a second")
	}
	for _, s := range l.Between {
		if !protocol.ValidName(s) {
			return nil, fmt.Errorf("between: %.80q cannot name a site", s)
		}
	}
	slices.Sort(l.Between)
	return json.Marshal(l)
}

func (limits) Check(st *state.State, o state.Object) error {
	if _, err := specOf[protocol.Limit](o); err != nil {
		return err
	}
	return state.Found(st, limits{}.Names(o))
}

// Target is whom a limit is for. Two for the same would leave the reader of one in the belief that
// it holds.
func (limits) Target(o state.Object) string {
	l, err := specOf[protocol.Limit](o)
	if err != nil {
		return "" // of a newer hub
	}
	return strings.Join(append([]string{l.Node, l.Site}, l.Between...), " ")
}

func (limits) Names(o state.Object) (out []state.ObjectKey) {
	l, err := specOf[protocol.Limit](o)
	if err != nil {
		return nil
	}
	for _, s := range append([]string{l.Site}, l.Between...) {
		if s != "" {
			out = append(out, state.ObjectKey{Kind: state.KindSite, Name: s})
		}
	}
	if l.Node != "" && l.Node != EachNode {
		out = append(out, state.ObjectKey{Kind: state.KindNode, Name: l.Node})
	}
	return out
}

// Tells tells those that a limit holds, so that who looks on a host finds it.
func (limits) Tells(st *state.State, o state.Object) (json.RawMessage, []protocol.NodeNumber) {
	l, err := specOf[protocol.Limit](o)
	if err != nil {
		return nil, nil
	}
	var nodes []protocol.NodeNumber
	switch {
	case l.Node == EachNode:
		for _, n := range st.LiveNodes() {
			nodes = append(nodes, n.Number)
		}
	case l.Node != "":
		if n := st.NumberOf(l.Node); n != 0 {
			nodes = append(nodes, n)
		}
	case l.Site != "":
		nodes = st.LiveNodesOf(l.Site)
	default:
		for _, site := range l.Between {
			nodes = append(nodes, st.LiveNodesOf(site)...)
		}
	}
	return o.Spec, nodes
}

// RelayBounds is what the limits of a state mean for the relay.
func RelayBounds(st *state.State) (out []tunnel.RelayBound) {
	all := st.ObjectsOf(LimitKind)
	if len(all) == 0 {
		return nil
	}
	for _, o := range all {
		l, err := specOf[protocol.Limit](o)
		if err != nil {
			continue // of a newer hub
		}
		b := tunnel.RelayBound{Name: o.Name, Rate: tunnel.RelayRate{Packets: l.Packets, Bytes: l.Bytes}}
		switch {
		case l.Node == EachNode:
			for _, n := range st.LiveNodes() {
				b.Name, b.From = o.Name+"/"+n.Name, []protocol.NodeNumber{n.Number}
				out = append(out, b)
			}
			continue
		case l.Node != "":
			n, err := st.FindNode(l.Node)
			if err != nil {
				continue // it is gone, and may come back
			}
			b.From = []protocol.NodeNumber{n.Number}
		case l.Site != "":
			b.From = st.LiveNodesOf(l.Site)
		default:
			b.From, b.To, b.Both = st.LiveNodesOf(l.Between[0]), st.LiveNodesOf(l.Between[1]), true
			if len(b.From) == 0 || len(b.To) == 0 {
				continue // nothing passes, and none would mean anybody
			}
		}
		out = append(out, b)
	}
	return out
}
