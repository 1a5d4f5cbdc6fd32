package onhost

import (
	"slices"
	"sync"
	"time"

	"causeway/netns"
)

// heard is what the kernel told and nobody has looked through yet. Whoever tells waits for no look.
type heard struct {
	mu   sync.Mutex
	list []change
}

// change is what was told, and when: first, and the last time that the same was.
type change struct {
	told
	first, last time.Time
}

// add takes what was told, in order; the same of one kind is kept once. traffic is what the tunnel
// has carried.
func (h *heard) add(l []netns.Change, traffic func() (rx, tx uint64)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	for _, c := range l {
		if i := slices.IndexFunc(h.list, func(x change) bool { return x.Kind == c.Kind && x.By == c.By }); i >= 0 {
			h.list[i].last = now
			continue
		}
		rx, tx := traffic()
		h.list = append(h.list, change{told{c, rx, tx}, now, now})
	}
}

// take gives all of it away.
func (h *heard) take() []change {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.list
	h.list = nil
	return l
}
