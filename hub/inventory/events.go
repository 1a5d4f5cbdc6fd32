package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"causeway/hub/api"
	"causeway/protocol"
)

// Limits of the stream of events, and of how many a second become messages: events are
// news for readers, the audit is the record.
const (
	maxEvents     = 20_000
	maxEventBytes = 64 << 20
	eventsASecond = 50
	eventsAtOnce  = 500
	eventsWaiting = 1024
	// The same of one node, which shall not push others' out.
	nodeEvery      = 10 * time.Second
	nodeAtOnce     = 100
	maxNodes       = 16384 // that are remembered
	eventPublished = 5 * time.Second
)

// Events publishes the hub's events for readers.
type Events struct {
	js    jetstream.JetStream
	queue chan api.Event
	limit *rate.Limiter

	mu    sync.Mutex
	nodes map[string]*rate.Limiter
}

// OpenEvents makes the stream. Run publishes.
func OpenEvents(ctx context.Context, js jetstream.JetStream) (*Events, error) {
	_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: protocol.EventStream, Description: "the hub's events", Subjects: []string{protocol.SubjectEventsAll}, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardOld, MaxMsgs: maxEvents, MaxBytes: maxEventBytes, MaxAge: maxAge, AllowDirect: true,
	})
	if err != nil {
		return nil, fmt.Errorf("open the stream of events: %w", err)
	}
	return &Events{js: js, queue: make(chan api.Event, eventsWaiting), limit: rate.NewLimiter(eventsASecond, eventsAtOnce), nodes: map[string]*rate.Limiter{}}, nil
}

// Add takes an event. It never blocks: of a flood, some are left out.
func (e *Events) Add(ev api.Event) {
	if !e.within(ev.Node) || !e.limit.Allow() {
		return
	}
	select {
	case e.queue <- ev:
	default:
	}
}

// within reports whether a node has its budget left.
func (e *Events) within(node string) bool {
	if node == "" {
		return true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.nodes[node]
	if l == nil {
		if len(e.nodes) >= maxNodes {
			clear(e.nodes)
		}
		l = rate.NewLimiter(rate.Every(nodeEvery), nodeAtOnce)
		e.nodes[node] = l
	}
	return l.Allow()
}

// Run publishes events until ctx ends.
func (e *Events) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-e.queue:
			b, err := json.Marshal(ev)
			if err != nil {
				continue
			}
			pctx, cancel := context.WithTimeout(ctx, eventPublished)
			_, _ = e.js.Publish(pctx, protocol.EventSubject(ev.Kind), b) // news that could not be told is old
			cancel()
		}
	}
}
