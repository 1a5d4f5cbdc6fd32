package object

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"

	"causeway/hub/api"
	"causeway/hub/policy"
	"causeway/hub/service"
	"causeway/hub/state"
	"causeway/protocol"
)

// ServiceKind is the kind of services.
const ServiceKind = protocol.ItemService

type services struct{}

func (services) Kind() string  { return ServiceKind }
func (services) Shape() uint32 { return 1 }

// Essential: an agent that lacks the kind goes on without services, as does a hub.
func (services) Essential() bool { return false }

func (services) Canonical(spec json.RawMessage) (json.RawMessage, error) {
	var s api.ServiceSpec
	if err := state.ReadStrictly(spec, &s); err != nil {
		return nil, err
	}
	var err error
	if s.Service, err = s.Normal(); err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// Stamp gives a service its addresses, which it keeps for life, and counts the choices of its writer.
func (services) Stamp(st *state.State, name string, o state.Object, spec json.RawMessage) (json.RawMessage, error) {
	var s, had api.ServiceSpec
	if err := state.ReadStrictly(spec, &s); err != nil {
		return nil, err
	}
	if s.Public.Said() {
		var err error
		if s.Public, err = s.Public.Normal(name); err != nil {
			return nil, state.Errorf(state.Invalid, "%v", err)
		}
	}
	if o.Kind != "" {
		var err error
		if had, err = specOf[api.ServiceSpec](o); err != nil {
			return nil, err
		}
	}
	for _, v := range []struct {
		field string
		six   bool
		own   *netip.Addr
		had   netip.Addr
	}{{"vip4", false, &s.VIP4, had.VIP4}, {"vip6", true, &s.VIP6, had.VIP6}} {
		asked := *v.own
		switch i := slices.IndexFunc(st.Overlay, func(p netip.Prefix) bool { return p.Addr().Is6() == v.six }); {
		case s.Headless && asked.IsValid():
			return nil, state.Errorf(state.Invalid, "%s: a headless service has no address of its own; leave it out", v.field)
		case s.Headless:
		case v.had.IsValid():
			if asked.IsValid() && asked != v.had {
				return nil, state.Errorf(state.Conflict, "%s: it has %s and keeps it while it is declared, so that it cannot be %s; leave %s out", v.field, v.had, asked, v.field)
			}
			*v.own = v.had
		case i < 0 && asked.IsValid():
			return nil, state.Errorf(state.Invalid, "%s: the overlay has no such addresses; leave it out", v.field)
		case i < 0:
		case asked.IsValid():
			why := st.MayHold(asked)
			if asked.Is6() != v.six || asked.Is4In6() || asked.Zone() != "" {
				why = "it is of the other family, or has a zone"
			}
			if why != "" {
				return nil, state.Errorf(state.Conflict, "%s: %s cannot be given: %s; leave %s out, and one is chosen", v.field, asked, why, v.field)
			}
		default:
			a, err := st.FreeAddress(st.Overlay[i], name)
			if err != nil {
				return nil, err
			}
			*v.own = a
		}
	}
	if s.Epoch != 0 && s.Epoch != had.Epoch {
		return nil, state.Errorf(state.Conflict, "epoch: it is %d by now and not %d: the writer was switched since; look at it again, or leave epoch out", had.Epoch, s.Epoch)
	}
	if err := switched(&s, had, st.Seq+1); err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// Holds are its addresses.
func (services) Holds(o state.Object) (out []netip.Addr) {
	var s struct {
		VIP4 netip.Addr `json:"vip4"`
		VIP6 netip.Addr `json:"vip6"`
	}
	if json.Unmarshal(o.Spec, &s) != nil {
		return nil
	}
	for _, a := range []netip.Addr{s.VIP4, s.VIP6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

func (services) Check(st *state.State, o state.Object) error {
	s, err := specOf[api.ServiceSpec](o)
	if err != nil {
		return err
	}
	if err := publicFree(st, o.Name, s.Public); err != nil {
		return err
	}
	if err := doorsFree(st, o.Name, s.Service); err != nil {
		return err
	}
	return state.Found(st, services{}.Names(o))
}

func (services) Names(o state.Object) (out []state.ObjectKey) {
	s, err := specOf[api.ServiceSpec](o)
	if err != nil {
		return nil
	}
	seen := map[state.ObjectKey]bool{}
	add := func(kind string, names ...string) {
		for _, name := range names {
			if k := (state.ObjectKey{Kind: kind, Name: name}); name != "" && !seen[k] {
				seen[k] = true
				out = append(out, k)
			}
		}
	}
	if s.Segment != protocol.DefaultSegment {
		add(SegmentKind, s.Segment)
	}
	for _, b := range s.Backends {
		add(state.KindSite, b.Site)
		add(state.KindNode, b.Node)
	}
	for site := range s.Weights {
		add(state.KindSite, site)
	}
	for _, x := range s.Expose {
		add(state.KindSite, x.Site)
		add(state.KindNode, x.Node)
	}
	add(state.KindSite, slices.Collect(maps.Keys(s.Public.Addresses))...)
	add(state.KindSite, slices.Concat(s.Order, s.Stay, s.Exclude, s.Fenced, []string{s.Writer, s.To})...)
	slices.SortFunc(out, state.CompareKeys)
	return out
}

// Hear: the clients of a service are told; those beside its backends, too.
func (services) Hear(st *state.State, o state.Object) (out []protocol.NodeNumber) {
	s, err := specOf[api.ServiceSpec](o)
	if err != nil {
		return nil
	}
	at := service.SegmentOf(s.Segment, declaredSegments(st))
	realms := st.Realms()
	for _, n := range st.LiveNodes() {
		if segmentOf(realms, n) == at {
			out = append(out, n.Number)
		}
	}
	return out
}

// ServiceOf reads a service.
func ServiceOf(o state.Object) (service.Declared, error) {
	s, err := specOf[api.ServiceSpec](o)
	return service.Declared{Name: o.Name, Generation: o.Generation, Created: o.Created, Service: s.Service, Epoch: s.Epoch, Public: s.Public}, err
}

// segmentOf is the segment of a node; of one in two segments none that is declared.
func segmentOf(realms state.Realms, n state.Node) string {
	if realms == nil {
		return policy.Unassigned
	}
	return realms.Segment(n.Site, n.Labels)
}

func declaredSegments(st *state.State) func(name string) bool {
	return func(name string) bool { return st.Objects.Has(state.ObjectKey{Kind: SegmentKind, Name: name}) }
}

// ServiceWorld is what services find in a state.
func ServiceWorld(st *state.State) *service.World {
	realms := st.Realms()
	carries := map[protocol.NodeNumber][]netip.Prefix{}
	for _, r := range st.Routes.All() {
		if r.Carried() {
			carries[r.Node] = append(carries[r.Node], r.Prefix)
		}
	}
	var nodes []service.Node
	for _, n := range st.LiveNodes() {
		own, err := st.OverlayOf(n.Number)
		if err != nil {
			continue
		}
		x := service.Node{Number: n.Number, Name: n.Name, Site: n.Site, Segment: segmentOf(realms, n), Own: own, Carries: carries[n.Number],
			Away: n.Quarantine != "" || n.Statement == nil}
		nodes = append(nodes, x)
	}
	realmOf := func(segment string) string { return segment }
	if realms != nil {
		realmOf = realms.Of
	}
	return service.NewWorld(nodes, realmOf, declaredSegments(st))
}

// ContainersOf are a node's running containers that have an address.
func ContainersOf(containers map[string]protocol.Container) (out []service.Container) {
	for _, c := range containers {
		if c.State == protocol.ContainerRunning && len(c.Addresses) > 0 {
			out = append(out, service.Container{ID: c.ID, Name: c.Name, Labels: c.Labels, Addrs: c.Addresses})
		}
	}
	slices.SortFunc(out, func(a, b service.Container) int { return service.CompareContainers(a, b) })
	return out
}
