package api

import (
	"context"
	"net/http"
	"net/netip"
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
