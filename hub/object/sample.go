//go:build samplekind

package object

import (
	"encoding/json"
	"errors"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

func init() { state.RegisterKind(samples{}) }

// samples is the example of a kind: what a new one needs at the hub.
type samples struct{}

func (samples) Kind() string    { return "sample" }
func (samples) Shape() uint32   { return 1 }
func (samples) Essential() bool { return true }

func (samples) Canonical(spec json.RawMessage) (json.RawMessage, error) {
	var v api.SampleSpec
	if err := state.ReadStrictly(spec, &v); err != nil {
		return nil, err
	}
	if v.Text == "" {
		return nil, errors.New("text is missing")
	}
	return json.Marshal(v)
}

func (samples) Check(st *state.State, o state.Object) error {
	return state.Found(st, samples{}.Names(o))
}

func (samples) Names(o state.Object) []state.ObjectKey {
	v, err := specOf[api.SampleSpec](o)
	if err != nil {
		return nil
	}
	return []state.ObjectKey{{Kind: state.KindSite, Name: v.Site}}
}

func (samples) Tells(st *state.State, o state.Object) (body json.RawMessage, nodes []protocol.NodeNumber) {
	v, err := specOf[api.SampleSpec](o)
	if err != nil {
		return nil, nil
	}
	return o.Spec, st.LiveNodesOf(v.Site)
}
