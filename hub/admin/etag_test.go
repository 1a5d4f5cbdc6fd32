package admin

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
)

// other changes v to another value.
func other(t *testing.T, v reflect.Value) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = x.Add(time.Nanosecond)
		return
	case *netip.Prefix:
		*x = netip.MustParsePrefix("10.1.0.0/16")
		return
	case *map[string]string:
		*x = map[string]string{"a": "b"}
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("other")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Uint8, reflect.Uint32:
		v.SetUint(v.Uint() + 1)
	case reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Array:
		other(t, v.Index(v.Len()-1))
	case reflect.Struct:
		for i := range v.NumField() {
			other(t, v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	default:
		t.Fatal(v.Type())
	}
}

// No field of a node or route, those of later included, is forgotten in its ETag.
func TestTagsSeeEachField(t *testing.T) {
	agents := []string{"Statement", "WireGuardKey", "KeySince", "Proven"} // own word
	for i := range reflect.TypeFor[state.Node]().NumField() {
		var n state.Node
		before, name := nodeTag(n), reflect.TypeFor[state.Node]().Field(i).Name
		other(t, reflect.ValueOf(&n).Elem().Field(i))
		require.Equal(t, slices.Contains(agents, name), before == nodeTag(n), name)
	}
	for i := range reflect.TypeFor[state.Route]().NumField() {
		var r state.Route
		before := routeTag(r)
		other(t, reflect.ValueOf(&r).Elem().Field(i))
		require.NotEqual(t, before, routeTag(r), reflect.TypeFor[state.Route]().Field(i).Name)
	}
	require.NotEqual(t, nodeTag(state.Node{Name: "ab", Site: "c"}), nodeTag(state.Node{Name: "a", Site: "bc"}))
}
