package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/explain"
	"causeway/hub/facts/incident"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

// Limits of explaining.
const (
	// evidenceTimeout is how long an agent may take: it answers within 8 s.
	evidenceTimeout = 12 * time.Second
	// recently is how long an incident that is over still tells why a flow failed.
	recently = time.Minute
	// againAfter is how long an end may be asked in vain before what the other end saw
	// meanwhile is too old to tell why.
	againAfter = 4 * time.Second
	// mostExplained bounds how many flows are explained at once: each asks two agents.
	mostExplained = 16
)

// explainFlow judges a flow: it asks both ends' agents for evidence and decides.
func (s *Server) explainFlow(ctx context.Context, in api.ExplainRequest) (api.Explanation, error) {
	start := time.Now()
	in.Proto = cmp.Or(in.Proto, map[bool]string{true: protocol.FlowTCP, false: protocol.FlowICMP}[in.Port != 0])
	switch {
	case in.From == "" || in.To == "" || len(in.From) > maxEndName || len(in.To) > maxEndName:
		return api.Explanation{}, huma.Error422UnprocessableEntity("name both ends: nodes, pods or addresses")
	case in.Proto != protocol.FlowTCP && in.Proto != protocol.FlowUDP && in.Proto != protocol.FlowICMP:
		return api.Explanation{}, huma.Error422UnprocessableEntity("proto is tcp, udp or icmp")
	case in.Proto == protocol.FlowICMP && in.Port != 0:
		return api.Explanation{}, huma.Error422UnprocessableEntity("icmp has no ports")
	}
	select {
	case s.explaining <- struct{}{}:
		defer func() { <-s.explaining }()
	case <-ctx.Done():
		return api.Explanation{}, ctx.Err()
	}
	st := s.cfg.Store.State()
	f := explain.Facts{AskedPort: in.Port}
	asked := in.To
	var err error
	if f.Service, f.Chosen, err = s.throughService(ctx, st, &in); err != nil {
		return api.Explanation{}, err
	}
	f.Proto, f.Port = in.Proto, in.Port
	if f.Service != nil && f.Chosen == nil {
		var self explain.End
		err = s.flowEnds(st, api.ExplainRequest{From: in.From, To: in.From}, &f.From, &self)
		f.To = explain.End{Asked: asked, Kind: explain.KindService, Addr: f.Service.VIP}
	} else {
		err = s.flowEnds(st, in, &f.From, &f.To)
	}
	if err != nil {
		return api.Explanation{}, err
	}
	s.askEnds(ctx, &f, [2]protocol.EvidenceRequest{
		{Local: f.From.Addr, Remote: f.To.Addr, Proto: f.Proto, Port: f.Port},
		{Local: f.To.Addr, Remote: f.From.Addr, Proto: f.Proto, Port: f.Port, Serves: true},
	})
	f.Now, f.Conditions = time.Now(), s.status().Conditions
	// What the hub knows of the agents now, after they were asked.
	for _, e := range []*explain.End{&f.From, &f.To} {
		s.know(s.cfg.Store.State(), e)
	}
	if f.To.Kind != explain.KindService {
		f.Closed = s.closedBy(ctx, f.From, f.To, f.Proto, f.Port)
	}
	out := explain.Decide(f)
	out.Took = api.Duration(time.Since(start).Round(time.Millisecond))
	return out, nil
}

// askEnds asks the agents of both ends at once, and one of them again where the other
// did not answer for long.
func (s *Server) askEnds(ctx context.Context, f *explain.Facts, q [2]protocol.EvidenceRequest) {
	var wg sync.WaitGroup
	start, ends := time.Now(), []*explain.End{&f.From, &f.To}
	for i, e := range ends {
		other := ends[1-i]
		if e.Node == nil || !e.Addr.IsValid() || !other.Addr.IsValid() {
			continue
		}
		if other.Node != nil {
			q[i].Peer = other.Node.Number
		}
		node := s.cfg.Store.State().Nodes.Get(e.Node.Number)
		wg.Go(func() {
			ev, err := s.evidence(ctx, node, q[i])
			if err != nil {
				e.Error = protocol.OneLine(err.Error(), 300)
				return
			}
			e.Evidence, e.At = &ev, time.Now()
		})
	}
	wg.Wait()
	if time.Since(start) < againAfter {
		return
	}
	for i, e := range ends {
		if other := ends[1-i]; e.Evidence != nil && other.Node != nil && other.Evidence == nil && !s.saidGoodbye(other) {
			if ev, err := s.evidence(ctx, s.cfg.Store.State().Nodes.Get(e.Node.Number), q[i]); err == nil {
				e.Evidence, e.At = &ev, time.Now()
			}
		}
	}
}

// saidGoodbye reports whether an end's agent ended its session itself, so that nobody has
// to look for it.
func (s *Server) saidGoodbye(e *explain.End) bool {
	i := s.cfg.Fleet.Info(s.cfg.Store.State().Nodes.Get(e.Node.Number))
	return i.Connected.IsZero() && i.Goodbye
}

// evidence asks a node's agent.
func (s *Server) evidence(ctx context.Context, n state.Node, q protocol.EvidenceRequest) (protocol.Evidence, error) {
	var text json.RawMessage
	if err := s.ask(ctx, n, protocol.DebugEvidence, q, &text, evidenceTimeout); err != nil {
		return protocol.Evidence{}, err
	}
	return explain.ParseEvidence(text)
}

// flowEnds finds what the question's names mean, in one address family.
func (s *Server) flowEnds(st *state.State, in api.ExplainRequest, from, to *explain.End) error {
	for _, x := range []struct {
		e     *explain.End
		asked string
		other string
	}{{from, in.From, in.To}, {to, in.To, in.From}} {
		o, err := netip.ParseAddr(x.other)
		if _, a, ok := policy.ParsePlace(x.other); ok {
			o, err = a, nil
		}
		six := err == nil && o.Unmap().Is6()
		*x.e = explain.End{Asked: x.asked, Kind: explain.KindUnknown}
		if _, a, ok := policy.ParsePlace(x.asked); ok {
			x.e.Kind, x.e.Addr = explain.KindAddress, a
		} else if a, err := netip.ParseAddr(x.asked); err == nil {
			if a.Zone() != "" {
				return huma.Error422UnprocessableEntity("an address with a zone means something on its own host alone: " + protocol.OneLine(x.asked, maxEndName))
			}
			x.e.Kind, x.e.Addr = explain.KindAddress, a.Unmap()
		} else if n, ok := st.NodeByName(x.asked); ok {
			x.e.Kind = explain.KindNode
			overlay, _ := st.OverlayOf(n.Number)
			x.e.Addr = ofFamily(overlay, six)
			node := s.toNode(st, n)
			x.e.Node = &node
		} else if err := s.pod(st, x.asked, six, x.e); err != nil {
			return err
		}
	}
	if err := s.places(st, from, to); err != nil {
		return err
	}
	s.know(st, from)
	s.know(st, to)
	if from.Addr.IsValid() && to.Addr.IsValid() && from.Addr.Is4() != to.Addr.Is4() {
		return huma.Error422UnprocessableEntity(fmt.Sprintf("%s and %s are of different address families", from.Addr, to.Addr))
	}
	return nil
}

// places finds whose an address is that several segments have: that of the segment that is named, or in which the other
// end is.
func (s *Server) places(st *state.State, from, to *explain.End) error {
	r := s.resolver(st)
	for i, e := range []*explain.End{from, to} {
		other := []*explain.End{to, from}[i]
		if e.Kind != explain.KindAddress {
			continue
		}
		var n state.Node
		segment, _, named := policy.ParsePlace(e.Asked)
		switch all := r.carriers(e.Addr); {
		case named:
			realm, err := r.realmOf(segment)
			if err != nil {
				return err
			}
			if n = all[realm]; n.Number == 0 {
				return huma.Error404NotFound(fmt.Sprintf("no node of segment %s has an approved route for %s; see 'causeway route list'", segment, e.Addr))
			}
		case len(all) < 2:
			continue
		default:
			if o, ok := s.placeOf(r, other); ok {
				n = all[o]
			}
			if n.Number == 0 {
				return r.doubtful(e.Addr, all)
			}
		}
		shown := s.toNode(st, n)
		e.Node, e.Segment = &shown, st.SegmentName(st.PlaceOf(n).Segment)
	}
	return nil
}

// placeOf is the realm of an end, if it alone says which.
func (s *Server) placeOf(r resolver, e *explain.End) (realm string, ok bool) {
	if segment, _, named := policy.ParsePlace(e.Asked); named {
		realm, err := r.realmOf(segment)
		return realm, err == nil
	}
	if e.Node != nil {
		return r.st.PlaceOf(r.st.Nodes.Get(e.Node.Number)).Realm, true
	}
	if n, ok := r.st.NodeByOverlay(e.Addr); ok {
		return r.st.PlaceOf(n).Realm, true
	}
	all := r.carriers(e.Addr)
	for realm := range all {
		return realm, len(all) == 1
	}
	return "", false
}

func ofFamily(l []netip.Addr, six bool) netip.Addr {
	for _, a := range l {
		if a.Is6() == six {
			return a
		}
	}
	return netip.Addr{}
}

// pod finds a container by its name, or by NODE/NAME, in the inventory.
func (s *Server) pod(st *state.State, asked string, six bool, e *explain.End) error {
	node, name, named := strings.Cut(asked, "/")
	if !named {
		node, name = "", asked
	}
	var found []string
	for _, n := range st.LiveNodes() {
		if node != "" && n.Name != node {
			continue
		}
		f, ok := s.cfg.Inventory.Get(n.Number)
		if !ok {
			continue
		}
		for _, c := range f.Containers {
			if c.Name != name {
				continue
			}
			found = append(found, n.Name+"/"+c.Name)
			e.Kind, e.Addr = explain.KindPod, ofFamily(c.Addresses, six)
			shown := s.toNode(st, n)
			e.Node = &shown
		}
	}
	switch {
	case len(found) > 1:
		return huma.Error409Conflict(fmt.Sprintf("%s is the name of %d pods: %s; write NODE/POD or an address", asked, len(found), strings.Join(found[:min(len(found), 5)], ", ")))
	case len(found) == 1 && !e.Addr.IsValid():
		return huma.Error409Conflict(fmt.Sprintf("pod %s has no address of that family in the inventory; it may be stopped, see 'causeway inventory show %s'", asked, e.Node.Name))
	}
	return nil
}

// know fills in what the hub itself knows of an end.
func (s *Server) know(st *state.State, e *explain.End) {
	if !e.Addr.IsValid() {
		return
	}
	e.Routes, e.Taken = nil, nil
	if n, ok := st.NodeByOverlay(e.Addr); ok {
		shown := s.toNode(st, n)
		e.Node = &shown
	} else {
		for _, r := range s.cfg.Fleet.State().Routes.All() {
			n := st.Nodes.Get(r.Node)
			if r.Prefix.Contains(e.Addr) && n.Live() && (e.Node == nil || st.PlaceOf(n).Realm == st.PlaceOf(st.Nodes.Get(e.Node.Number)).Realm) {
				e.Routes = append(e.Routes, s.toRoute(st, r))
			}
		}
		// What is in netmaps first, then the longest.
		slices.SortFunc(e.Routes, func(a, b api.Route) int {
			rank := func(r api.Route) int {
				if r.Owner {
					return 0
				}
				return 1
			}
			return cmp.Or(rank(a)-rank(b), b.Prefix.Bits()-a.Prefix.Bits(), cmp.Compare(a.Node, b.Node))
		})
		if len(e.Routes) > 0 {
			n, ok := st.NodeByName(e.Routes[0].Node)
			switch {
			case !ok:
			case e.Kind == explain.KindPod && e.Node != nil && e.Node.Site != e.Routes[0].Site:
				e.Taken = &e.Routes[0] // the pod is where the inventory has it
			default:
				shown := s.toNode(st, n)
				e.Node = &shown
			}
			e.Conflict = ""
			if err := st.ClaimConflict(n, e.Routes[0].Prefix); err != nil {
				e.Conflict = err.Error()
			}
		}
	}
	if e.Node == nil {
		return
	}
	n := st.Nodes.Get(e.Node.Number)
	i := s.cfg.Fleet.Info(n)
	e.Connected, e.Goodbye, e.Silent, e.Bound = !i.Connected.IsZero(), i.Goodbye, -1, e.Node.Underlay
	if !i.LastWord.IsZero() {
		e.Silent = time.Since(i.LastWord)
	}
	e.Incidents = nil
	for _, x := range s.cfg.Incidents.List(incident.Filter{Node: n.Name}) {
		if x.State != protocol.IncidentOver || time.Since(x.Received) < recently {
			e.Incidents = append(e.Incidents, x)
		}
	}
}
