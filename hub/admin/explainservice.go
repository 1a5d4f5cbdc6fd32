package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/hub/explain"
	"causeway/hub/object"
	"causeway/hub/state"
	"causeway/protocol"
)

// serviceTimeout is how long an agent may take to say what it makes of a service.
const serviceTimeout = 5 * time.Second

var errTooOld = errors.New("its agent is too old for this")

// serviceAsked finds the service that somebody names, by its name or one of its addresses.
func serviceAsked(st *state.State, asked string) (name string, spec api.ServiceSpec, ok bool) {
	a, err := netip.ParseAddr(asked)
	if _, node := st.NodeByName(asked); node {
		return "", spec, false
	}
	for _, o := range st.ObjectsOf(object.ServiceKind) {
		if err != nil && o.Name != asked || !o.Known() {
			continue
		}
		var s api.ServiceSpec
		if json.Unmarshal(o.Spec, &s) != nil {
			continue
		}
		if err != nil || s.VIP4 == a || s.VIP6 == a {
			return o.Name, s, true
		}
	}
	return "", spec, false
}

// throughService has a question about a service be one about the backend that the client's node chooses. What is left of it is for
// explainFlow; nothing is left where there is no backend.
func (s *Server) throughService(ctx context.Context, st *state.State, in *api.ExplainRequest) (*explain.Service, *api.ServiceChoice, error) {
	name, spec, ok := serviceAsked(st, in.To)
	if !ok {
		return nil, nil, nil
	}
	out := &explain.Service{Name: name, Segment: spec.Segment, VIP: spec.VIP4, Ports: explain.PortsOf(spec.Ports)}
	a, err := netip.ParseAddr(in.To)
	v6 := err == nil && a.Is6() || !spec.VIP4.IsValid() && spec.VIP6.IsValid()
	if from, err := netip.ParseAddr(in.From); err == nil && from.Unmap().Is6() {
		v6 = true
	}
	if v6 {
		out.VIP = spec.VIP6
	}
	if in.Proto == protocol.FlowICMP { // nothing else was asked for
		in.Proto = protocol.FlowTCP
		if len(spec.Ports) > 0 {
			in.Proto = spec.Ports[0].Protocol
		}
	}
	for _, p := range spec.Ports {
		if p.Protocol == in.Proto && (p.Port == in.Port || in.Port == 0) {
			out.Port, out.Target = p.Port, p.Target
			break
		}
	}
	var from, self explain.End
	if err := s.flowEnds(st, api.ExplainRequest{From: in.From, To: in.From}, &from, &self); err != nil {
		return nil, nil, err
	}
	if from.Node == nil {
		return out, nil, nil
	}
	told := s.cfg.Fleet.Services()
	if told != nil && told.Told != nil && told.Told.Nodes[from.Node.Number] != nil {
		out.Told = slices.ContainsFunc(told.Told.Nodes[from.Node.Number].Items, func(i *protocol.Item) bool { return i.Name == name })
	}
	view, err := s.serviceSeen(ctx, st.Nodes.Get(from.Node.Number), name)
	switch {
	case errors.Is(err, errTooOld):
		out.TooOld = true
	case err != nil:
		out.Error = protocol.OneLine(err.Error(), 300)
	default:
		out.View, out.Told = view, true
	}
	x, ok := out.Choice(v6)
	if !ok || out.Port == 0 {
		return out, nil, nil
	}
	in.To, in.Port = x.Addr.String(), out.Target
	if n, ok := st.NodeByName(x.Node); ok { // an address that several segments have is that of its own node's
		if segment := st.SegmentName(st.PlaceOf(n).Segment); st.PlaceOf(n).Realm != "" && segment != "" {
			in.To = segment + "/" + in.To
		}
	}
	return out, &api.ServiceChoice{Service: name, VIP: out.VIP, Port: out.Port, Addr: x.Addr, Target: out.Target, Site: x.Site, Node: x.Node, Slots: x.Slots, Of: x.Of}, nil
}

// serviceSeen asks a node's agent what it makes of a service.
func (s *Server) serviceSeen(ctx context.Context, n state.Node, name string) (*protocol.ServiceView, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+protocol.DebugServices+"?name="+name, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(protocol.DebugWho, who(ctx))
	resp, err := s.agentClient(n.Number, serviceTimeout).Do(req)
	if err != nil {
		return nil, agentError(n.Name, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, agentError(n.Name, err)
	}
	var p protocol.DebugError
	switch {
	case resp.StatusCode == http.StatusNotFound && json.Unmarshal(b, &p) != nil:
		return nil, errTooOld
	case resp.StatusCode != http.StatusOK:
		_ = json.Unmarshal(b, &p)
		return nil, fmt.Errorf("node %s: %s", n.Name, strings.TrimSpace(protocol.OneLine(p.Error, 256)))
	}
	return explain.ParseServices(b)
}
