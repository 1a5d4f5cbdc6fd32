package strictyaml

import (
	"reflect"
	"strings"
)

// Key is a key of a configuration file, as its struct describes it.
type Key struct {
	Path string // such as tunnel.mtu
	Type string // text, number, true or false, list, map
	Doc  string // the field's tag `doc`
}

// Keys lists the keys of a struct for an error: a, b {c, d}.
func Keys(v any) string { return keys(reflect.TypeOf(v)) }

func keys(t reflect.Type) string {
	var out []string
	for name, f := range fields(t) {
		if f.Type.Kind() == reflect.Struct {
			name += " {" + keys(f.Type) + "}"
		}
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}

// Reference lists the keys of a struct, those of its maps by their whole path.
func Reference(v any) []Key { return reference(reflect.TypeOf(v), "") }

func reference(t reflect.Type, prefix string) (out []Key) {
	for name, f := range fields(t) {
		t := f.Type
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() == reflect.Struct {
			out = append(out, reference(t, prefix+name+".")...)
			continue
		}
		out = append(out, Key{Path: prefix + name, Type: kind(t), Doc: f.Tag.Get("doc")})
	}
	return out
}

func kind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "map"
	}
	return "number"
}

func fields(t reflect.Type) func(yield func(string, reflect.StructField) bool) {
	return func(yield func(string, reflect.StructField) bool) {
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if name != "" && name != "-" && !yield(name, f) {
				return
			}
		}
	}
}
