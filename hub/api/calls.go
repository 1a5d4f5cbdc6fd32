package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"causeway/protocol"
)

// get reads a value; the zero value comes with every error.
func get[T any](ctx context.Context, c *Client, path string) (v T, err error) {
	if err = c.do(ctx, http.MethodGet, path, nil, &v); err != nil {
		var zero T
		return zero, err
	}
	return v, nil
}

// Hubs reads the signed list of the cluster's hubs.
func (c *Client) Hubs(ctx context.Context) (protocol.SignedHubList, error) {
	return get[protocol.SignedHubList](ctx, c, "/v1/hubs")
}

// Option changes a request.
type Option func(http.Header)

// IfMatch lets a change happen only while what it changes still has this ETag;
// otherwise the error is ErrStale. An empty one asks for nothing.
func IfMatch(etag string) Option {
	return func(h http.Header) {
		if etag != "" {
			h.Set("If-Match", `"`+etag+`"`)
		}
	}
}

func send[T any](ctx context.Context, c *Client, method, path string, in any, o ...Option) (v T, err error) {
	if err = c.do(ctx, method, path, in, &v, o...); err != nil {
		var zero T
		return zero, err
	}
	return v, nil
}

// Status returns the hub on one screen.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status")
}

// Version returns the hub's version.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return get[Version](ctx, c, "/v1/version")
}

// Sites lists all sites.
func (c *Client) Sites(ctx context.Context) ([]Site, error) { return get[[]Site](ctx, c, "/v1/sites") }

// Site returns one site.
func (c *Client) Site(ctx context.Context, name string) (Site, error) {
	return get[Site](ctx, c, "/v1/sites/"+url.PathEscape(name))
}

// CreateSite makes a site.
func (c *Client) CreateSite(ctx context.Context, s SiteSpec) (Site, error) {
	return send[Site](ctx, c, http.MethodPost, "/v1/sites", s)
}

// PatchSite changes a site.
func (c *Client) PatchSite(ctx context.Context, name string, p SitePatch, o ...Option) (Site, error) {
	return send[Site](ctx, c, http.MethodPatch, "/v1/sites/"+url.PathEscape(name), p, o...)
}

// DeleteSite removes a site.
func (c *Client) DeleteSite(ctx context.Context, name string, o ...Option) error {
	return c.do(ctx, http.MethodDelete, "/v1/sites/"+url.PathEscape(name), nil, nil, o...)
}

// Tokens lists all join tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	return get[[]Token](ctx, c, "/v1/tokens")
}

// CreateToken makes a join token. Its text is in this answer and nowhere else.
func (c *Client) CreateToken(ctx context.Context, t TokenSpec) (TokenCreated, error) {
	return send[TokenCreated](ctx, c, http.MethodPost, "/v1/tokens", t)
}

// RevokeToken makes an open token useless.
func (c *Client) RevokeToken(ctx context.Context, id string, o ...Option) error {
	return c.do(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil, nil, o...)
}

// Nodes lists all nodes.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) { return get[[]Node](ctx, c, "/v1/nodes") }

// Node returns one node.
func (c *Client) Node(ctx context.Context, name string) (Node, error) {
	return get[Node](ctx, c, "/v1/nodes/"+url.PathEscape(name))
}

// PatchNode changes a node.
func (c *Client) PatchNode(ctx context.Context, name string, p NodePatch, o ...Option) (Node, error) {
	return send[Node](ctx, c, http.MethodPatch, "/v1/nodes/"+url.PathEscape(name), p, o...)
}

// RevokeNode takes a node out for good.
func (c *Client) RevokeNode(ctx context.Context, name string, o ...Option) error {
	return c.do(ctx, http.MethodDelete, "/v1/nodes/"+url.PathEscape(name), nil, nil, o...)
}

// Revocation tells how the cluster lets go of a revoked node.
func (c *Client) Revocation(ctx context.Context, name string) (Revocation, error) {
	return get[Revocation](ctx, c, "/v1/nodes/"+url.PathEscape(name)+"/revocation")
}

// ReleaseNode ends a node's quarantine.
func (c *Client) ReleaseNode(ctx context.Context, name string, o ...Option) (Node, error) {
	return send[Node](ctx, c, http.MethodPost, "/v1/nodes/"+url.PathEscape(name)+"/release", nil, o...)
}

// RotateKey asks a node for a new WireGuard key.
func (c *Client) RotateKey(ctx context.Context, name string, r KeyRotation) (Node, error) {
	return send[Node](ctx, c, http.MethodPost, "/v1/nodes/"+url.PathEscape(name)+"/rotate-key", r)
}

// Routes lists every node's announced routes.
func (c *Client) Routes(ctx context.Context) ([]Route, error) {
	return get[[]Route](ctx, c, "/v1/routes")
}

// DecideRoute approves or rejects a route.
func (c *Client) DecideRoute(ctx context.Context, d RouteDecision, o ...Option) (Route, error) {
	return send[Route](ctx, c, http.MethodPost, "/v1/routes/decide", d, o...)
}

// Inventories lists the present facts of all nodes.
func (c *Client) Inventories(ctx context.Context) ([]Inventory, error) {
	return get[[]Inventory](ctx, c, "/v1/inventory")
}

// Inventory returns the present facts of one node.
func (c *Client) Inventory(ctx context.Context, node string) (Inventory, error) {
	return get[Inventory](ctx, c, "/v1/inventory/"+url.PathEscape(node))
}

// Audit lists the last transactions of the state log, newest first. A limit of
// zero leaves the number to the hub.
func (c *Client) Audit(ctx context.Context, limit int) ([]AuditEntry, error) {
	return get[[]AuditEntry](ctx, c, "/v1/audit"+limitQuery(limit))
}

// AuditBefore lists the last transactions before the one with sequence before.
func (c *Client) AuditBefore(ctx context.Context, before uint64, limit int) ([]AuditEntry, error) {
	return get[[]AuditEntry](ctx, c, fmt.Sprintf("/v1/audit?before=%d&limit=%d", before, limit))
}

// Events lists the last events, newest first. A limit of zero leaves the
// number to the hub.
func (c *Client) Events(ctx context.Context, limit int) ([]Event, error) {
	return get[[]Event](ctx, c, "/v1/events"+limitQuery(limit))
}

// Incidents lists what went wrong on nodes, newest first.
func (c *Client) Incidents(ctx context.Context, q IncidentQuery) ([]Incident, error) {
	v := url.Values{}
	if q.Node != "" {
		v.Set("node", q.Node)
	}
	if q.Site != "" {
		v.Set("site", q.Site)
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return get[[]Incident](ctx, c, "/v1/incidents?"+v.Encode())
}

// Incident returns one incident.
func (c *Client) Incident(ctx context.Context, id string) (Incident, error) {
	return get[Incident](ctx, c, "/v1/incidents/"+url.PathEscape(id))
}

func limitQuery(n int) string {
	if n <= 0 {
		return ""
	}
	return "?limit=" + strconv.Itoa(n)
}

// Admins lists who may use the API from elsewhere.
func (c *Client) Admins(ctx context.Context) ([]Admin, error) {
	return get[[]Admin](ctx, c, "/v1/admins")
}

// CreateAdmin has a certificate issued.
func (c *Client) CreateAdmin(ctx context.Context, a AdminSpec) (AdminCreated, error) {
	return send[AdminCreated](ctx, c, http.MethodPost, "/v1/admins", a)
}

// RevokeAdmin shuts an admin out; open connections end.
func (c *Client) RevokeAdmin(ctx context.Context, name string, o ...Option) error {
	return c.do(ctx, http.MethodDelete, "/v1/admins/"+url.PathEscape(name), nil, nil, o...)
}

// NATSUsers lists the users of the hub's NATS server.
func (c *Client) NATSUsers(ctx context.Context) ([]NATSUser, error) {
	return get[[]NATSUser](ctx, c, "/v1/nats/users")
}

// CreateNATSUser makes a user of the hub's NATS server.
func (c *Client) CreateNATSUser(ctx context.Context, u NATSUserSpec) (NATSUserCreated, error) {
	return send[NATSUserCreated](ctx, c, http.MethodPost, "/v1/nats/users", u)
}

// RevokeNATSUser shuts a user out; open connections end.
func (c *Client) RevokeNATSUser(ctx context.Context, name string, o ...Option) error {
	return c.do(ctx, http.MethodDelete, "/v1/nats/users/"+url.PathEscape(name), nil, nil, o...)
}

// Ping asks a node to ping another. It waits as long as the pings may take on
// top of the client's own timeout.
func (c *Client) Ping(ctx context.Context, p PingRequest) (PingResult, error) {
	count, each := p.Count, time.Duration(p.Timeout)
	if count == 0 {
		count = 3
	}
	if each == 0 {
		each = time.Second
	}
	var r PingResult
	err := c.doWithin(ctx, c.cfg.Timeout+time.Duration(count)*(each+time.Second), http.MethodPost, "/v1/diag/ping", p, &r)
	return r, err
}

// explainWait is what explaining a flow may take on top of the client's own timeout.
const explainWait = 20 * time.Second

// Doctor returns what the hub finds wrong with itself, its nodes and their paths.
func (c *Client) Doctor(ctx context.Context) (Checkup, error) {
	return get[Checkup](ctx, c, "/v1/doctor")
}

// Explain asks why one end of a flow does not reach the other.
func (c *Client) Explain(ctx context.Context, q ExplainRequest) (Explanation, error) {
	var r Explanation
	err := c.doWithin(ctx, c.cfg.Timeout+explainWait, http.MethodPost, "/v1/diag/explain", q, &r)
	return r, err
}

// TestPolicy asks whether something is open, by what is declared.
func (c *Client) TestPolicy(ctx context.Context, q PolicyQuestion) (PolicyAnswer, error) {
	var a PolicyAnswer
	err := c.do(ctx, http.MethodPost, "/v1/policy/test", q, &a)
	return a, err
}

// Policy says what is in force of who may talk, and what is to be said of it.
func (c *Client) Policy(ctx context.Context) (PolicyReport, error) {
	return get[PolicyReport](ctx, c, "/v1/policy")
}

// PolicyRules lists the rules of a policy, or with an empty name of all.
func (c *Client) PolicyRules(ctx context.Context, policy string) ([]PolicyRuleState, error) {
	return get[[]PolicyRuleState](ctx, c, "/v1/policy/rules?policy="+url.QueryEscape(policy))
}

// ExplainPolicy asks what a rule means, or why something is open or closed.
func (c *Client) ExplainPolicy(ctx context.Context, q PolicyExplain) (PolicyExplained, error) {
	return send[PolicyExplained](ctx, c, http.MethodPost, "/v1/policy/explain", q)
}

// ConfirmPolicy has the change of who may talk that waits stay, or go back now.
func (c *Client) ConfirmPolicy(ctx context.Context, p PolicyConfirm) (PolicyConfirmed, error) {
	return send[PolicyConfirmed](ctx, c, http.MethodPost, "/v1/policy/confirm", p)
}

// Services lists the services, without their endpoints.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	return get[[]Service](ctx, c, "/v1/services")
}

// Service returns one service.
func (c *Client) Service(ctx context.Context, name string) (Service, error) {
	return get[Service](ctx, c, "/v1/services/"+url.PathEscape(name))
}

// PatchService changes how a service uses its sites.
func (c *Client) PatchService(ctx context.Context, name string, p ServicePatch, o ...Option) (Service, error) {
	return send[Service](ctx, c, http.MethodPatch, "/v1/services/"+url.PathEscape(name), p, o...)
}

// Objects lists the declared objects of a kind.
func (c *Client) Objects(ctx context.Context, kind string) ([]Object, error) {
	return get[[]Object](ctx, c, "/v1/objects/"+url.PathEscape(kind))
}

// Object returns a declared object.
func (c *Client) Object(ctx context.Context, kind, name string) (Object, error) {
	return get[Object](ctx, c, "/v1/objects/"+url.PathEscape(kind)+"/"+url.PathEscape(name))
}

// DeleteObject takes a declared object away.
func (c *Client) DeleteObject(ctx context.Context, kind, name string, o ...Option) error {
	return c.do(ctx, http.MethodDelete, "/v1/objects/"+url.PathEscape(kind)+"/"+url.PathEscape(name), nil, nil, o...)
}

// Apply does what documents say: all of it, or nothing.
func (c *Client) Apply(ctx context.Context, a Apply) (Applied, error) {
	return send[Applied](ctx, c, http.MethodPost, "/v1/apply", a)
}
