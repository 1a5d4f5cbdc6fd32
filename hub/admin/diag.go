package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// maxAnswer bounds what an agent answers to a question.
const maxAnswer = 256 << 10

// traceTimeout bounds an agent's part of a trace: three rounds of echoes, and the
// time that a path takes to be found.
const traceTimeout = 50 * time.Second

func (s *Server) registerDiag(a huma.API) {
	huma.Post(a, "/v1/diag/ping", func(ctx context.Context, in *struct{ Body api.PingRequest }) (*body[api.PingResult], error) {
		return answer(s.ping(ctx, in.Body))
	})
	huma.Post(a, "/v1/diag/trace", func(ctx context.Context, in *struct{ Body api.TraceRequest }) (*body[api.Trace], error) {
		return answer(s.trace(ctx, in.Body))
	})
	huma.Post(a, "/v1/diag/explain", func(ctx context.Context, in *struct{ Body api.ExplainRequest }) (*body[api.Explanation], error) {
		return answer(s.explainFlow(ctx, in.Body))
	})
	huma.Post(a, "/v1/diag/mtu", func(ctx context.Context, in *struct{ Body api.MTURequest }) (*body[api.MTU], error) {
		return answer(s.mtu(ctx, in.Body))
	})
	huma.Post(a, "/v1/diag/bench", func(ctx context.Context, in *struct{ Body api.BenchRequest }) (*body[api.Bench], error) {
		return answer(s.bench(ctx, in.Body))
	})
}

// ask posts in to an endpoint of node n's agent and reads the answer into out.
func (s *Server) ask(ctx context.Context, n state.Node, path string, in, out any, timeout time.Duration) error {
	b, err := json.Marshal(in)
	if err != nil {
		return problem(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+path, bytes.NewReader(b))
	if err != nil {
		return problem(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(protocol.DebugWho, who(ctx))
	resp, err := s.agentClient(n.Number, timeout).Do(req)
	if err != nil {
		return agentError(n.Name, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return agentError(n.Name, err)
	}
	if resp.StatusCode == http.StatusNotFound {
		return huma.Error502BadGateway(fmt.Sprintf("the agent of node %s is too old for this; see 'causeway node show %s'", n.Name, n.Name))
	}
	if resp.StatusCode != http.StatusOK {
		var p protocol.DebugError
		if json.Unmarshal(answer, &p) != nil || p.Error == "" {
			p.Error = string(answer)
		}
		return huma.Error502BadGateway(fmt.Sprintf("node %s refused: %s", n.Name, strings.TrimSpace(protocol.OneLine(p.Error, 400))))
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return huma.Error502BadGateway(fmt.Sprintf("the answer of node %s makes no sense", n.Name))
	}
	return nil
}

// ends resolves both ends of a diagnosis, which are on two nodes.
func (s *Server) ends(from, to string) (a, b end, err error) {
	r := s.resolver(s.cfg.Store.State())
	if a, b, err = r.ends(from, to); err != nil {
		return a, b, err
	}
	if a.node.Number == b.node.Number {
		return a, b, huma.Error422UnprocessableEntity("both ends are on node " + a.Node + ": nothing of the tunnel is between them")
	}
	return a, b, nil
}

// trace lets both ends look at what is between them.
func (s *Server) trace(ctx context.Context, in api.TraceRequest) (api.Trace, error) {
	a, b, err := s.ends(in.From, in.To)
	if err != nil {
		return api.Trace{}, err
	}
	if in.Count == 0 {
		in.Count = pingDefault
	}
	if in.Count < 1 || in.Count > protocol.MaxTracePings {
		return api.Trace{}, huma.Error422UnprocessableEntity(fmt.Sprintf("a trace sends 1 to %d packets to each hop", protocol.MaxTracePings))
	}
	out := api.Trace{From: a.DiagEnd, To: b.DiagEnd}
	look := func(from, to end) (*protocol.TraceView, string) {
		var t protocol.TraceView
		q := protocol.TraceQuestion{Peer: to.node.Number, From: from.behind, To: to.behind, Count: in.Count}
		if err := s.ask(ctx, from.node, protocol.DebugTrace, q, &t, traceTimeout); err != nil {
			return nil, err.Error()
		}
		t.Clean()
		t.Node, t.Number = from.Node, from.node.Number
		return &t, t.Error
	}
	var wg sync.WaitGroup
	wg.Go(func() { out.Forward, out.ForwardError = look(a, b) })
	wg.Go(func() { out.Back, out.BackError = look(b, a) })
	wg.Wait()
	if out.Forward == nil && out.Back == nil {
		return api.Trace{}, huma.Error502BadGateway(out.ForwardError + "; " + out.BackError)
	}
	out.Hops = hops(out)
	return out, nil
}

// hops puts together what both ends saw, from the first to the last: the time of a
// hop is there and back between it and the one before.
func hops(t api.Trace) []api.TraceHop {
	f, b := t.Forward, t.Back
	if f == nil {
		f = &protocol.TraceView{}
	}
	if b == nil {
		b = &protocol.TraceView{}
	}
	var out []api.TraceHop
	pinged := func(p *protocol.Pinged, whose string) (rtt api.Duration, ok bool, note string) {
		if p == nil {
			return 0, false, whose
		}
		return api.Duration(p.AvgRTT), p.Received > 0, p.Error
	}
	host := api.TraceHop{Kind: api.HopHost, Name: t.From.Node, Addr: f.Overlay, OK: t.Forward != nil && t.ForwardError == "", Note: t.ForwardError}
	if f.Local != nil {
		rtt, ok, note := pinged(f.Local, "")
		out = append(out, api.TraceHop{Kind: api.HopPod, Name: t.From.Pod, Addr: t.From.Addr, OK: ok, Note: note})
		host.RTT = rtt
	}
	if r := f.Route; host.OK {
		switch {
		case r.Error != "":
			host.OK, host.Note = false, r.Error
		default:
			host.Note = fmt.Sprintf("route: dev %s table %d mtu %d", r.Interface, r.Table, r.MTU)
		}
	}
	out = append(out, host)
	tunnel := api.TraceHop{Kind: api.HopTunnel, Name: string(f.Peer.Path), Addr: f.Peer.Addr.Addr(), OK: f.Peer.Path != "" && f.Peer.Path != protocol.PathNone, Note: f.Peer.Why}
	if f.Peer.Path == "" {
		tunnel.Name = string(protocol.PathNone)
	}
	if f.Peer.Path == protocol.PathDirect {
		tunnel.RTT = api.Duration(f.Peer.RTT)
	}
	out = append(out, tunnel)
	far := api.TraceHop{Kind: api.HopHost, Name: t.To.Node}
	if f.Peer.Path == protocol.PathRelay || f.Peer.Path == protocol.PathStream {
		var hub protocol.NodeNumber
		for _, c := range f.Peer.Candidates {
			if c.Chosen {
				hub = c.Hub
			}
		}
		h := api.TraceHop{Kind: api.HopHub, Name: fmt.Sprintf("hub %d", hub), Note: "node " + t.From.Node + " does not reach it"}
		for _, p := range f.Hubs {
			if p.Peer == hub {
				h.Addr, h.RTT, h.OK = p.Addr.Addr(), api.Duration(p.RTT), p.Path != protocol.PathNone
				h.Note = "over " + string(p.Path)
			}
		}
		out = append(out, h)
		for _, p := range b.Hubs {
			if p.Peer == hub {
				far.RTT = api.Duration(p.RTT)
			}
		}
	}
	far.Addr = f.PeerPing.Addr
	far.Total, far.OK, far.Note = pinged(&f.PeerPing, "")
	if t.Forward == nil {
		far.OK = false
	}
	if t.BackError != "" {
		far.Note = t.BackError
	}
	out = append(out, far)
	if f.EndPing != nil || b.Local != nil {
		p := api.TraceHop{Kind: api.HopPod, Name: t.To.Pod, Addr: t.To.Addr}
		rtt, ok, note := pinged(b.Local, "node "+t.To.Node+" did not say whether it answers there")
		p.RTT, p.OK, p.Note = rtt, ok, note
		if f.EndPing != nil {
			p.Total, p.OK, note = pinged(f.EndPing, "")
			switch {
			case ok && !p.OK:
				p.Note = "it answers its own node, and not " + t.From.Node
			case !p.OK:
				p.Note = note
			default:
				p.Note = ""
			}
		}
		out = append(out, p)
	}
	return out
}
