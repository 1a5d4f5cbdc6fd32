// Package inventory keeps every node's present facts, as they arrive over NATS: it folds
// snapshots and deltas, asks for a snapshot where something is missing, and puts
// the result into a bucket for readers. Whose facts they are says the subject, under
// which only that node's session may publish.
package inventory

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"causeway/hub/api"
	"causeway/hub/facts"
	"causeway/hub/facts/event"
	"causeway/hub/notice"
	"causeway/protocol"
)

// Limits of the stream, which is the history: the oldest go first.
const (
	maxPerSubject = 512
	maxAge        = 30 * 24 * time.Hour
)

// Times.
const (
	askEvery     = 10 * time.Second
	sweepEvery   = 30 * time.Second
	writeSpacing = 500 * time.Millisecond // between writes of one node's facts
)

// writeRate is how many bytes a second of one node's facts are written to the bucket in the long run: the
// longest facts every half minute. The server reads whole blocks to take out what was there before.
const writeRate = 32 << 10

// The server has whole blocks of 4 MiB in memory for a while after it stored, read or took out one long message.
// What is long is written settle after it came, and histories are cut later still: one after the other
// they need the memory of one.
const (
	long   = 256 << 10
	settle = 2 * time.Second
)

// replayed is how far behind the last facts in the bucket the stream is read again after a
// start: facts are written up to writeSpacing after their message.
const replayed = 5000

// Config configures a Store.
type Config struct {
	JetStream jetstream.JetStream // of stream and bucket
	Conn      *nats.Conn          // where agents are heard
	MaxBytes  int64               // of stream and bucket together
	// Inside says that the server is the hub's own, whose memory is the hub's. It gives a stream with a
	// bound of more than 32 MiB blocks of 8 MiB, each of which is whole in memory while it is
	// written or cut, and one without a bound half of that. So this package bounds stream and bucket.
	Inside bool
	// Node returns the name of a node, and false if it is none of the cluster any more.
	Node   func(protocol.NodeNumber) (name string, live bool)
	Events *event.Log
	Log    zerolog.Logger
}

// Store holds the facts. Its methods may be called concurrently.
type Store struct {
	cfg    Config
	stream jetstream.Stream
	bucket jetstream.KeyValue
	wake   chan struct{} // something is to be written
	heavy  chan heavy    // whose history is to be weighed
	grown  chan struct{} // the stream may be beyond its bound

	mu        sync.Mutex
	facts     map[protocol.NodeNumber]*present
	dirty     map[protocol.NodeNumber]bool
	bad       map[protocol.NodeNumber]api.DroppedInventory
	dropped   uint64
	asked     map[protocol.NodeNumber]time.Time
	written   map[protocol.NodeNumber]int       // bytes in the bucket
	rewrite   map[protocol.NodeNumber]time.Time // when facts may be written again
	histories map[protocol.NodeNumber]*history
	unweighed int    // bytes of all nodes since the stream was looked at
	whole     bool   // all that the stream has is read after the start
	next      uint64 // in the stream
	seen      uint64 // what comes up to here was there before the start

	watchers facts.Watchers[api.InventoryChange]
	notices  notice.Board[protocol.NodeNumber] // whose facts changed
	drops    notice.Board[protocol.NodeNumber] // of which something was dropped
	messages *prometheus.CounterVec            // by result
}

// Results of a message.
const (
	resultTaken     = "taken"
	resultRepeated  = "repeated"  // it was taken before
	resultGap       = "gap"       // the one before it is missing; a snapshot was asked for
	resultMalformed = "malformed" // it made no sense, and was dropped
	resultStranger  = "stranger"  // of a node that is none of the cluster any more
)

// Open makes stream and bucket, or brings their limits up to date, and reads the facts.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	js := cfg.JetStream
	s := &Store{cfg: cfg, wake: make(chan struct{}, 1), heavy: make(chan heavy, 64), grown: make(chan struct{}, 1), histories: map[protocol.NodeNumber]*history{}, facts: map[protocol.NodeNumber]*present{}, dirty: map[protocol.NodeNumber]bool{},
		bad: map[protocol.NodeNumber]api.DroppedInventory{}, asked: map[protocol.NodeNumber]time.Time{}, written: map[protocol.NodeNumber]int{}, rewrite: map[protocol.NodeNumber]time.Time{},
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_hub_inventory_messages_total", Help: "Inventory messages of nodes, by what became of them."}, []string{"result"})}
	for _, r := range []string{resultTaken, resultRepeated, resultGap, resultMalformed, resultStranger} {
		s.messages.WithLabelValues(r)
	}
	maxBytes, maxBucket := s.streamBound(), s.bucketBound()
	if cfg.Inside {
		maxBytes, maxBucket = -1, -1
	}
	var err error
	s.stream, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: protocol.InventoryStream, Description: "history of nodes' facts", Subjects: []string{protocol.SubjectInventoryAll},
		Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, AllowDirect: true,
		MaxMsgsPerSubject: maxPerSubject, MaxMsgSize: protocol.MaxInventory + 4096, MaxBytes: maxBytes, MaxAge: maxAge,
		// One window for all agents: a short one, lest a guessed message id of another's hides it.
		Duplicates: time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("open the inventory stream: %w", err)
	}
	s.bucket, err = js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: protocol.FactsBucket, Description: "present facts of nodes", History: 1, MaxValueSize: 2*protocol.MaxInventory + 4096,
		MaxBytes: maxBucket, Storage: jetstream.FileStorage,
	})
	if err != nil {
		return nil, fmt.Errorf("open the bucket of facts: %w", err)
	}
	return s, s.load(ctx)
}

// Metrics counts messages.
func (s *Store) Metrics() prometheus.Collector { return s.messages }

// count counts a message, unless it was there before the start: those are read again.
func (s *Store) count(result string, stream uint64) {
	if stream > s.seen {
		s.messages.WithLabelValues(result).Inc()
	}
}

// stored is a value of the bucket: what the admin API shows, and where in the stream it
// is from.
type stored struct {
	api.Inventory
	Stream uint64 `json:"stream_seq"`
}

// load reads the bucket.
func (s *Store) load(ctx context.Context) error {
	w, err := s.bucket.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("read the bucket of facts: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-w.Updates():
			if e == nil { // that was all
				i, err := s.stream.Info(ctx)
				if err != nil {
					return fmt.Errorf("read the inventory stream: %w", err)
				}
				if s.next > i.State.LastSeq { // another stream than the bucket is from
					s.next = 0
					for _, f := range s.facts {
						f.stream = 0
					}
				}
				s.seen = s.next
				if s.next > replayed {
					s.next -= replayed
				} else {
					s.next = 0
				}
				s.whole = i.State.Msgs == 0 || i.State.FirstSeq > s.next
				return nil
			}
			var v stored
			if json.Unmarshal(e.Value(), &v) != nil || !v.Number.Valid() || protocol.FactsKey(v.Site, v.Number) != e.Key() || clean(&v.Inventory.Inventory) != nil {
				continue // the next message puts it right
			}
			doc, err := json.Marshal(v.Inventory.Inventory)
			if err != nil {
				continue
			}
			s.facts[v.Number] = &present{site: v.Site, number: v.Number, boot: v.BootID, seq: v.Sequence, received: v.Received, stream: v.Stream, doc: doc}
			s.written[v.Number] = len(e.Value())
			s.next = max(s.next, v.Stream)
		}
	}
}

// Run follows the stream until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	defer s.watchers.End()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.write(ctx); return nil })
	g.Go(func() error { s.sweep(ctx); return nil })
	g.Go(func() error { s.follow(ctx); return nil })
	g.Go(func() error { s.trim(ctx); return nil })
	return g.Wait()
}

// follow takes messages until ctx ends. Facts are no reason to end a hub: while none come,
// the last ones stay.
func (s *Store) follow(ctx context.Context) {
	facts.Follow(ctx, s.stream, func() uint64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.next
	}, s.take, func(err error) {
		s.cfg.Log.Warn().Err(err).Msg("inventory is not followed, trying again until it is")
	})
}

// take folds one message in.
func (s *Store) take(m facts.Message) {
	o := m.Origin
	s.weigh(m)
	if o.Kind == protocol.FactIncident || o.Kind == protocol.FactSwitches { // hub/facts/incident's and switches'
		s.mu.Lock()
		s.next = max(s.next, m.Stream)
		s.mu.Unlock()
		return
	}
	if m.Err != nil {
		s.mu.Lock()
		s.next = max(s.next, m.Stream)
		s.mu.Unlock()
		s.drop(m, m.Err)
		return
	}
	name, live := s.cfg.Node(o.Node)
	s.mu.Lock()
	s.next = max(s.next, m.Stream)
	if !live {
		s.mu.Unlock()
		s.count(resultStranger, m.Stream)
		return
	}
	was := s.facts[o.Node]
	s.mu.Unlock()
	now, v, err := fold(was, o, m.Data, m.Stream, m.Received) // take alone changes facts, but for sweep
	if err != nil {
		s.drop(m, err)
		if o.Kind == protocol.FactDelta {
			s.ask(o.Node)
		}
		return
	}
	switch v {
	case old:
		s.count(resultRepeated, m.Stream)
		return
	case gap:
		s.count(resultGap, m.Stream)
		s.ask(o.Node)
		return
	}
	s.count(resultTaken, m.Stream)
	s.mu.Lock()
	s.facts[o.Node] = now
	if at := time.Now().Add(settle); len(now.doc) > long && !s.dirty[o.Node] && s.rewrite[o.Node].Before(at) {
		s.rewrite[o.Node] = at
	}
	s.dirty[o.Node] = true
	s.mu.Unlock()
	s.notices.Mark(o.Node)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	if !s.watchers.Any() {
		return
	}
	inv := now.inventory()
	c := api.InventoryChange{Node: name, Site: o.Site, Number: o.Node, Time: inv.Time, Received: m.Received, Sequence: inv.Sequence, Lines: []string{}}
	if was == nil {
		c.Lines = append(c.Lines, "first facts")
	} else if c.Changes = changed(was.doc, now.doc); c.Changes != nil {
		c.Lines = append(c.Lines, describe(was.inventory(), inv)...)
	}
	s.watchers.Tell(c)
}

// drop counts a message that makes no sense.
func (s *Store) drop(m facts.Message, err error) {
	if m.Stream <= s.seen {
		return
	}
	s.count(resultMalformed, m.Stream)
	name := ""
	s.mu.Lock()
	s.dropped++
	first := s.dropped%1000 == 1 // and then not every one of a flood
	if o := m.Origin; o.Node != 0 {
		if n, live := s.cfg.Node(o.Node); live {
			name = n
			b := s.bad[o.Node]
			first = first || b.Count == 0
			s.bad[o.Node] = api.DroppedInventory{Count: b.Count + 1, Last: m.Received, Why: firstLine(err)}
			s.drops.Mark(o.Node)
		}
	}
	s.mu.Unlock()
	if first {
		s.cfg.Events.Add(event.InventoryBad, name, fmt.Sprintf("%.120s: %v", m.Subject, err))
		s.cfg.Log.Warn().Err(err).Str("nats_subject", m.Subject).Msg("inventory dropped")
	}
}

// ask asks a node for a snapshot, now and then.
func (s *Store) ask(n protocol.NodeNumber) {
	now := time.Now()
	s.mu.Lock()
	again := now.Sub(s.asked[n]) >= askEvery
	if again {
		s.asked[n] = now
	}
	s.mu.Unlock()
	if !again {
		return
	}
	s.cfg.Log.Debug().Uint32("number", uint32(n)).Msg("inventory has a gap, asking for a snapshot")
	if err := s.cfg.Conn.Publish(protocol.AskSubject(n), nil); err != nil {
		s.cfg.Log.Warn().Err(err).Msg("snapshot not asked for")
	}
}

// write puts what changed into the bucket until ctx ends, and once more then.
func (s *Store) write(ctx context.Context) {
	var later <-chan time.Time // some wait
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			s.flush(last, time.Time{})
			cancel()
			return
		case <-s.wake:
		case <-later:
		}
		if later = nil; s.flush(ctx, time.Now()) {
			later = time.After(writeSpacing)
		}
		select {
		case <-ctx.Done():
		case <-time.After(writeSpacing):
		}
	}
}

// flush writes what may be written at now, the zero time is always, and reports whether some waits.
func (s *Store) flush(ctx context.Context, now time.Time) (waits bool) {
	s.mu.Lock()
	var dirty []protocol.NodeNumber
	for n := range s.dirty {
		if now.IsZero() || !now.Before(s.rewrite[n]) {
			dirty = append(dirty, n)
			delete(s.dirty, n)
		}
	}
	waits = len(s.dirty) > 0
	s.mu.Unlock()
	for i, n := range dirty {
		f, ok := s.Get(n)
		name, live := s.cfg.Node(n)
		if !ok || !live {
			continue
		}
		b, err := json.Marshal(stored{Inventory: api.Inventory{Node: name, Site: f.Site, Number: n, Received: f.Received, Inventory: f.Inventory}, Stream: f.stream})
		full := s.room(n, len(b))
		if err == nil && full == nil {
			_, err = s.bucket.Put(ctx, protocol.FactsKey(f.Site, n), b)
		}
		s.mu.Lock()
		s.rewrite[n] = now.Add(time.Duration(len(b)) * time.Second / writeRate)
		if err != nil {
			for _, n := range dirty[i:] {
				s.dirty[n] = true // with the next change
			}
		}
		s.mu.Unlock()
		if err = cmp.Or(err, full); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn().Err(err).Str("node", name).Msg("facts not written to the bucket")
		}
		if err != nil && full == nil {
			break
		}
	}
	return waits
}

// room notes that the facts of node n take so many bytes of the bucket; an error says that there is
// no room for them. A cluster sees to that by itself.
func (s *Store) room(n protocol.NodeNumber, bytes int) error {
	if !s.cfg.Inside {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := int64(bytes)
	for of, b := range s.written {
		if of != n {
			sum += int64(b)
		}
	}
	if sum > s.bucketBound() {
		return fmt.Errorf("all nodes' facts together would take %d MiB, and %d may be", sum>>20, s.bucketBound()>>20)
	}
	s.written[n] = bytes
	return nil
}

// sweep forgets nodes that are none any more.
func (s *Store) sweep(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		var gone []string
		s.mu.Lock()
		for n, f := range s.facts {
			if _, live := s.cfg.Node(n); !live {
				gone = append(gone, protocol.FactsKey(f.site, n))
				delete(s.facts, n)
				delete(s.bad, n)
				delete(s.asked, n)
				delete(s.written, n)
				delete(s.rewrite, n)
				s.notices.Mark(n)
				s.drops.Mark(n)
			}
		}
		for n := range s.histories {
			if _, live := s.cfg.Node(n); !live {
				delete(s.histories, n)
			}
		}
		s.mu.Unlock()
		for _, k := range gone {
			if err := s.bucket.Purge(ctx, k); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) && ctx.Err() == nil {
				s.cfg.Log.Warn().Err(err).Str("bucket_key", k).Msg("facts of a node that is gone stay in the bucket")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Facts are a node's facts and when the hub's server stored them.
type Facts struct {
	Site     string
	Number   protocol.NodeNumber
	Received time.Time
	stream   uint64
	protocol.Inventory
}

// Get returns the facts of node n.
func (s *Store) Get(n protocol.NodeNumber) (Facts, bool) {
	s.mu.Lock()
	f, ok := s.facts[n]
	s.mu.Unlock()
	if !ok {
		return Facts{}, false
	}
	return Facts{Site: f.site, Number: n, Received: f.received, stream: f.stream, Inventory: f.inventory()}, true
}

// DroppedOf tells of the messages of node n that made no sense.
func (s *Store) DroppedOf(n protocol.NodeNumber) (api.DroppedInventory, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.bad[n]
	return b, ok
}

// Dropped counts the messages that made no sense.
func (s *Store) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}
