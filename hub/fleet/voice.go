package fleet

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"causeway/protocol"
)

// What a node makes the hub log has a budget too: a log that one node fills, or that the
// service manager cuts for its rate, has no room for what others' lines say.
const (
	voiceBurst = 60
	voiceEvery = 5 * time.Second
)

// Voice is a node's share of the hub's log, over all of its sessions. As a hook of their
// logger it counts what is beyond it, and the next line that has room tells how many.
type Voice struct {
	mu   sync.Mutex
	pace *rate.Limiter
	lost int
}

func newVoice() *Voice { return &Voice{pace: rate.NewLimiter(rate.Every(voiceEvery), voiceBurst)} }

// Run implements zerolog.Hook. Lines for whoever debugs are not counted.
func (v *Voice) Run(e *zerolog.Event, level zerolog.Level, _ string) {
	if level < zerolog.InfoLevel {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.pace.Allow() {
		v.lost++
		e.Discard()
		return
	}
	if v.lost > 0 {
		e.Int("not_logged", v.lost)
		v.lost = 0
	}
}

// Voice is that of node n.
func (t *Table) Voice(n protocol.NodeNumber) *Voice {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.node(n).voice
}
