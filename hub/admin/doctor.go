package admin

import (
	"context"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/doctor"
	"causeway/hub/facts/incident"
	"causeway/protocol"
)

func (s *Server) registerDoctor(a huma.API) {
	huma.Get(a, "/v1/doctor", func(ctx context.Context, _ *struct{}) (*body[api.Checkup], error) {
		s.compiled(ctx)
		return answer(doctor.Examine(s.doctorFacts(callerOf(ctx).Role)), nil)
	})
}

// Findings counts what 'causeway doctor' finds, by severity, as an admin would see it.
func (s *Server) Findings() map[string]int { return doctor.Count(s.doctorFacts(Admin)) }

// refused is what connected nodes refuse again and again, and policies do not open by now.
func (s *Server) refused(nodes []api.Node) (out []doctor.Refused) {
	p := s.cfg.Fleet.Policy()
	if p == nil || p.Compiled == nil {
		return nil // status says so
	}
	for _, n := range nodes {
		inv, ok := s.cfg.Inventory.Get(n.Number)
		if !ok || n.Connected.IsZero() {
			continue
		}
		for _, r := range inv.Refused {
			x := doctor.Refused{Node: n.Name, RefusedFlow: r}
			port, err := protocol.ParsePorts(protocol.PortText(r.Proto, r.Port))
			if err != nil {
				port = protocol.Ports{}
			}
			v, err := p.Compiled.Decide(r.From, r.To, port)
			switch {
			case err != nil:
				x.Nobodys, x.Why = true, err.Error()
			case v.Open:
				continue // since
			default:
				x.Why = v.String()
			}
			out = append(out, x)
		}
	}
	return out
}

// doctorFacts gathers what the hub knows, as far as a role may see it. No agent is asked.
func (s *Server) doctorFacts(role Role) doctor.Facts {
	st := s.cfg.Store.State()
	f := doctor.Facts{Now: time.Now(), Status: s.status(), Incidents: s.cfg.Incidents.List(incident.Filter{}), Conflicts: map[doctor.RouteKey]string{}}
	f.Backup = s.lastBackup()
	f.Behind = map[protocol.NodeNumber]time.Duration{}
	f.Late = map[protocol.NodeNumber]bool{}
	for n, x := range s.cfg.Fleet.Standings(st) {
		f.Behind[n], f.Late[n] = x.Behind, s.cfg.Fleet.Late(n)
	}
	f.Upgrades = map[protocol.NodeNumber]bool{}
	w := s.view(st)
	routes := w.allRoutes()
	for _, n := range shownNodes(st) {
		f.Upgrades[n.Number] = slices.Contains(s.cfg.Fleet.Info(*n).Hello.Features, protocol.FeatureUpgrade)
		shown := w.node(*n, routes[n.Number])
		for _, r := range shown.Routes {
			if r.State != protocol.RoutePending {
				continue
			}
			if err := st.ClaimConflict(*n, r.Prefix); err != nil {
				f.Conflicts[doctor.RouteKey{Node: n.Name, Prefix: r.Prefix.String()}] = err.Error()
			}
		}
		f.Nodes = append(f.Nodes, shown)
	}
	there := map[string]bool{}
	for _, n := range f.Nodes {
		there[n.Name] = !n.Connected.IsZero()
	}
	for _, x := range s.cfg.Fleet.Strays() {
		if n := st.Nodes.Get(x.Number); n.Gone != "" || x.Epoch <= n.KeyEpoch() {
			f.Strays = append(f.Strays, doctor.Stray{Node: n.Name, Site: n.Site, Number: n.Number, Addr: x.Addr.String(), Epoch: x.Epoch, KeyEpoch: n.KeyEpoch(), Gone: string(n.Gone), There: there[n.Name]})
		}
	}
	f.Refused = s.refused(f.Nodes)
	f.Services = s.serviceFindings()
	if s.cfg.CA != nil {
		f.CAExpires = s.cfg.CA.Expires()
	}
	if role >= access["GET /v1/admins"] {
		f.Admins = s.admins()
	}
	return f
}
