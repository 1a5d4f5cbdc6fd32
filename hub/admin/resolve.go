package admin

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

// maxEndName bounds what names an end: NODE/POD.
const maxEndName = 256

// end is what an operator means by a node, a pod or an address.
type end struct {
	api.DiagEnd
	node state.Node
	// behind is an address that the node carries for a pod or LAN host; invalid: the
	// node itself is meant.
	behind netip.Addr
}

// resolver finds ends in a state, with what is known live.
type resolver struct {
	st    *state.State
	owner func(protocol.NodeNumber, netip.Prefix) protocol.NodeNumber // of a route, where a node is; 0: nobody yet
	pods  func(protocol.NodeNumber) map[string]protocol.Container
}

func (s *Server) resolver(st *state.State) resolver {
	return resolver{st, s.cfg.Fleet.Owner, func(n protocol.NodeNumber) map[string]protocol.Container {
		f, _ := s.cfg.Inventory.Get(n)
		return f.Containers
	}}
}

// resolve finds the node that a text means: a node's name; a pod's, alone or as
// NODE/POD, as the inventory has it; an overlay address; an address inside an
// approved route, or SEGMENT/ADDRESS where several segments have it. What a node says of its pods counts only within its own routes.
func (r resolver) resolve(text string) (end, error) { return r.resolveNear(text, nil) }

// ends resolves two texts: where one alone says which segment is meant, the other is met there.
func (r resolver) ends(from, to string) (a, b end, err error) {
	if a, err = r.resolve(from); err == nil {
		b, err = r.resolveNear(to, &a.node)
		return a, b, err
	}
	b, other := r.resolve(to)
	if other != nil {
		return a, b, err
	}
	a, err = r.resolveNear(from, &b.node)
	return a, b, err
}

// resolveNear is resolve where near, if it is known, tells which segment's address is meant.
func (r resolver) resolveNear(text string, near *state.Node) (end, error) {
	if text == "" || len(text) > maxEndName {
		return end{}, huma.Error422UnprocessableEntity("each end is a node, a pod or an address")
	}
	if a, err := netip.ParseAddr(text); err == nil {
		if a.Zone() != "" {
			return end{}, huma.Error422UnprocessableEntity(fmt.Sprintf("%.80q has a zone: such addresses are not carried", text))
		}
		return r.resolveAddr(text, a.Unmap(), near)
	}
	if segment, a, ok := policy.ParsePlace(text); ok {
		return r.resolvePlace(text, segment, a)
	}
	if n, err := r.st.FindNode(text); err == nil {
		return r.nodeEnd(text, n)
	}
	return r.resolvePod(text)
}

func (r resolver) nodeEnd(text string, n state.Node) (end, error) {
	overlay, err := r.st.OverlayOf(n.Number)
	if err != nil || len(overlay) == 0 {
		return end{}, huma.Error409Conflict("node " + n.Name + " has no overlay address")
	}
	return end{DiagEnd: api.DiagEnd{Text: text, Node: n.Name, Site: n.Site, Addr: overlay[0]}, node: n}, nil
}

func (r resolver) resolveAddr(text string, a netip.Addr, near *state.Node) (end, error) {
	if n, ok := r.st.NodeByOverlay(a); ok {
		e, err := r.nodeEnd(text, n)
		e.Addr = a
		return e, err
	}
	all := r.carriers(a)
	if near != nil {
		if n, ok := all[r.st.PlaceOf(*near).Realm]; ok {
			return r.behind(text, a, n), nil
		}
	}
	switch len(all) {
	case 0:
		return end{}, huma.Error404NotFound(fmt.Sprintf("no node has the address %s or an approved route for it; see 'causeway route list'", a))
	case 1:
		for _, n := range all {
			return r.behind(text, a, n), nil
		}
	}
	return end{}, r.doubtful(a, all)
}

// doubtful says how to write which address is meant.
func (r resolver) doubtful(a netip.Addr, all map[string]state.Node) error {
	var at, ways []string
	for _, n := range all {
		segment := r.st.SegmentName(r.st.PlaceOf(n).Segment)
		at, ways = append(at, segment+" by "+n.Name), append(ways, segment+"/"+a.String())
	}
	slices.Sort(at)
	slices.Sort(ways)
	return huma.Error409Conflict(fmt.Sprintf("%d segments have %s: %s; write %s", len(all), a, strings.Join(at[:min(len(at), 5)], ", "), strings.Join(ways[:min(len(ways), 5)], " or ")))
}

// resolvePlace finds SEGMENT/ADDRESS.
func (r resolver) resolvePlace(text, segment string, a netip.Addr) (end, error) {
	realm, err := r.realmOf(segment)
	if err != nil {
		return end{}, err
	}
	n, ok := r.carriers(a)[realm]
	if !ok {
		return end{}, huma.Error404NotFound(fmt.Sprintf("no node of segment %s has an approved route for %s; see 'causeway route list'", segment, a))
	}
	return r.behind(text, a, n), nil
}

// realmOf is the realm of a segment that an operator names.
func (r resolver) realmOf(segment string) (string, error) {
	if segment == policy.UnassignedItem {
		return r.st.PlaceOf(state.Node{}).Realm, nil
	}
	if _, err := r.st.FindObject(state.ObjectKey{Kind: object.SegmentKind, Name: segment}); err != nil {
		return "", problem(err)
	}
	return r.st.Realms().Of(segment), nil
}

func (r resolver) behind(text string, a netip.Addr, n state.Node) end {
	e := end{DiagEnd: api.DiagEnd{Text: text, Node: n.Name, Site: n.Site, Addr: a}, node: n, behind: a}
	for _, c := range r.pods(n.Number) {
		if slices.Contains(c.Addresses, a) && c.State == protocol.ContainerRunning {
			e.Pod = c.Name
		}
	}
	return e
}

// carriers are the nodes to which packets for a go, by realm: the owners of the longest approved route there.
func (r resolver) carriers(a netip.Addr) map[string]state.Node {
	out, bits := map[string]state.Node{}, map[string]int{}
	for x := range r.st.Routes.Over(netip.PrefixFrom(a, a.BitLen())) { // the longest first
		node := r.st.Nodes.Get(x.Node)
		if !x.Carried() || !node.Live() {
			continue
		}
		realm := r.st.PlaceOf(node).Realm
		n, ok := out[realm]
		if ok && x.Prefix.Bits() < bits[realm] {
			continue
		}
		if owner := r.owner(x.Node, x.Prefix); !ok || owner == x.Node || owner != n.Number && x.Node < n.Number {
			out[realm], bits[realm] = node, x.Prefix.Bits()
		}
	}
	if len(out) > 1 {
		delete(out, policy.Doubtful)
	}
	return out
}

func (r resolver) resolvePod(text string) (end, error) {
	node, pod, both := strings.Cut(text, "/")
	if !both {
		node, pod = "", text
	}
	var found []end
	for _, n := range r.st.Nodes.All() {
		if !n.Live() || both && n.Name != node {
			continue
		}
		for _, c := range r.pods(n.Number) {
			if c.Name != pod || c.State != protocol.ContainerRunning {
				continue
			}
			for _, a := range c.Addresses {
				if at, ok := r.carriers(a)[r.st.PlaceOf(n).Realm]; ok && at.Number == n.Number {
					found = append(found, end{DiagEnd: api.DiagEnd{Text: text, Node: n.Name, Site: n.Site, Pod: c.Name, Addr: a}, node: n, behind: a})
					break
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b end) int { return strings.Compare(a.Node, b.Node) })
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return end{}, huma.Error409Conflict(fmt.Sprintf("%d running pods are named %.80q, on %s and %s: write NODE/POD or an address", len(found), pod, found[0].Node, found[1].Node))
	}
	return end{}, huma.Error404NotFound(fmt.Sprintf("%.80q is neither a node nor a running pod with an address in an approved route; see 'causeway node list' and 'causeway inventory list'", text))
}
