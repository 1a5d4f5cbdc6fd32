package admin

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
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
	owner func(netip.Prefix) protocol.NodeNumber // of a route; 0: nobody yet
	pods  func(protocol.NodeNumber) map[string]protocol.Container
}

func (s *Server) resolver(st *state.State) resolver {
	return resolver{st, func(p netip.Prefix) protocol.NodeNumber { return s.cfg.Fleet.Owner(p) }, func(n protocol.NodeNumber) map[string]protocol.Container {
		f, _ := s.cfg.Inventory.Get(n)
		return f.Containers
	}}
}

// resolve finds the node that a text means: a node's name; a pod's, alone or as
// NODE/POD, as the inventory has it; an overlay address; an address inside an
// approved route. What a node says of its pods counts only within its own routes.
func (r resolver) resolve(text string) (end, error) {
	if text == "" || len(text) > maxEndName {
		return end{}, huma.Error422UnprocessableEntity("each end is a node, a pod or an address")
	}
	if a, err := netip.ParseAddr(text); err == nil {
		if a.Zone() != "" {
			return end{}, huma.Error422UnprocessableEntity(fmt.Sprintf("%.80q has a zone: such addresses are not carried", text))
		}
		return r.resolveAddr(text, a.Unmap())
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

func (r resolver) resolveAddr(text string, a netip.Addr) (end, error) {
	if n, ok := r.st.NodeByOverlay(a); ok {
		e, err := r.nodeEnd(text, n)
		e.Addr = a
		return e, err
	}
	n, ok := r.carrier(a)
	if !ok {
		return end{}, huma.Error404NotFound(fmt.Sprintf("no node has the address %s or an approved route for it; see 'causeway route list'", a))
	}
	e := end{DiagEnd: api.DiagEnd{Text: text, Node: n.Name, Site: n.Site, Addr: a}, node: n, behind: a}
	for _, c := range r.pods(n.Number) {
		if slices.Contains(c.Addresses, a) && c.State == protocol.ContainerRunning {
			e.Pod = c.Name
		}
	}
	return e, nil
}

// carrier is the node to which packets for a go: the owner of the longest approved
// route.
func (r resolver) carrier(a netip.Addr) (n state.Node, ok bool) {
	bits := -1
	for _, x := range r.st.Routes.All() {
		node, live := r.st.Nodes.Find(x.Node)
		if !x.Carried() || !x.Prefix.Contains(a) || !live || !node.Live() || x.Prefix.Bits() < bits {
			continue
		}
		owner := r.owner(x.Prefix)
		if x.Prefix.Bits() > bits || owner == x.Node || owner != n.Number && x.Node < n.Number {
			n, ok, bits = node, true, x.Prefix.Bits()
		}
	}
	return n, ok
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
				if at, ok := r.carrier(a); ok && at.Number == n.Number {
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
