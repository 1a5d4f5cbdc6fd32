package inventory

import (
	"context"
	"time"

	"causeway/protocol"
)

// source is a container runtime, or CNI's records. Its methods are called by one
// goroutine at a time, but for watch.
type source interface {
	// name is its key among the facts.
	name() string
	// there reports whether it is on this host now, cheaply.
	there() bool
	// list returns what it runs. Maps and lists are the caller's.
	list(context.Context) (protocol.Runtime, []found, error)
	// watch signals changed after each change of what list returns, until ctx ends
	// or the source does.
	watch(ctx context.Context, changed func()) error
}

// found is a container with what is needed to measure it.
type found struct {
	protocol.Container
	pid     int    // of its first process; 0: not running, or not known
	sandbox string // id under which CNI knows its network
}

// How long until a source is looked for that is not there, and until one is watched
// again that ended its answer.
const (
	lookAgain  = 10 * time.Second
	watchAgain = time.Second
)

// follow watches a source for as long as ctx lasts, and signals whenever its
// list may be another one.
func follow(ctx context.Context, s source, changed func()) {
	was := false
	for ctx.Err() == nil {
		now := s.there()
		if now != was {
			was = now
			changed()
		}
		if now {
			_ = s.watch(ctx, changed)
			if ctx.Err() != nil {
				return
			}
			changed() // what happened unseen
			was = s.there()
		}
		wait := lookAgain
		if was {
			wait = watchAgain
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}
