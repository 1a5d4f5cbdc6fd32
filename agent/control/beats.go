package control

import (
	"sync"
	"time"
)

// beats are statuses whose answers are to come. Its methods may be called concurrently.
type beats struct {
	mu   sync.Mutex
	last uint64
	sent map[uint64]time.Duration
}

// maxBeats is how many answers may be missing; those before are given up.
const maxBeats = 64

// next is the number of a status that is sent now.
func (b *beats) next(now time.Duration) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sent == nil {
		b.sent = map[uint64]time.Duration{}
	}
	b.last++
	b.sent[b.last] = now
	delete(b.sent, b.last-maxBeats)
	return b.last
}

// answered is when the status with a number was sent. A number that was never given, or answered already, is none.
func (b *beats) answered(n uint64) (at time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, ok = b.sent[n]
	delete(b.sent, n)
	return at, ok
}
