package api

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"causeway/protocol"
)

// ServiceEvent is that a node moved a service's new connections between sites, or reset its open ones.
type ServiceEvent struct {
	Sequence uint64 `json:"seq"`       // it says nothing else, and begins anew with each start of the hub
	Node     string `json:"node"`      // that did it, for its clients
	NodeSite string `json:"node_site"` // where that was then
	protocol.ServiceSwitch
}

// ServiceEventQuery says which are wanted; zero values want all.
type ServiceEventQuery struct {
	Service, Node string
	Since         time.Time
	Limit         int // the last so many; 0: the hub's default
}

// Matches reports whether an event is wanted.
func (q ServiceEventQuery) Matches(e ServiceEvent) bool {
	return (q.Service == "" || e.Service == q.Service) && (q.Node == "" || e.Node == q.Node) && !e.Time.Before(q.Since)
}

// ServiceEvents lists what nodes switched of services, the newest last.
func (c *Client) ServiceEvents(ctx context.Context, q ServiceEventQuery) ([]ServiceEvent, error) {
	v := url.Values{}
	for k, s := range map[string]string{"service": q.Service, "node": q.Node} {
		if s != "" {
			v.Set(k, s)
		}
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return get[[]ServiceEvent](ctx, c, "/v1/service-events?"+v.Encode())
}
