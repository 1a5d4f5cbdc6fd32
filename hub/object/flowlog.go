package object

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"causeway/hub/state"
	"causeway/protocol"
)

// FlowLogKind is the kind of protocol.FlowLog.
const FlowLogKind = protocol.ItemFlowLog

type flowLogs struct{}

func (flowLogs) Kind() string  { return FlowLogKind }
func (flowLogs) Shape() uint32 { return 1 }

// Essential: without it nothing passes that should not.
func (flowLogs) Essential() bool { return false }

func (flowLogs) Canonical(spec json.RawMessage) (json.RawMessage, error) {
	var l protocol.FlowLog
	if err := state.ReadStrictly(spec, &l); err != nil {
		return nil, err
	}
	named := 0
	for _, one := range []bool{len(l.Sites) > 0, len(l.Nodes) > 0, len(l.Labels) > 0} {
		if one {
			named++
		}
	}
	if named > 1 {
		return nil, errors.New("say which nodes log by one of sites, nodes and labels, or by none: all do then")
	}
	for _, s := range l.Sites {
		if !protocol.ValidName(s) {
			return nil, fmt.Errorf("sites: %.80q cannot name a site", s)
		}
	}
	for _, n := range l.Nodes {
		if !protocol.ValidName(n) {
			return nil, fmt.Errorf("nodes: %.80q cannot name a node", n)
		}
	}
	if err := protocol.CheckLabels(l.Labels); err != nil {
		return nil, fmt.Errorf("labels: %w", err)
	}
	slices.Sort(l.Sites)
	slices.Sort(l.Nodes)
	l.Sites, l.Nodes = slices.Compact(l.Sites), slices.Compact(l.Nodes)
	return json.Marshal(l)
}

func (flowLogs) Check(st *state.State, o state.Object) error {
	return state.Found(st, flowLogs{}.Names(o))
}

func (flowLogs) Names(o state.Object) (out []state.ObjectKey) {
	l, err := specOf[protocol.FlowLog](o)
	if err != nil {
		return nil
	}
	for _, s := range l.Sites {
		out = append(out, state.ObjectKey{Kind: state.KindSite, Name: s})
	}
	for _, n := range l.Nodes {
		out = append(out, state.ObjectKey{Kind: state.KindNode, Name: n})
	}
	return out
}

// Tells tells those that log.
func (flowLogs) Tells(st *state.State, o state.Object) (json.RawMessage, []protocol.NodeNumber) {
	l, err := specOf[protocol.FlowLog](o)
	if err != nil {
		return nil, nil
	}
	var nodes []protocol.NodeNumber
	for _, n := range st.LiveNodes() {
		has := len(l.Sites) == 0 && len(l.Nodes) == 0 || slices.Contains(l.Sites, n.Site) || slices.Contains(l.Nodes, n.Name)
		for k, v := range l.Labels {
			has = has && n.Labels[k] == v
		}
		if has {
			nodes = append(nodes, n.Number)
		}
	}
	return o.Spec, nodes
}
