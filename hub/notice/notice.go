// Package notice tells readers which of many things changed. It keeps no more than a set of names for each reader, and
// nothing at all while there is none: whoever wants to know what became of them looks.
package notice

import "sync"

// most is how many keys are kept for a reader; beyond it all may have changed.
const most = 100_000

// Board tells of things by key. The zero value has no readers and is ready. Its methods may be called concurrently, and
// none of them blocks.
type Board[K comparable] struct {
	mu      sync.Mutex
	readers map[*Reader[K]]bool
}

// Reader gathers what changed since it was asked last.
type Reader[K comparable] struct {
	board *Board[K]
	wake  chan<- struct{}

	// board.mu guards these.
	keys map[K]bool
	all  bool
}

// Join returns a reader of what changes from now on. wake takes one whenever there is something new; it should have room for one, and
// several readers may share it. Leave ends it.
func (b *Board[K]) Join(wake chan<- struct{}) *Reader[K] {
	r := &Reader[K]{board: b, wake: wake, keys: map[K]bool{}}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.readers == nil {
		b.readers = map[*Reader[K]]bool{}
	}
	b.readers[r] = true
	return r
}

// Any reports whether anybody reads: what Mark would be told needs no finding out else.
func (b *Board[K]) Any() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.readers) > 0
}

// Mark says that these changed. It is called after the change, or under the lock that whoever looks takes.
func (b *Board[K]) Mark(keys ...K) {
	if len(keys) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for r := range b.readers {
		for _, k := range keys {
			if r.all {
				break
			}
			if r.keys[k] = true; len(r.keys) > most {
				r.keys, r.all = map[K]bool{}, true
			}
		}
		r.poke()
	}
}

// MarkAll says that anything may have changed.
func (b *Board[K]) MarkAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for r := range b.readers {
		r.keys, r.all = map[K]bool{}, true
		r.poke()
	}
}

func (r *Reader[K]) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Take returns what changed since the last time; all says that it may be anything, and then keys has nothing.
func (r *Reader[K]) Take() (keys map[K]bool, all bool) {
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	keys, all = r.keys, r.all
	r.keys, r.all = map[K]bool{}, false
	return keys, all
}

// Leave ends the reader.
func (r *Reader[K]) Leave() {
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	delete(r.board.readers, r)
}
