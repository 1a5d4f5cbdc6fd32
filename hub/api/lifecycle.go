package api

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// Drain is how far a node's routes have moved to other nodes of its site.
type Drain struct {
	Node      string       `json:"node"`
	Drained   bool         `json:"drained"`
	Since     time.Time    `json:"since,omitzero"`
	Pending   bool         `json:"pending"`   // the next netmaps are being made
	Moved     []MovedRoute `json:"moved"`     // announced by it, carried by another
	Kept      []KeptRoute  `json:"kept"`      // carried by it
	Confirmed []string     `json:"confirmed"` // nodes that have applied it
	Waiting   []string     `json:"waiting"`   // connected nodes that have not
	Away      []string     `json:"away"`      // nodes that are not connected, and go on as before
}

// MovedRoute is a route that another node carries.
type MovedRoute struct {
	Prefix netip.Prefix `json:"prefix"`
	To     string       `json:"to"`
}

// KeptRoute is a route that the node itself carries.
type KeptRoute struct {
	Prefix netip.Prefix `json:"prefix"`
	Why    string       `json:"why,omitempty"` // although it is drained
}

// Done reports whether every connected node has followed.
func (d Drain) Done() bool { return !d.Pending && len(d.Waiting) == 0 }

// NodeRename is a node's new name.
type NodeRename struct {
	Name string `json:"name"`
}

// DrainNode makes other nodes of its site carry what the node announces, where they
// announce it too.
func (c *Client) DrainNode(ctx context.Context, name string) (Drain, error) {
	return send[Drain](ctx, c, http.MethodPost, "/v1/nodes/"+url.PathEscape(name)+"/drain", nil)
}

// UndrainNode makes a drained node a choice like any other again.
func (c *Client) UndrainNode(ctx context.Context, name string) (Drain, error) {
	return send[Drain](ctx, c, http.MethodPost, "/v1/nodes/"+url.PathEscape(name)+"/undrain", nil)
}

// Drain tells how far a node's routes have moved.
func (c *Client) Drain(ctx context.Context, name string) (Drain, error) {
	return get[Drain](ctx, c, "/v1/nodes/"+url.PathEscape(name)+"/drain")
}

// RenameNode gives a node another name.
func (c *Client) RenameNode(ctx context.Context, name, to string) (Node, error) {
	return send[Node](ctx, c, http.MethodPost, "/v1/nodes/"+url.PathEscape(name)+"/rename", NodeRename{to})
}
