package event

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"causeway/hub/api"
	"causeway/hub/facts"
	"causeway/protocol"
)

// Limits of the stream of events, and of how many a second become messages: events are
// news for readers, the audit is the record.
const (
	maxEvents     = 20_000
	maxEventBytes = 64 << 20
	maxEventAge   = 30 * 24 * time.Hour
	eventsASecond = 50
	eventsAtOnce  = 500
	eventsWaiting = 1024
	// The same of one node, which shall not push others' out.
	nodeEvery      = 10 * time.Second
	nodeAtOnce     = 100
	maxNodes       = 16384 // that are remembered
	eventPublished = 5 * time.Second
)

// News publishes the hub's events for readers. Its log adds them, from any goroutine; Run runs in
// one at a time.
type News struct {
	js    jetstream.JetStream
	queue <-chan api.Event
	limit *rate.Limiter

	mu    sync.Mutex
	nodes map[string]*rate.Limiter
}

// OpenNews makes the stream, and has the events that come to log from now on wait for Run, which
// publishes. Of a flood, some are left out. The error is that JetStream does not make the stream.
func OpenNews(ctx context.Context, js jetstream.JetStream, log *Log) (*News, error) {
	_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: protocol.EventStream, Description: "the hub's events", Subjects: []string{protocol.SubjectEventsAll}, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardOld, MaxMsgs: maxEvents, MaxBytes: maxEventBytes, MaxAge: maxEventAge, AllowDirect: true,
	})
	if err != nil {
		return nil, fmt.Errorf("open the stream of events: %w", err)
	}
	n := &News{js: js, limit: rate.NewLimiter(eventsASecond, eventsAtOnce), nodes: map[string]*rate.Limiter{}}
	n.queue, _ = log.Watch(facts.Wish[api.Event]{Ahead: eventsWaiting, Lossy: true, Want: n.want})
	return n, nil
}

// want reports whether an event is within what is published.
func (n *News) want(ev api.Event) bool { return n.within(ev.Node) && n.limit.Allow() }

// within reports whether a node has its budget left.
func (n *News) within(node string) bool {
	if node == "" {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.nodes[node]
	if l == nil {
		if len(n.nodes) >= maxNodes {
			clear(n.nodes)
		}
		l = rate.NewLimiter(rate.Every(nodeEvery), nodeAtOnce)
		n.nodes[node] = l
	}
	return l.Allow()
}

// Run publishes events until ctx ends.
func (n *News) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-n.queue:
			b, err := json.Marshal(ev)
			if err != nil {
				continue
			}
			pctx, cancel := context.WithTimeout(ctx, eventPublished)
			_, _ = n.js.Publish(pctx, protocol.EventSubject(ev.Kind), b) // news that could not be told is old
			cancel()
		}
	}
}
