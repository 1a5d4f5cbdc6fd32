// Package inventory keeps every node's present facts, as they arrive over
// NATS. Whose facts they are says the subject, under which only that node's
// session may publish.
package inventory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/hub/event"
	"causeway/protocol"
)

// Limits of the stream: a few messages of each node, the oldest first out.
const (
	maxPerSubject = 8
	maxAge        = 30 * 24 * time.Hour
	maxInterfaces = 512
	maxText       = 256
)

// Facts are a node's facts and when the hub's server stored them.
type Facts struct {
	Site     string
	Number   protocol.NodeNumber
	Received time.Time
	protocol.Inventory
}

// Config configures a Store.
type Config struct {
	JetStream jetstream.JetStream // in the agents' account
	MaxBytes  int64
	Events    *event.Log
	Log       zerolog.Logger
}

// Store holds the facts. Its methods may be called concurrently.
type Store struct {
	cfg    Config
	stream jetstream.Stream
	bad    atomic.Uint64

	mu    sync.Mutex
	facts map[protocol.NodeNumber]Facts
}

// Open makes the stream, or brings its limits up to date.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	st, err := cfg.JetStream.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: protocol.InventoryStream, Description: "facts of nodes", Subjects: []string{protocol.SubjectInventoryAll},
		Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
		MaxMsgsPerSubject: maxPerSubject, MaxMsgSize: protocol.MaxInventory + 4096, MaxBytes: cfg.MaxBytes, MaxAge: maxAge,
		// One window for all agents: a short one, lest a guessed message id of another's hides it.
		Duplicates: time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("open the inventory stream: %w", err)
	}
	return &Store{cfg: cfg, stream: st, facts: map[protocol.NodeNumber]Facts{}}, nil
}

// Run follows the stream until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	for {
		err := s.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		// Facts are no reason to end a hub: the last ones stay until the next.
		s.cfg.Log.Warn().Err(err).Dur("retry_in", retryAfter).Msg("inventory is not followed")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryAfter):
		}
	}
}

// retryAfter is how long Run waits before it follows the stream again.
const retryAfter = 2 * time.Second

// follow takes messages until one cannot be had.
func (s *Store) follow(ctx context.Context) error {
	cons, err := s.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy})
	if err != nil {
		return err
	}
	it, err := cons.Messages()
	if err != nil {
		return err
	}
	defer it.Stop()
	for {
		msg, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			continue
		}
		s.take(msg.Subject(), msg.Data(), meta.Timestamp)
	}
}

// take keeps one message's facts, if they are newer than those held.
func (s *Store) take(subject string, data []byte, received time.Time) {
	f, err := decode(subject, data)
	if err != nil {
		if s.bad.Add(1)%1000 == 1 { // the first, and then not every one of a flood
			s.cfg.Events.Add(event.InventoryBad, "", fmt.Sprintf("%.120s: %v", subject, err))
			s.cfg.Log.Warn().Err(err).Str("subject", subject).Msg("inventory dropped")
		}
		return
	}
	f.Received = received
	s.mu.Lock()
	defer s.mu.Unlock()
	s.facts[f.Number] = f
}

// decode reads a message. Site and number come from the subject.
func decode(subject string, data []byte) (Facts, error) {
	rest, ok := strings.CutPrefix(subject, strings.TrimSuffix(protocol.SubjectInventoryAll, ">"))
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != 3 || parts[2] != "snapshot" || !protocol.ValidName(parts[0]) {
		return Facts{}, errors.New("unknown subject")
	}
	n, err := strconv.ParseUint(parts[1], 10, 24)
	if err != nil || !protocol.NodeNumber(n).Valid() {
		return Facts{}, errors.New("no node number in the subject")
	}
	if len(data) > protocol.MaxInventory {
		return Facts{}, errors.New("too long")
	}
	f := Facts{Site: parts[0], Number: protocol.NodeNumber(n)}
	if err := json.Unmarshal(data, &f.Inventory); err != nil {
		return Facts{}, errors.New("not the JSON of an inventory")
	}
	if f.Version < 1 || f.Version > protocol.Version+1 || f.Hostname == "" {
		return Facts{}, errors.New("no version or hostname in it")
	}
	if len(f.Interfaces) > maxInterfaces || len(f.PodCIDRs) > protocol.MaxNodeRoutes || len(f.Labels) > protocol.MaxNodeLabels {
		return Facts{}, errors.New("more interfaces, ranges or labels than a node has")
	}
	for _, t := range []*string{&f.Hostname, &f.OS, &f.Kernel, &f.Arch, &f.CPUModel, &f.AgentVersion, &f.Engine} {
		*t = protocol.OneLine(*t, maxText)
	}
	f.Labels = protocol.OneLineLabels(f.Labels)
	f.Interfaces, f.PodCIDRs = notNil(f.Interfaces), notNil(f.PodCIDRs)
	for i := range f.Interfaces {
		f.Interfaces[i].Addresses = notNil(f.Interfaces[i].Addresses)
		f.Interfaces[i].Name, f.Interfaces[i].MAC = protocol.OneLine(f.Interfaces[i].Name, maxText), protocol.OneLine(f.Interfaces[i].MAC, maxText)
	}
	return f, nil
}

// notNil keeps a list from being null in JSON.
func notNil[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// Get returns the facts of node n.
func (s *Store) Get(n protocol.NodeNumber) (Facts, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.facts[n]
	return f, ok
}

// Dropped counts the messages that made no sense.
func (s *Store) Dropped() uint64 { return s.bad.Load() }
