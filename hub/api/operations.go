package api

import (
	"net/http"

	"causeway/protocol"
)

// Operation is one route of the API. The hub's handlers, their OpenAPI document
// and this list are held against each other by a test.
type Operation struct {
	Method, Path string
	Request      any  // zero value of the JSON body's type; nil: none
	Response     any  // zero value of the JSON answer's type; nil: none, or no JSON
	IfMatch      bool // takes If-Match with the ETag of what it changes
}

// Operations are all routes. {name} is the name of a site or node, {id} the id of a
// token. Errors are problem documents (RFC 9457): title, status, detail. GET
// /v1/openapi.json is the description for others.
//
// An ETag stands for what is stored of an object, so for what an admin can change,
// and not for what agents report. It comes in the object's etag field too.
var Operations = []Operation{
	{http.MethodGet, "/v1/status", nil, Status{}, false},
	{http.MethodGet, "/v1/version", nil, Version{}, false},
	{http.MethodGet, "/v1/settings", nil, []Setting{}, false},
	{http.MethodGet, "/v1/hubs", nil, protocol.SignedHubList{}, false}, // for 'causeway-agent hubs set'
	{http.MethodGet, "/v1/sites", nil, []Site{}, false},
	{http.MethodPost, "/v1/sites", SiteSpec{}, Site{}, false},
	{http.MethodGet, "/v1/sites/{name}", nil, Site{}, false},
	{http.MethodPatch, "/v1/sites/{name}", SitePatch{}, Site{}, true},
	{http.MethodDelete, "/v1/sites/{name}", nil, nil, true},
	{http.MethodGet, "/v1/tokens", nil, []Token{}, false},
	{http.MethodPost, "/v1/tokens", TokenSpec{}, TokenCreated{}, false},
	{http.MethodDelete, "/v1/tokens/{id}", nil, nil, true},
	{http.MethodGet, "/v1/nodes", nil, []Node{}, false},
	{http.MethodGet, "/v1/nodes/{name}", nil, Node{}, false},
	{http.MethodPatch, "/v1/nodes/{name}", NodePatch{}, Node{}, true},
	{http.MethodDelete, "/v1/nodes/{name}", nil, nil, true},          // revoke
	{http.MethodPost, "/v1/nodes/{name}/release", nil, Node{}, true}, // from quarantine
	{http.MethodPost, "/v1/nodes/{name}/drain", nil, Drain{}, true},
	{http.MethodPost, "/v1/nodes/{name}/undrain", nil, Drain{}, true},
	{http.MethodGet, "/v1/nodes/{name}/drain", nil, Drain{}, false},
	{http.MethodPost, "/v1/nodes/{name}/rename", NodeRename{}, Node{}, true},
	{http.MethodPost, "/v1/nodes/{name}/rotate-key", KeyRotation{}, Node{}, true}, // asks for a new WireGuard key
	{http.MethodGet, "/v1/nodes/{name}/revocation", nil, Revocation{}, false},
	{http.MethodGet, "/v1/nodes/{name}/debug/{path...}", nil, nil, false}, // passed on to the agent's debug endpoint
	{http.MethodPost, "/v1/policy/test", PolicyQuestion{}, PolicyAnswer{}, false},
	{http.MethodGet, "/v1/policy", nil, PolicyReport{}, false},
	{http.MethodGet, "/v1/policy/rules", nil, []PolicyRuleState{}, false}, // ?policy=NAME
	{http.MethodPost, "/v1/policy/explain", PolicyExplain{}, PolicyExplained{}, false},
	{http.MethodPost, "/v1/policy/confirm", PolicyConfirm{}, PolicyConfirmed{}, false},
	{http.MethodPost, "/v1/policy/prove", nil, nil, false}, // a ProveRequest; lines of JSON, each a ProveLine
	{http.MethodGet, "/v1/routes", nil, []Route{}, false},
	{http.MethodPost, "/v1/routes/decide", RouteDecision{}, Route{}, true},
	{http.MethodGet, "/v1/inventory", nil, []Inventory{}, false},
	{http.MethodGet, "/v1/inventory/{name}", nil, Inventory{}, false},
	{http.MethodGet, "/v1/inventory/watch", nil, nil, false}, // server-sent events, each an InventoryChange; ?node=NAME
	// Server-sent events, each a Change; Last-Event-ID goes on where an earlier watch ended.
	{http.MethodGet, "/v1/watch/sites", nil, nil, false},
	{http.MethodGet, "/v1/watch/tokens", nil, nil, false},
	{http.MethodGet, "/v1/watch/nodes", nil, nil, false},
	{http.MethodGet, "/v1/watch/routes", nil, nil, false},
	{http.MethodGet, "/v1/watch/inventory", nil, nil, false},
	{http.MethodGet, "/v1/watch/admins", nil, nil, false},
	{http.MethodGet, "/v1/watch/nats-users", nil, nil, false},
	{http.MethodGet, "/v1/watch/objects/{kind}", nil, nil, false},
	{http.MethodGet, "/v1/watch/events", nil, nil, false},       // ?limit=N of old ones at first
	{http.MethodGet, "/v1/watch/audit", nil, nil, false},        // likewise
	{http.MethodGet, "/v1/audit", nil, []AuditEntry{}, false},   // ?limit=N, newest first
	{http.MethodGet, "/v1/events", nil, []Event{}, false},       // likewise
	{http.MethodGet, "/v1/incidents", nil, []Incident{}, false}, // ?node=, site=, since=, limit=; newest first
	{http.MethodGet, "/v1/incidents/{id}", nil, Incident{}, false},
	{http.MethodGet, "/v1/flows", nil, []Flow{}, false},                    // ?from=, to=, rule=, denied=, since=, limit=; the newest last
	{http.MethodGet, "/v1/policy/suggest", nil, PolicySuggestion{}, false}, // ?since=, name=
	{http.MethodGet, "/v1/watch/flows", nil, nil, false},                   // ?limit=N of old ones at first
	{http.MethodGet, "/v1/objects/{kind}", nil, []Object{}, false},         // {kind} is that of documents for 'causeway apply'
	{http.MethodGet, "/v1/objects/{kind}/{name}", nil, Object{}, false},
	{http.MethodDelete, "/v1/objects/{kind}/{name}", nil, nil, true},
	{http.MethodGet, "/v1/services", nil, []Service{}, false},
	{http.MethodGet, "/v1/service-events", nil, []ServiceEvent{}, false}, // ?service=, node=, since=, limit=; the newest last
	{http.MethodGet, "/v1/watch/service-events", nil, nil, false},        // ?limit=N of old ones at first
	{http.MethodGet, "/v1/services/{name}", nil, Service{}, false},
	{http.MethodPatch, "/v1/services/{name}", ServicePatch{}, Service{}, true}, // they are declared as objects
	{http.MethodPost, "/v1/apply", Apply{}, Applied{}, false},                  // all documents in one transaction
	{http.MethodGet, "/v1/doctor", nil, Checkup{}, false},
	{http.MethodPost, "/v1/diag/ping", PingRequest{}, PingResult{}, false},
	{http.MethodPost, "/v1/diag/trace", TraceRequest{}, Trace{}, false},
	{http.MethodGet, "/v1/releases", nil, []Release{}, false},
	{http.MethodGet, "/v1/upgrade", nil, Upgrade{}, false},
	{http.MethodPost, "/v1/upgrade", UpgradeSpec{}, Upgrade{}, false},
	{http.MethodPost, "/v1/upgrade/stop", nil, Upgrade{}, false},
	{http.MethodPost, "/v1/diag/explain", ExplainRequest{}, Explanation{}, false},
	{http.MethodPost, "/v1/diag/mtu", MTURequest{}, MTU{}, false},
	{http.MethodPost, "/v1/diag/bench", BenchRequest{}, Bench{}, false},
	{http.MethodGet, "/v1/diag/capture", nil, nil, false}, // pcapng as packets come; see CaptureRequest
	{http.MethodGet, "/v1/admins", nil, []Admin{}, false},
	{http.MethodPost, "/v1/admins", AdminSpec{}, AdminCreated{}, false},
	{http.MethodDelete, "/v1/admins/{name}", nil, nil, true}, // revoke
	{http.MethodGet, "/v1/nats/users", nil, []NATSUser{}, false},
	{http.MethodPost, "/v1/nats/users", NATSUserSpec{}, NATSUserCreated{}, false},
	{http.MethodDelete, "/v1/nats/users/{name}", nil, nil, true}, // revoke
	{http.MethodGet, "/v1/backup", nil, nil, false},              // hub/backup has the format
}
