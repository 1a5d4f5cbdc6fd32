package facts

import "sync"

// Watchers hear of what is told. The zero value has none and is ready. Its methods may be called
// concurrently, and none of them blocks.
type Watchers[T any] struct {
	mu    sync.Mutex
	all   map[*watcher[T]]bool
	ended bool
}

// Wish is what a watcher wants.
type Wish[T any] struct {
	// Ahead is how many values may wait for the watcher.
	Ahead int
	// Lossy has a value left out for which there is no room; otherwise a watcher that is so slow
	// is cut off.
	Lossy bool
	// Want reports whether a value is for the watcher; nil: all are. It must not block, nor
	// use the Watchers.
	Want func(T) bool
}

type watcher[T any] struct {
	Wish[T]
	c chan T
}

// Watch returns what is told from now on. The channel is closed by end, which may be called more
// than once, by End, and when the watcher is cut off.
func (w *Watchers[T]) Watch(wish Wish[T]) (c <-chan T, end func()) {
	x := &watcher[T]{wish, make(chan T, wish.Ahead)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		close(x.c)
		return x.c, func() {}
	}
	if w.all == nil {
		w.all = map[*watcher[T]]bool{}
	}
	w.all[x] = true
	return x.c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.drop(x)
	}
}

// drop closes x once. w.mu is held.
func (w *Watchers[T]) drop(x *watcher[T]) {
	if w.all[x] {
		delete(w.all, x)
		close(x.c)
	}
}

// Any reports whether anybody watches.
func (w *Watchers[T]) Any() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.all) > 0
}

// Tell has all watchers hear of v.
func (w *Watchers[T]) Tell(v T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for x := range w.all {
		if x.Want != nil && !x.Want(v) {
			continue
		}
		select {
		case x.c <- v:
		default:
			if !x.Lossy {
				w.drop(x)
			}
		}
	}
}

// End closes all channels, and those of whoever comes later.
func (w *Watchers[T]) End() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for x := range w.all {
		w.drop(x)
	}
}
