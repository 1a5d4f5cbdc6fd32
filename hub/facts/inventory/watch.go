package inventory

import (
	"context"

	"causeway/hub/api"
	"causeway/hub/facts"
)

// watchBuffer is how many changes a watcher may be behind; one that is slower is cut off.
const watchBuffer = 1024

// Watch returns the changes from now on. The channel is closed when ctx ends, when the
// store does, and when its reader is too slow.
func (s *Store) Watch(ctx context.Context) <-chan api.InventoryChange {
	c, end := s.watchers.Watch(facts.Wish[api.InventoryChange]{Ahead: watchBuffer})
	context.AfterFunc(ctx, end)
	return c
}
