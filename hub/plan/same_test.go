package plan

import (
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// leaves calls each with every field of v, those in structs within too.
func leaves(v reflect.Value, each func(reflect.Value)) {
	if v.Kind() == reflect.Struct {
		for i := range v.NumField() {
			leaves(v.Field(i), each)
		}
		return
	}
	each(v)
}

// differs holds same to each field of T, those of later included.
func differs[T any](t *testing.T, same func(a, b *T) bool) {
	require.True(t, same(new(T), new(T)))
	fields := 0
	leaves(reflect.ValueOf(new(T)).Elem(), func(reflect.Value) { fields++ })
	for i := range fields {
		x, at := new(T), 0
		leaves(reflect.ValueOf(x).Elem(), func(v reflect.Value) {
			if at++; at != i+1 {
				return
			}
			switch v.Kind() {
			case reflect.String:
				v.SetString("x")
			case reflect.Bool:
				v.SetBool(true)
			case reflect.Uint32, reflect.Uint64:
				v.SetUint(1)
			case reflect.Int64:
				v.SetInt(1)
			case reflect.Array:
				v.Index(v.Len() - 1).SetUint(1)
			case reflect.Slice:
				v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			case reflect.Pointer:
				v.Set(reflect.New(v.Type().Elem()))
			default:
				t.Fatal(v.Type())
			}
		})
		require.False(t, same(new(T), x), "field %d of %T", i, *x)
		require.False(t, same(x, new(T)), "field %d of %T", i, *x)
		require.True(t, same(x, x))
	}
}

func TestSameSeesEachField(t *testing.T) {
	differs(t, samePeer)
	differs(t, sameSelf)
	require.False(t, sameSelf(&protocol.NetmapSelf{Upgrade: &protocol.UpgradeWish{ID: 1}}, &protocol.NetmapSelf{Upgrade: &protocol.UpgradeWish{ID: 2}}))
	require.True(t, sameSelf(&protocol.NetmapSelf{Upgrade: &protocol.UpgradeWish{ID: 1}}, &protocol.NetmapSelf{Upgrade: &protocol.UpgradeWish{ID: 1}}))
}
