package admin

import (
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// Document is the API's description, which GET /v1/openapi.json serves.
func (s *Server) Document() *huma.OpenAPI { return s.document }

// describe adds to the OpenAPI document what huma does not know: the routes that
// answer no JSON, and the least role for each (x-role).
func describe(doc *huma.OpenAPI, feeds map[string]*feed) {
	name := &huma.Param{Name: "name", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}}
	path := &huma.Param{Name: "path", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Description: "The agent's path, slashes included."}
	doc.AddOperation(plain("GET", "/v1/nodes/{name}/debug/{path}", "Read a debug endpoint of a node's agent", "*/*", name, path))
	doc.AddOperation(plain("GET", "/v1/backup", "Read all state, not encrypted", "application/octet-stream"))
	param := func(name, what string) *huma.Param {
		return &huma.Param{Name: name, In: "query", Required: name == "on", Schema: &huma.Schema{Type: huma.TypeString}, Description: what}
	}
	doc.AddOperation(plain("GET", "/v1/diag/capture", "Record packets of a node's tunnel or of a pod", "application/x-pcapng",
		param("on", "A node, or a pod: NAME, NODE/NAME or its address."), param("filter", "As tcpdump has it: host, net, port, tcp, udp, icmp, icmp6, ip, ip6, proto, and, or, not."),
		param("for", "How long, up to 5m (default 30s)."), param("bytes", "How much, up to 67108864."), param("payload", "true: keep payloads, where the node's config allows it.")))
	doc.AddOperation(plain("POST", "/v1/policy/prove", "Try with packets what policies close: {open, pairs, time}; lines of JSON say how far it is, the last one has the signed result", "application/x-ndjson"))
	node := &huma.Param{Name: "node", In: "query", Schema: &huma.Schema{Type: huma.TypeString}, Description: "Of this node alone."}
	doc.AddOperation(plain("GET", "/v1/inventory/watch", "Follow changes of nodes' facts, as server-sent events", "text/event-stream", node))
	from := &huma.Param{Name: "Last-Event-ID", In: "header", Schema: &huma.Schema{Type: huma.TypeString}, Description: "The id of the last event of an earlier watch: what came since follows, or 'reset' and the whole list."}
	limit := &huma.Param{Name: "limit", In: "query", Schema: &huma.Schema{Type: huma.TypeInteger}, Description: "So many old entries of events or audit at first; 50 by default, at most 1000."}
	for kind, f := range feeds {
		o := plain("GET", "/v1/watch/"+kind, "Follow the list of "+kind+", as server-sent events: 'reset', changes, 'synced', further changes", "text/event-stream", from)
		if f.log {
			o.Parameters = append(o.Parameters, limit)
		}
		doc.AddOperation(o)
	}
	kind := &huma.Param{Name: "kind", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Description: "As documents for /v1/apply have it."}
	doc.AddOperation(plain("GET", "/v1/watch/objects/{kind}", "Follow the declared objects of a kind, as other lists", "text/event-stream", kind, from))
	for pattern, role := range access {
		if o := operation(doc, pattern); o != nil {
			o.Extensions = map[string]any{"x-role": role.String()}
		}
	}
}

func plain(method, path, summary, content string, params ...*huma.Param) *huma.Operation {
	problem := &huma.Response{Description: "Error", Content: map[string]*huma.MediaType{
		"application/problem+json": {Schema: &huma.Schema{Ref: "#/components/schemas/ErrorModel"}}}}
	return &huma.Operation{Method: method, Path: path, Summary: summary, OperationID: strings.ToLower(method) + strings.NewReplacer("/", "-", "{", "", "}", "").Replace(path), Parameters: params,
		Responses: map[string]*huma.Response{"200": {Description: "OK", Content: map[string]*huma.MediaType{content: {Schema: &huma.Schema{}}}}, "default": problem}}
}

// operation finds what the document says of a pattern of the mux.
func operation(doc *huma.OpenAPI, pattern string) *huma.Operation {
	method, path, _ := strings.Cut(pattern, " ")
	item := doc.Paths[strings.ReplaceAll(path, "...}", "}")]
	if item == nil {
		return nil
	}
	switch method {
	case "GET":
		return item.Get
	case "POST":
		return item.Post
	case "PUT":
		return item.Put
	case "PATCH":
		return item.Patch
	case "DELETE":
		return item.Delete
	}
	return nil
}
