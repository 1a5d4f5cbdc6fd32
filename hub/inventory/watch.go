package inventory

import (
	"context"

	"causeway/hub/api"
)

// watchBuffer is how many changes a watcher may be behind; one that is slower is cut off.
const watchBuffer = 1024

type watcher struct{ c chan api.InventoryChange }

// Watch returns the changes from now on. The channel is closed when ctx ends, when the
// store does, and when its reader is too slow.
func (s *Store) Watch(ctx context.Context) <-chan api.InventoryChange {
	w := &watcher{make(chan api.InventoryChange, watchBuffer)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		close(w.c)
		return w.c
	}
	s.watchers[w] = true
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unwatch(w)
	})
	return w.c
}

// unwatch closes w once. s.mu is held.
func (s *Store) unwatch(w *watcher) {
	if s.watchers[w] {
		delete(s.watchers, w)
		close(w.c)
	}
}

func (s *Store) tell(c api.InventoryChange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		select {
		case w.c <- c:
		default:
			s.unwatch(w)
		}
	}
}

func (s *Store) endWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for w := range s.watchers {
		s.unwatch(w)
	}
}
