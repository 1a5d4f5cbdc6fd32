package items

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns"
	"causeway/protocol"
)

func item(kind, name, body string) protocol.Item {
	return protocol.Item{Kind: kind, Name: name, Generation: 7, Body: json.RawMessage(body)}
}

// What is refused takes nothing else along; what is not known is left alone.
func TestApply(t *testing.T) {
	taken := Take(View{Items: []protocol.Item{
		item("limit", "bad", `{"packets":"many"}`), item("limit", "branch", `{"between":["a","b"],"packets":5,"bytes":6,"later":true}`),
		item("limit", "each", `{"node":"*","bytes":7}`), item("limit", "nothing", `{"site":"a"}`), item("moon", "x", `{}`)}}, nil)
	held, errs := taken.Apply(t.Context())
	require.Empty(t, errs)
	require.Equal(t, []Held{
		{"limit", "branch", 7, "5 datagrams and 6 bytes a second of what goes between sites a and b, both ways together through a hub's relay"},
		{"limit", "each", 7, "7 bytes a second of what this node sends through a hub's relay"},
	}, held)
	require.Len(t, taken.Refused, 2)
	require.Equal(t, protocol.RefusedPart{Kind: "limit", Name: "nothing", Reason: "it limits nothing"}, taken.Refused[1])
	require.Contains(t, taken.Refused[0].Reason, "its body does not read")
}

// placed is a kind that is on the host by the name of its first item, and fails without any.
type placed struct{ limits }

type partOf struct {
	netns.Part
	name string
}

func (p partOf) Table() string { return netns.PartPrefix + "placed" }

func (placed) Kind() string { return "placed" }

func (placed) Check(protocol.Item) error { return nil }

func (placed) Part(_ View, l []protocol.Item) (netns.Part, error) {
	if len(l) == 0 {
		return nil, errors.New("no item")
	}
	return partOf{name: l[0].Name}, nil
}

// What a kind has on the host goes into the host's plan; where that cannot be said the host keeps what it has.
func TestParts(t *testing.T) {
	appliers = append(appliers, placed{})
	defer func() { appliers = appliers[:len(appliers)-1] }()
	one := Take(View{Items: []protocol.Item{item("placed", "a", `{}`)}}, nil)
	require.Equal(t, []netns.Part{partOf{name: "a"}}, one.Parts)
	_, errs := one.Apply(t.Context())
	require.Empty(t, errs)
	none := Take(View{}, one.Parts)
	require.Equal(t, one.Parts, none.Parts)
	_, errs = none.Apply(t.Context())
	require.Equal(t, []string{"placed: no item"}, errs)
}

// FuzzApply: a taken-over hub sends what it likes.
func FuzzApply(f *testing.F) {
	f.Add("limit", "a", []byte(`{"packets":1}`))
	f.Add("policy", "a", []byte(`{"rules":[{"rule":"x","from":[1],"to":[2],"allow":["tcp/80"]}]}`))
	f.Add("flowlog", "all", []byte(`{"sites":["a"]}`))
	f.Fuzz(func(t *testing.T, kind, name string, body []byte) {
		taken := Take(View{Interface: "cw0", Items: []protocol.Item{{Kind: kind, Name: name, Body: body}}}, nil)
		logs := kind == protocol.ItemFlowLog && len(taken.Refused) == 0
		require.Equal(t, kind == protocol.ItemPolicy || kind == protocol.ItemSegment || logs, len(taken.Parts) == 1, "closed as soon as anything is declared")
		held, errs := taken.Apply(t.Context())
		require.Empty(t, errs)
		require.LessOrEqual(t, len(held)+len(taken.Refused), 1)
		for _, h := range held {
			require.NotContains(t, h.Text, "\n")
		}
	})
}
