package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
)

// Role is what a caller may do. A higher one may do all that a lower one may.
type Role int

// Roles.
const (
	NoRole   Role = iota // a caller without credentials
	Viewer               // looks
	Operator             // works with sites, tokens, labels and routes
	Admin                // decides who belongs: admins, NATS users, revoked and quarantined nodes, what runs on hosts; takes backups
)

var roleNames = []string{NoRole: "none", Viewer: "viewer", Operator: "operator", Admin: "admin"}

// String is the role's name in the API.
func (r Role) String() string { return roleNames[r] }

// access is who may use which route: the one place where this is decided. A route
// that is not in it is nobody's.
var access = map[string]Role{
	"GET /v1/version":                      Viewer,
	"GET /v1/status":                       Viewer,
	"GET /v1/settings":                     Operator,
	"GET /v1/audit":                        Viewer,
	"GET /v1/events":                       Viewer,
	"GET /v1/sites":                        Viewer,
	"GET /v1/sites/{name}":                 Viewer,
	"POST /v1/sites":                       Operator,
	"PATCH /v1/sites/{name}":               Operator,
	"DELETE /v1/sites/{name}":              Operator,
	"GET /v1/tokens":                       Viewer,
	"POST /v1/tokens":                      Operator,
	"DELETE /v1/tokens/{id}":               Operator,
	"GET /v1/nodes":                        Viewer,
	"GET /v1/nodes/{name}":                 Viewer,
	"PATCH /v1/nodes/{name}":               Operator,
	"DELETE /v1/nodes/{name}":              Admin,
	"GET /v1/nodes/{name}/revocation":      Viewer,
	"POST /v1/nodes/{name}/release":        Admin,
	"POST /v1/nodes/{name}/drain":          Operator,
	"POST /v1/nodes/{name}/undrain":        Operator,
	"GET /v1/nodes/{name}/drain":           Viewer,
	"POST /v1/nodes/{name}/rename":         Operator,
	"POST /v1/nodes/{name}/rotate-key":     Operator,
	"GET /v1/nodes/{name}/debug/{path...}": Operator,
	"GET /v1/routes":                       Viewer,
	"POST /v1/routes/decide":               Operator,
	"GET /v1/inventory":                    Viewer,
	"GET /v1/inventory/{name}":             Viewer,
	"GET /v1/inventory/watch":              Viewer,
	"GET /v1/watch/sites":                  Viewer,
	"GET /v1/watch/tokens":                 Viewer,
	"GET /v1/watch/nodes":                  Viewer,
	"GET /v1/watch/routes":                 Viewer,
	"GET /v1/watch/inventory":              Viewer,
	"GET /v1/watch/events":                 Viewer,
	"GET /v1/watch/audit":                  Viewer,
	"GET /v1/watch/objects/{kind}":         Viewer,
	"GET /v1/watch/admins":                 Admin,
	"GET /v1/watch/nats-users":             Admin,
	"GET /v1/incidents":                    Viewer,
	"GET /v1/flows":                        Viewer,
	"GET /v1/watch/flows":                  Viewer,
	"GET /v1/service-events":               Viewer,
	"GET /v1/watch/service-events":         Viewer,
	"GET /v1/policy/suggest":               Viewer,
	"GET /v1/objects/{kind}":               Viewer,
	"GET /v1/objects/{kind}/{name}":        Viewer,
	"DELETE /v1/objects/{kind}/{name}":     Operator,
	"POST /v1/apply":                       Operator,
	"GET /v1/doctor":                       Viewer,
	"GET /v1/incidents/{id}":               Viewer,
	"POST /v1/diag/ping":                   Operator,
	"POST /v1/diag/trace":                  Operator,
	"POST /v1/diag/explain":                Operator,
	"GET /v1/services":                     Viewer,
	"GET /v1/services/{name}":              Viewer,
	"PATCH /v1/services/{name}":            Operator,
	"GET /v1/policy":                       Viewer,
	"GET /v1/policy/rules":                 Viewer,
	"POST /v1/policy/explain":              Viewer,
	"POST /v1/policy/test":                 Viewer,
	"POST /v1/policy/confirm":              Operator,
	"POST /v1/policy/prove":                Operator,
	"POST /v1/diag/mtu":                    Operator,
	"POST /v1/diag/bench":                  Operator,
	"GET /v1/diag/capture":                 Operator,
	"GET /v1/backup":                       Admin,
	"GET /v1/hubs":                         Viewer,
	"GET /v1/releases":                     Viewer,
	"GET /v1/upgrade":                      Viewer,
	"POST /v1/upgrade":                     Admin,
	"POST /v1/upgrade/stop":                Admin,
	"GET /v1/admins":                       Admin,
	"POST /v1/admins":                      Admin,
	"DELETE /v1/admins/{name}":             Admin,
	"GET /v1/nats/users":                   Admin,
	"POST /v1/nats/users":                  Admin,
	"DELETE /v1/nats/users/{name}":         Admin,
	"GET /v1/openapi.json":                 Viewer,
	"GET /v1/openapi.yaml":                 Viewer,
	"GET /v1/openapi-3.0.json":             Viewer,
	"GET /v1/openapi-3.0.yaml":             Viewer,
}

// Caller is who asks.
type Caller struct {
	Name string // unix:<user> or admin:<name>
	Role Role
}

// routes is a mux that remembers what it was given.
type routes struct {
	*http.ServeMux
	patterns []string
}

func (m *routes) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	m.patterns = append(m.patterns, pattern)
	m.ServeMux.HandleFunc(pattern, h)
}

type callerKey struct{}

// callerOf returns who asks; a request that nobody vouched for has no role. A
// connection from elsewhere is asked about anew for each request.
func callerOf(ctx context.Context) Caller {
	switch c := ctx.Value(callerKey{}).(type) {
	case Caller:
		return c
	case func() Caller:
		return c()
	}
	return Caller{}
}

// hosts are the names under which the API may be asked for, besides the public name
// of a hub that is asked from elsewhere. Others come from programs that were led
// here, such as a browser behind a forwarded port.
var hosts = map[string]bool{api.HubName: true, "localhost": true}

// guard lets a request that mux would answer through to next if its caller may.
func guard(mux *http.ServeMux, public string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		_, pattern := mux.Handler(r)
		need, known := access[pattern]
		switch {
		case !hosts[host] && !(r.TLS != nil && public != "" && strings.EqualFold(host, public)):
			writeProblem(w, huma.NewError(http.StatusMisdirectedRequest, "the admin API is not served under that host name"))
		case r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "":
			writeProblem(w, huma.Error403Forbidden("the admin API is not for web pages"))
		case callerOf(r.Context()).Role == NoRole:
			writeProblem(w, huma.Error401Unauthorized("who are you?"))
		case pattern == "":
			next.ServeHTTP(w, r) // says 404 or 405
		case !known || callerOf(r.Context()).Role < need:
			writeProblem(w, huma.Error403Forbidden("your role does not allow this"))
		default:
			slowAnswer(w, r)
			next.ServeHTTP(w, r)
		}
	})
}

// slowAnswer lets the server's bound on reading a request end with the request:
// afterwards it would end an answer that takes longer.
func slowAnswer(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	if r.ContentLength == 0 {
		rc.SetReadDeadline(time.Time{})
		return
	}
	r.Body = &wholeBody{r.Body, rc}
}

type wholeBody struct {
	io.ReadCloser
	rc *http.ResponseController
}

func (b *wholeBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}
