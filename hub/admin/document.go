package admin

import (
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// Document is the API's description, which GET /v1/openapi.json serves.
func (s *Server) Document() *huma.OpenAPI { return s.document }

// describe adds to the OpenAPI document what huma does not know: the routes that
// answer no JSON, and the least role for each (x-role).
func describe(doc *huma.OpenAPI) {
	name := &huma.Param{Name: "name", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}}
	path := &huma.Param{Name: "path", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Description: "The agent's path, slashes included."}
	doc.AddOperation(plain("GET", "/v1/nodes/{name}/debug/{path}", "Read a debug endpoint of a node's agent", "*/*", name, path))
	doc.AddOperation(plain("GET", "/v1/backup", "Read all state, not encrypted", "application/octet-stream"))
	node := &huma.Param{Name: "node", In: "query", Schema: &huma.Schema{Type: huma.TypeString}, Description: "Of this node alone."}
	doc.AddOperation(plain("GET", "/v1/inventory/watch", "Follow changes of nodes' facts, as server-sent events", "text/event-stream", node))
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
