package items

import (
	"context"
	"errors"

	"causeway/protocol"
)

// limits are held by hubs' relays; the node only knows of them, so that whoever wonders on the host
// what makes the relay slow finds it.
type limits struct{}

func (limits) Kind() string { return protocol.ItemLimit }

func (limits) Check(i protocol.Item) error {
	l, err := bodyOf[protocol.Limit](i)
	if err == nil && l.Packets == 0 && l.Bytes == 0 {
		err = errors.New("it limits nothing")
	}
	return err
}

func (limits) Apply(context.Context, []protocol.Item) error { return nil }

func (limits) Text(i protocol.Item) string {
	l, err := bodyOf[protocol.Limit](i)
	if err != nil {
		return err.Error()
	}
	return l.String()
}
