package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/doctor"
	"causeway/hub/fleet"
	"causeway/hub/object"
	"causeway/hub/service"
	"causeway/hub/state"
	"causeway/protocol"
)

func (s *Server) registerServices(a huma.API) {
	huma.Get(a, "/v1/services", func(ctx context.Context, _ *struct{}) (*body[[]api.Service], error) {
		return answer(s.services(ctx))
	})
	huma.Get(a, "/v1/services/{name}", func(ctx context.Context, in *named) (*tagged[api.Service], error) {
		return s.service(ctx, s.cfg.Store.State(), in.Name)
	})
	huma.Patch(a, "/v1/services/{name}", func(ctx context.Context, in *struct {
		Name string `path:"name" maxLength:"63"`
		IfMatch
		Body api.ServicePatch
	}) (*tagged[api.Service], error) {
		key := serviceKey(in.Name)
		current := func(st *state.State) (string, error) {
			o, err := st.FindObject(key)
			return tag(o), err
		}
		st, err := s.change(ctx, in.IfMatch, "service "+patchText(in.Body, in.Name), key.String(), current, func(d *state.Draft) error { return patchService(d, in.Name, in.Body) })
		if err != nil {
			return nil, err
		}
		return s.service(ctx, st, in.Name)
	}, changes)
}

func serviceKey(name string) state.ObjectKey {
	return state.ObjectKey{Kind: object.ServiceKind, Name: name}
}

// patchText is why the log has a change.
func patchText(p api.ServicePatch, name string) string {
	var l []string
	if len(p.Weights) > 0 {
		l = append(l, "weights")
	}
	if len(p.Exclude) > 0 {
		l = append(l, "exclude "+strings.Join(p.Exclude, ", "))
	}
	if len(p.Include) > 0 {
		l = append(l, "include "+strings.Join(p.Include, ", "))
	}
	if p.Writer != "" {
		text := "switch to " + p.Writer
		if p.Force {
			text += " by force: nobody is waited for"
		}
		l = append(l, text)
	}
	for _, x := range p.Expose {
		l = append(l, "expose at "+cmp.Or(x.Site, x.Node)+" "+x.Listen)
	}
	for _, x := range p.Unexpose {
		l = append(l, "no more at "+cmp.Or(x.Site, x.Node)+" "+x.Listen)
	}
	return protocol.OneLine(name+": "+strings.Join(l, "; "), 256)
}

// patchService decides on a change of how a service uses its sites.
func patchService(d *state.Draft, name string, p api.ServicePatch) error {
	o, err := d.FindObject(serviceKey(name))
	if err != nil {
		return err
	}
	if !o.Known() {
		return state.Errorf(state.Conflict, "%s: a newer causeway-hub wrote it; change it there", o.Key())
	}
	var spec api.ServiceSpec
	if err := state.ReadStrictly(o.Spec, &spec); err != nil {
		return err
	}
	if len(p.Weights)+len(p.Exclude)+len(p.Include)+len(p.Expose)+len(p.Unexpose) == 0 && p.Writer == "" {
		return state.Errorf(state.Invalid, "nothing to change: weights, exclude, include, writer, expose or unexpose is missing")
	}
	if err := patchExpose(&spec.Service, p); err != nil {
		return err
	}
	if len(p.Weights) > 0 {
		if spec.Mode != protocol.ServiceSpread {
			return state.Errorf(state.Invalid, "service %s has mode %s, which uses one site at a time; only mode spread has weights", name, spec.Mode)
		}
		weights := map[string]int{}
		maps.Copy(weights, spec.Weights)
		maps.Copy(weights, p.Weights)
		spec.Weights, spec.Prefer = weights, protocol.PreferWeights
	}
	spec.Exclude = append(slices.Clone(spec.Exclude), p.Exclude...)
	for _, site := range p.Include {
		if _, err := d.FindSite(site); err != nil {
			return err
		}
		spec.Exclude = slices.DeleteFunc(spec.Exclude, func(s string) bool { return s == site })
	}
	if p.Writer != "" {
		if spec.Mode != protocol.ServiceSingleWriter {
			return state.Errorf(state.Invalid, "service %s has mode %s; only a service of mode single-writer is switched, another one leaves a site by 'causeway service exclude %s SITE'", name, spec.Mode, name)
		}
		if p.Force {
			if len(p.Weights)+len(p.Exclude)+len(p.Include) > 0 {
				return state.Errorf(state.Invalid, "a switch by force is a change by itself")
			}
			return object.ForceSwitch(d, name, p.Writer)
		}
		if spec.To == "" || spec.To != p.Writer {
			spec.Writer, spec.To, spec.Epoch = p.Writer, "", 0
		}
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return state.PutObject(d, object.ServiceKind, name, b)
}

// services lists all.
func (s *Server) services(ctx context.Context) ([]api.Service, error) {
	out, err := s.Services(ctx)
	for i := range out {
		out[i].Endpoints = nil
	}
	return out, err
}

// Services are all, with their endpoints.
func (s *Server) Services(ctx context.Context) ([]api.Service, error) {
	st := s.cfg.Store.State()
	v, err := s.serviceView(ctx, st)
	if err != nil {
		return nil, err
	}
	out := []api.Service{}
	for _, o := range st.ObjectsOf(object.ServiceKind) {
		out = append(out, v.show(o))
	}
	return out, nil
}

// A service that was declared just now is shown with the first words of the nodes beside its backends, if they come soon.
const (
	firstWords = 1500 * time.Millisecond
	firstLook  = 50 * time.Millisecond
)

// untold reports whether a node that is connected has not told of a backend yet.
func untold(s api.Service) bool {
	return slices.ContainsFunc(s.Endpoints, func(e api.ServiceEndpoint) bool { return e.Ready == api.EndpointUnknown && e.Cause == untoldCause })
}

// service shows one as a state declares it.
func (s *Server) service(ctx context.Context, st *state.State, name string) (*tagged[api.Service], error) {
	o, err := st.FindObject(serviceKey(name))
	if err != nil {
		return nil, problem(err)
	}
	v, err := s.serviceView(ctx, st)
	if err != nil {
		return nil, err
	}
	out := v.show(o)
	for end := o.Created.Add(firstWords); untold(out) && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(firstLook):
		}
		if v, err = s.serviceView(ctx, st); err != nil {
			return nil, err
		}
		out = v.show(o)
	}
	have, lack := v.fleet.Has(st, o)
	out.Have, out.Lack = len(have), names(st, lack)
	v.fence(o, &out)
	return withTag(out.ETag, out)
}

// serviceView shows services of one state, with what nodes say of them.
type serviceView struct {
	st    *state.State
	told  *fleet.Services
	fleet fleet.Snapshot
	words map[protocol.NodeNumber]map[backendKey]protocol.ServiceReadiness // of nodes that were asked about

	public publicView
}

const untoldCause = "no node that carries it has told yet"

type backendKey struct {
	service string
	addr    netip.Addr
}

func (s *Server) serviceView(ctx context.Context, st *state.State) (*serviceView, error) {
	told, err := s.cfg.Fleet.ServicesAt(ctx, st.Seq)
	if err != nil {
		return nil, huma.Error503ServiceUnavailable(err.Error())
	}
	return s.newServiceView(st, told), nil
}

func (s *Server) newServiceView(st *state.State, told *fleet.Services) *serviceView {
	return &serviceView{st: st, told: told, fleet: s.cfg.Fleet.Snapshot(), words: map[protocol.NodeNumber]map[backendKey]protocol.ServiceReadiness{},
		public: publicView{zone: s.cfg.PublicZone}}
}

// wordsOf is what a node that is connected says of backends.
func (v *serviceView) wordsOf(n protocol.NodeNumber) map[backendKey]protocol.ServiceReadiness {
	if m, ok := v.words[n]; ok {
		return m
	}
	m := map[backendKey]protocol.ServiceReadiness{}
	if x := v.fleet.Node(n); x.Session != nil {
		for _, r := range x.Status.Services {
			m[backendKey{r.Service, r.Addr}] = r
		}
	}
	v.words[n] = m
	return m
}

func (v *serviceView) show(o state.Object) api.Service {
	out := api.Service{Name: o.Name, Generation: o.Generation, Created: o.Created, Changed: o.Changed, Sites: []api.ServiceSite{}, Findings: []api.ServiceFinding{}, ETag: tag(o)}
	if json.Unmarshal(o.Spec, &out.ServiceSpec) != nil || !o.Known() {
		out.Findings = append(out.Findings, api.ServiceFinding{Check: "objects", Text: "a newer hub wrote it; this hub keeps it and does not know what it means"})
		return out
	}
	r := v.told.Of(o.Name)
	if r == nil {
		return out
	}
	for _, f := range v.findings(r) {
		out.Findings = append(out.Findings, api.ServiceFinding{Check: f.Check, Text: f.Text})
	}
	out.PublicName, out.Answers = v.answers(r)
	for _, e := range r.Endpoints {
		x := v.endpoint(r, e)
		out.Endpoints = append(out.Endpoints, x)
		if len(out.Sites) == 0 || out.Sites[len(out.Sites)-1].Site != e.Site {
			out.Sites = append(out.Sites, api.ServiceSite{Site: e.Site, Excluded: slices.Contains(r.Exclude, e.Site)})
		}
		at := &out.Sites[len(out.Sites)-1]
		at.All++
		switch x.Ready {
		case api.EndpointReady:
			at.Ready++
		case api.EndpointNotReady:
			at.NotReady++
		default:
			at.Unknown++
		}
		if r.Used(e) && x.Ready != api.EndpointNotReady {
			at.Usable++
		}
	}
	return out
}

// endpoint shows one, as the nodes that carry it say: what one of them finds ready is.
func (v *serviceView) endpoint(r *service.Result, e service.Endpoint) api.ServiceEndpoint {
	out := api.ServiceEndpoint{Addr: e.Addr, Site: e.Site, Name: e.Name, Nodes: names(v.st, e.Nodes), Ready: api.EndpointUnknown, Away: e.Away}
	if out.Away == "" && !r.Used(e) {
		out.Away = "site " + e.Site + " is excluded"
		if r.Mode == protocol.ServiceSingleWriter && !r.MayServe(e.Site) {
			out.Away = "site " + e.Site + " does not serve, or not yet"
		}
	}
	connected := false
	for _, n := range e.Nodes {
		connected = connected || v.fleet.Node(n).Session != nil
		w, said := v.wordsOf(n)[backendKey{r.Name, e.Addr}]
		if !said || w.Ready == protocol.ReadyUnknown || out.Ready == api.EndpointReady || w.Ready != protocol.Ready && out.Ready == api.EndpointNotReady {
			continue
		}
		out.Ready, out.Cause, out.Since = w.Ready.String(), w.Cause, w.Since
	}
	switch {
	case out.Ready != api.EndpointUnknown:
	case !connected:
		out.Cause = "no node that carries it is connected"
	case out.Away == "":
		out.Cause = untoldCause
	}
	return out
}

// findings are those of a service, with what is known live of it.
func (v *serviceView) findings(r *service.Result) (out []service.Finding) {
	if v.told.Told.LeftOut[r.Name] {
		out = append(out, service.Finding{Check: service.CheckSurplus, Text: service.LeftOutText})
	}
	out = append(out, v.publicFindings(r)...)
	if r.To != "" { // what its backends are does not matter meanwhile
		return append(append(out, v.switchFinding(r.Name)...), r.Findings...)
	}
	first := ""
	for _, e := range r.Endpoints {
		if !r.Used(e) {
			continue
		}
		x := v.endpoint(r, e)
		if x.Ready != api.EndpointNotReady {
			return append(out, r.Findings...)
		}
		if first == "" {
			first = protocol.OneLine(e.Name+" at "+e.Site+": "+x.Cause, 200)
		}
	}
	if first != "" {
		out = append(out, service.Finding{Check: service.CheckEmpty, Text: "nobody takes its connections: none of its backends is ready, such as " + first})
	}
	return append(out, r.Findings...)
}

// serviceFindings are those of all services, for the doctor.
func (s *Server) serviceFindings() (out []doctor.Service) {
	told := s.cfg.Fleet.Services()
	if told == nil || told.Told == nil {
		return nil
	}
	v := s.newServiceView(s.cfg.Store.State(), told)
	for _, name := range slices.Sorted(maps.Keys(told.Told.Services)) {
		r := told.Told.Services[name]
		for _, f := range v.findings(r) {
			out = append(out, doctor.Service{Name: name, Check: f.Check, Text: f.Text})
		}
	}
	return out
}

// fence shows whom a switch of a service waits for.
func (v *serviceView) fence(o state.Object, out *api.Service) {
	d, err := object.ServiceOf(o)
	if err != nil || v.told == nil {
		return
	}
	switch {
	case d.To != "":
		for _, u := range v.fleet.Unfenced(v.st, o, d, v.told.Told, time.Now()) {
			out.Waits = append(out.Waits, api.ServiceWait{Node: v.st.Nodes.Get(u.Node).Name, Why: u.Why, Until: u.Until})
		}
	case len(d.Fenced) > 0:
		out.Unaware = names(v.st, v.fleet.Unaware(v.st, o, d, v.told.Told))
	}
}

// switchSlow is how long a switch may wait without being a finding.
const switchSlow = time.Minute

// switchFinding is what is wrong with a switch that waits.
func (v *serviceView) switchFinding(name string) (out []service.Finding) {
	o, err := v.st.FindObject(serviceKey(name))
	if err != nil || time.Since(o.Changed) < switchSlow {
		return nil
	}
	var s api.Service
	if v.fence(o, &s); len(s.Waits) == 0 {
		return nil
	}
	d, _ := object.ServiceOf(o)
	return []service.Finding{{Check: service.CheckSwitch, Text: protocol.OneLine(fmt.Sprintf("nobody takes its connections: the switch from %s to %s waits for %d nodes, such as %s: %s", d.Writer, d.To, len(s.Waits), s.Waits[0].Node, s.Waits[0].Why), 300)}}
}
