package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"causeway/protocol"
)

// DiagEnd is one end of a diagnosis as the hub understood it.
type DiagEnd struct {
	Text string     `json:"text"` // as it was asked for
	Node string     `json:"node"`
	Site string     `json:"site"`
	Pod  string     `json:"pod,omitempty"` // its name, where the inventory has it
	Addr netip.Addr `json:"addr"`
}

// TraceRequest asks both ends what is between them. An end is a node, a pod (NAME
// or NODE/NAME) or an address.
type TraceRequest struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Count int    `json:"count,omitempty"` // echo requests to each hop, 1 to 10, default 3
}

// Trace is what is between two ends, as both see it. Of Forward and Back one may be
// missing, with the reason in its error.
type Trace struct {
	From         DiagEnd             `json:"from"`
	To           DiagEnd             `json:"to"`
	Hops         []TraceHop          `json:"hops"`
	Forward      *protocol.TraceView `json:"forward,omitempty"` // by the node of From
	ForwardError string              `json:"forward_error,omitempty"`
	Back         *protocol.TraceView `json:"back,omitempty"` // by the node of To
	BackError    string              `json:"back_error,omitempty"`
}

// Kinds of hops.
const (
	HopPod    = "pod"
	HopHost   = "host"
	HopTunnel = "tunnel"
	HopHub    = "hub"
)

// TraceHop is one hop of a trace. RTT is there and back between it and the hop
// before, Total between it and the first host, through all that is between; zero:
// not measured.
type TraceHop struct {
	Kind  string     `json:"kind"`
	Name  string     `json:"name,omitempty"`
	Addr  netip.Addr `json:"addr,omitzero"`
	RTT   Duration   `json:"rtt"`
	Total Duration   `json:"total"`
	OK    bool       `json:"ok"`
	Note  string     `json:"note,omitempty"`
}

// diagTime is how long a hub may take for a diagnosis in which agents take part.
const diagTime = time.Minute

// Trace asks both ends what is between them.
func (c *Client) Trace(ctx context.Context, r TraceRequest) (t Trace, err error) {
	err = c.doWithin(ctx, c.cfg.Timeout+diagTime, http.MethodPost, "/v1/diag/trace", r, &t)
	return t, err
}

// BenchRequest asks for test traffic from one node to another through the tunnel. Pods
// stand for their nodes.
type BenchRequest struct {
	From  string   `json:"from"`
	To    string   `json:"to"`
	Proto string   `json:"proto,omitempty"` // tcp (the default) or udp
	Time  Duration `json:"time,omitempty"`  // up to 30s, default 5s
	Rate  uint64   `json:"rate,omitempty"`  // bits a second, up to 10 Gbit/s, default 100 Mbit/s
}

// Bench is what arrived.
type Bench struct {
	From      DiagEnd  `json:"from"`
	To        DiagEnd  `json:"to"`
	Proto     string   `json:"proto"`
	Limit     uint64   `json:"limit"`      // bits a second that it was held to
	Rate      uint64   `json:"rate"`       // bits a second that arrived
	Sent      uint64   `json:"sent_bytes"` // of payload, as what follows
	Received  uint64   `json:"received_bytes"`
	Took      Duration `json:"took"`
	Datagrams uint64   `json:"datagrams,omitempty"` // of udp, as what follows
	Lost      uint64   `json:"lost,omitempty"`
	Reordered uint64   `json:"reordered,omitempty"`
	Jitter    Duration `json:"jitter,omitempty"`
}

// MTURequest asks both ends how large packets may be.
type MTURequest struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// MTU is how large packets may be between two nodes, each direction for itself.
type MTU struct {
	From    DiagEnd      `json:"from"`
	To      DiagEnd      `json:"to"`
	Forward MTUDirection `json:"forward"`
	Back    MTUDirection `json:"back"`
}

// MTUDirection is how large packets from Node may be. All are sizes of IP packets; 0:
// not known.
type MTUDirection struct {
	Node     string            `json:"node"`
	Path     protocol.PathKind `json:"path"`
	Underlay int               `json:"underlay"` // largest that probes found to arrive on the underlay; none over a stream
	Known    int               `json:"known"`    // largest inside that follows from it
	Measured int               `json:"measured"` // largest inside that arrived just now
	Route    int               `json:"route"`    // set on the route to the other node
	Device   int               `json:"device"`   // set on the tunnel's interface
	OK       bool              `json:"ok"`       // what is set arrives
	Verdict  string            `json:"verdict"`
}

// Bench has one node send to another.
func (c *Client) Bench(ctx context.Context, r BenchRequest) (b Bench, err error) {
	err = c.doWithin(ctx, c.cfg.Timeout+diagTime, http.MethodPost, "/v1/diag/bench", r, &b)
	return b, err
}

// MTU asks both ends how large packets may be.
func (c *Client) MTU(ctx context.Context, r MTURequest) (m MTU, err error) {
	err = c.doWithin(ctx, c.cfg.Timeout+3*diagTime, http.MethodPost, "/v1/diag/mtu", r, &m)
	return m, err
}

// Setting is one of the hub's settings as it runs, without secrets.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Settings are the hub's settings, without secrets.
func (c *Client) Settings(ctx context.Context) ([]Setting, error) {
	return get[[]Setting](ctx, c, "/v1/settings")
}

// DebugDocument reads at most limit bytes of a debug endpoint of a node's agent; path is
// one of docs/DEBUG.md, such as v1/health.
func (c *Client) DebugDocument(ctx context.Context, node, path string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.cfg.BaseURL+"/v1/nodes/"+url.PathEscape(node)+"/debug/"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err, c.cfg.Timeout)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, readProblem(res)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	switch {
	case err != nil:
		return nil, c.explain(err, c.cfg.Timeout)
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("it is longer than %d bytes", limit)
	}
	return b, nil
}
