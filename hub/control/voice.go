package control

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"
)

// What a node makes the hub log has a budget too: a log that one node fills, or that the
// service manager cuts for its rate, has no room for what others' lines say.
const (
	voiceBurst = 60
	voiceEvery = 5 * time.Second
)

// voice is a node's share of the hub's log, over all of its sessions. As a hook of their
// logger it counts what is beyond it, and the next line that has room tells how many.
type voice struct {
	mu   sync.Mutex
	pace *rate.Limiter
	lost int
}

func newVoice() *voice { return &voice{pace: rate.NewLimiter(rate.Every(voiceEvery), voiceBurst)} }

// Run implements zerolog.Hook. Lines for whoever debugs are not counted.
func (v *voice) Run(e *zerolog.Event, level zerolog.Level, _ string) {
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
