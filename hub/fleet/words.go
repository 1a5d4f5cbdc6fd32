package fleet

import (
	"net/netip"

	"causeway/hub/api"
	"causeway/hub/service"
	"causeway/protocol"
)

// Words are what nodes say of the backends beside them, in one snapshot. One goroutine alone uses it.
type Words struct {
	known Snapshot
	of    map[protocol.NodeNumber]map[backend]protocol.Readiness
}

type backend struct {
	service string
	addr    netip.Addr
}

// Words reads what nodes say.
func (s Snapshot) Words() *Words {
	return &Words{known: s, of: map[protocol.NodeNumber]map[backend]protocol.Readiness{}}
}

// said is what a node said last of backends.
func (w *Words) said(n protocol.NodeNumber, x Node) map[backend]protocol.Readiness {
	if m, ok := w.of[n]; ok {
		return m
	}
	m := map[backend]protocol.Readiness{}
	for _, r := range x.Status.Services {
		m[backend{r.Service, r.Addr}] = r.Ready
	}
	w.of[n] = m
	return m
}

// On is what is known of an endpoint of a service, as the nodes that carry it say: what one that is heard finds ready is. For
// StartGrace after the hub's start what was heard before it counts as ready until it says otherwise: whoever comes back first is
// not to have it all.
func (w *Words) On(name string, e service.Endpoint) service.Word {
	starting := w.known.at.Sub(w.known.Started) < StartGrace
	best := service.SaidNo
	saysNo, none := false, true
	for _, n := range e.Nodes {
		x := w.known.Node(n)
		ready, told := w.said(n, x)[backend{name, e.Addr}]
		told = told && ready != protocol.ReadyUnknown
		heard := x.Verdict.State == api.NodeReady || x.Verdict.State == api.NodeDegraded
		word := service.Away
		switch {
		case heard && told && ready == protocol.Ready:
			word = service.SaysWell
		case heard && told:
			saysNo = true
			continue
		case told && ready != protocol.Ready:
			word = service.SaidNo
		case starting && (heard || w.known.Before.Get(n).Online):
			word = service.SaysWell
		case heard:
			word = service.Silent
		}
		best, none = max(best, word), false
	}
	if saysNo && best != service.SaysWell || none {
		return service.SaidNo
	}
	return best
}
