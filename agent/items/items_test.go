package items

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func item(kind, name, body string) protocol.Item {
	return protocol.Item{Kind: kind, Name: name, Generation: 7, Body: json.RawMessage(body)}
}

// What is refused takes nothing else along; what is not known is left alone.
func TestApply(t *testing.T) {
	held, refused, errs := Apply(t.Context(), []protocol.Item{
		item("limit", "bad", `{"packets":"many"}`), item("limit", "branch", `{"between":["a","b"],"packets":5,"bytes":6,"later":true}`),
		item("limit", "each", `{"node":"*","bytes":7}`), item("limit", "nothing", `{"site":"a"}`), item("moon", "x", `{}`)})
	require.Empty(t, errs)
	require.Equal(t, []Held{
		{"limit", "branch", 7, "5 datagrams and 6 bytes a second of what goes between sites a and b, both ways together through a hub's relay"},
		{"limit", "each", 7, "7 bytes a second of what this node sends through a hub's relay"},
	}, held)
	require.Len(t, refused, 2)
	require.Equal(t, protocol.RefusedPart{Kind: "limit", Name: "nothing", Reason: "it limits nothing"}, refused[1])
	require.Contains(t, refused[0].Reason, "its body does not read")
}

// FuzzApply: a taken-over hub sends what it likes.
func FuzzApply(f *testing.F) {
	f.Add("limit", "a", []byte(`{"packets":1}`))
	f.Fuzz(func(t *testing.T, kind, name string, body []byte) {
		held, refused, errs := Apply(t.Context(), []protocol.Item{{Kind: kind, Name: name, Body: body}})
		require.Empty(t, errs)
		require.LessOrEqual(t, len(held)+len(refused), 1)
		for _, h := range held {
			require.NotContains(t, h.Text, "\n")
		}
	})
}
