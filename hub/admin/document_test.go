package admin

import (
	"encoding"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
)

// The document that the handlers make, the list that clients are written against
// and the table of roles speak of the same routes, types and fields, both ways.
func TestDocumentAgreesWithClients(t *testing.T) {
	doc := New(Config{}).document
	var inDoc, inList []string
	for path, item := range doc.Paths {
		for method, o := range map[string]*huma.Operation{"GET": item.Get, "POST": item.Post, "PUT": item.Put, "PATCH": item.Patch, "DELETE": item.Delete} {
			if o != nil {
				inDoc = append(inDoc, method+" "+path)
			}
		}
	}
	fields := 0
	for _, op := range api.Operations {
		pattern := op.Method + " " + op.Path
		inList = append(inList, strings.ReplaceAll(pattern, "...}", "}"))
		_, ok := access[pattern]
		require.True(t, ok, "%s has no role", pattern)
		o := operation(doc, pattern)
		require.NotNil(t, o, "%s is in api.Operations, and no handler has it", pattern)
		require.NotEmpty(t, o.Extensions["x-role"], pattern)
		fields += sameBody(t, doc, pattern+": request", op.Request, requestSchema(o))
		fields += sameBody(t, doc, pattern+": answer", op.Response, answerSchema(o))

		takes := slices.ContainsFunc(o.Parameters, func(p *huma.Param) bool { return p.In == "header" && p.Name == "If-Match" })
		require.Equal(t, op.IfMatch, takes, "%s: If-Match", pattern)
		require.Equal(t, op.IfMatch, o.Responses["412"] != nil, "%s: 412", pattern)
		if op.Method == http.MethodPatch || op.Method == http.MethodPut || op.Method == http.MethodDelete {
			require.True(t, op.IfMatch, "%s changes what is there: it has to take If-Match", pattern)
		}
	}
	require.Equal(t, slices.Sorted(slices.Values(inList)), slices.Sorted(slices.Values(inDoc)), "api.Operations and the handlers")
	t.Logf("%d routes, %d fields agree", len(inList), fields)
}

// The served document is the one that was tested, and says its version.
func TestDocumentIsServed(t *testing.T) {
	s := New(Config{Version: "v1.2.3"})
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, as(Viewer)(httptest.NewRequest(http.MethodGet, "http://hub/v1/openapi.json", nil)))
	require.Equal(t, http.StatusOK, w.Code)
	want, err := json.Marshal(s.document)
	require.NoError(t, err)
	require.JSONEq(t, string(want), w.Body.String())
	require.Contains(t, w.Body.String(), `"version":"v1.2.3"`)
	require.Contains(t, w.Body.String(), `"x-role":"operator"`)
}

func requestSchema(o *huma.Operation) *huma.Schema {
	if o.RequestBody == nil {
		return nil
	}
	return o.RequestBody.Content["application/json"].Schema
}

func answerSchema(o *huma.Operation) *huma.Schema {
	r := o.Responses["200"]
	if r == nil {
		return nil
	}
	if c := r.Content["application/json"]; c != nil {
		return c.Schema
	}
	return nil
}

func sameBody(t *testing.T, doc *huma.OpenAPI, where string, v any, s *huma.Schema) int {
	t.Helper()
	if v == nil {
		require.Nil(t, s, "%s has a body that api.Operations does not know", where)
		return 0
	}
	require.NotNil(t, s, "%s has no body in the document", where)
	return same(t, doc.Components.Schemas, where, reflect.TypeOf(v), s)
}

// same holds a schema to what encoding/json makes of a type. It returns how many
// fields it saw.
func same(t *testing.T, all huma.Registry, where string, typ reflect.Type, s *huma.Schema) int {
	t.Helper()
	for s.Ref != "" {
		s = all.SchemaFromRef(s.Ref)
	}
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	text := reflect.TypeFor[encoding.TextMarshaler]()
	switch {
	case typ.Implements(text) || reflect.PointerTo(typ).Implements(text):
		require.Equal(t, huma.TypeString, s.Type, where)
		return 1
	case typ.Kind() == reflect.Struct:
		require.Equal(t, huma.TypeObject, s.Type, where)
		n, want := 0, jsonFields(typ)
		require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(s.Properties)), "%s: fields", where)
		for name, ft := range want {
			n += same(t, all, where+"."+name, ft, s.Properties[name])
		}
		return n
	case typ.Kind() == reflect.Map:
		require.Equal(t, huma.TypeObject, s.Type, where)
		of, ok := s.AdditionalProperties.(*huma.Schema)
		require.True(t, ok, where)
		return same(t, all, where+"[]", typ.Elem(), of)
	case typ == reflect.TypeFor[json.RawMessage](): // of any shape
	case typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Uint8:
		require.Equal(t, huma.TypeString, s.Type, where)
	case typ.Kind() == reflect.Slice || typ.Kind() == reflect.Array:
		require.Equal(t, huma.TypeArray, s.Type, where)
		return same(t, all, where+"[]", typ.Elem(), s.Items)
	case typ.Kind() == reflect.String:
		require.Equal(t, huma.TypeString, s.Type, where)
	case typ.Kind() == reflect.Bool:
		require.Equal(t, huma.TypeBoolean, s.Type, where)
	case typ.Kind() == reflect.Float64:
		require.Equal(t, huma.TypeNumber, s.Type, where)
	case typ.Kind() == reflect.Interface:
	default:
		require.Equal(t, huma.TypeInteger, s.Type, where)
	}
	return 1
}

// jsonFields are the fields of a struct's JSON form, those of embedded structs too.
func jsonFields(typ reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			maps.Copy(out, jsonFields(f.Type))
		case name != "-" && name != "":
			out[name] = f.Type
		}
	}
	return out
}
