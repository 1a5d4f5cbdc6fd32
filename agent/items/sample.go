//go:build samplekind

package items

import (
	"context"
	"errors"

	"causeway/protocol"
)

func init() { appliers = append(appliers, samples{}) }

// samples is the example of a kind: what a new one needs on a node.
type samples struct{}

type sample struct {
	Text string `json:"text"`
}

func (samples) Kind() string { return "sample" }

func (samples) Check(i protocol.Item) error {
	v, err := bodyOf[sample](i)
	if err == nil && v.Text == "no" {
		err = errors.New("this node takes no such text")
	}
	return err
}

func (samples) Apply(context.Context, []protocol.Item) error { return nil }

func (samples) Text(i protocol.Item) string {
	v, err := bodyOf[sample](i)
	if err != nil {
		return err.Error()
	}
	return v.Text
}
