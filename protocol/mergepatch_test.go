package protocol

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The examples of RFC 7396, appendix A, whose documents are objects.
func TestMergePatchRFC(t *testing.T) {
	for _, tt := range []struct{ doc, patch, want string }{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{`{"n":18446744073709551615}`, `{"m":18446744073709551614}`, `{"n":18446744073709551615,"m":18446744073709551614}`},
	} {
		got, err := MergePatch([]byte(tt.doc), []byte(tt.patch))
		require.NoError(t, err)
		require.JSONEq(t, tt.want, string(got))
	}
	for _, bad := range []string{``, `null`, `[1]`, `{"a":1}{"b":2}`, `{"a":`, strings.Repeat(`{"a":`, 40) + `1` + strings.Repeat(`}`, 40)} {
		_, err := MergePatch([]byte(`{}`), []byte(bad))
		require.Error(t, err, bad)
		_, err = MergePatch([]byte(bad), []byte(`{}`))
		require.Error(t, err, bad)
	}
}

// document generates JSON without null members.
func document() *rapid.Generator[map[string]any] {
	keys := rapid.SampledFrom([]string{"a", "b", "c", "d/e", ""})
	leaf := rapid.OneOf(rapid.Custom(func(t *rapid.T) any { return rapid.IntRange(0, 3).Draw(t, "n") }),
		rapid.Custom(func(t *rapid.T) any { return rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "s") }),
		rapid.Custom(func(t *rapid.T) any { return rapid.SliceOfN(rapid.IntRange(0, 2), 0, 2).Draw(t, "l") }))
	inner := rapid.OneOf(leaf, rapid.Custom(func(t *rapid.T) any { return rapid.MapOfN(keys, leaf, 0, 3).Draw(t, "m") }))
	return rapid.MapOfN(keys, inner, 0, 5)
}

// A patch made of two documents turns the one into the other, and is
// none where they are the same.
func TestDiffThenMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, _ := json.Marshal(document().Draw(t, "from"))
		to, _ := json.Marshal(document().Draw(t, "to"))
		p, changed, err := DiffPatch(from, to)
		if err != nil {
			t.Fatal(err)
		}
		if !changed {
			if string(from) != string(to) {
				t.Fatalf("no patch from %s to %s", from, to)
			}
			return
		}
		got, err := MergePatch(from, p)
		if err != nil || string(got) != string(to) {
			t.Fatalf("%s patched with %s is %s, %v; not %s", from, p, got, err, to)
		}
	})
}

// Patches come from agents: none may panic, and what comes out is an object again.
func FuzzMergePatch(f *testing.F) {
	f.Add([]byte(`{"a":{"b":1}}`), []byte(`{"a":{"b":null,"c":[1,{"d":2}]}}`))
	f.Fuzz(func(t *testing.T, doc, patch []byte) {
		got, err := MergePatch(doc, patch)
		if err != nil {
			return
		}
		if _, err := decodeObject(got); err != nil {
			t.Fatalf("%s + %s = %s: %v", doc, patch, got, err)
		}
		if len(got) > 8*(len(doc)+len(patch))+16 { // escapes make it longer
			t.Fatalf("%d and %d bytes make %d", len(doc), len(patch), len(got))
		}
	})
}
