package inventory

import (
	"context"

	"causeway/hub/api"
	"causeway/hub/facts"
	"causeway/hub/notice"
	"causeway/protocol"
)

// Notices tells from now on of nodes whose facts changed, Drops of those of whose messages one made no sense. See notice.Board.
func (s *Store) Notices(wake chan<- struct{}) *notice.Reader[protocol.NodeNumber] {
	return s.notices.Join(wake)
}

// Drops is with Notices.
func (s *Store) Drops(wake chan<- struct{}) *notice.Reader[protocol.NodeNumber] {
	return s.drops.Join(wake)
}

// watchBuffer is how many changes a watcher may be behind; one that is slower is cut off.
const watchBuffer = 1024

// Watch returns the changes from now on. The channel is closed when ctx ends, when the
// store does, and when its reader is too slow.
func (s *Store) Watch(ctx context.Context) <-chan api.InventoryChange {
	c, end := s.watchers.Watch(facts.Wish[api.InventoryChange]{Ahead: watchBuffer})
	context.AfterFunc(ctx, end)
	return c
}
