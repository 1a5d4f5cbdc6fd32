// Package incident keeps what went wrong on nodes, as their agents tell it over NATS:
// the newest incidents of every node, in the form of their last revision. They come by the
// inventory's stream, and are kept in one of their own, where each node has its share: what
// nodes tell of their facts pushes nobody's incidents out. Whose they are says the subject.
package incident

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/hub/api"
	"causeway/hub/facts"
	"causeway/hub/facts/event"
	"causeway/hub/follow"
	"causeway/protocol"
)

const (
	// perNode is how many are kept of each node.
	perNode = 64
	// keptMessages are those of each node: revisions of one incident take a place each.
	keptMessages = 2 * perNode
	maxKept      = 2 * protocol.MaxIncident
	maxBytes     = 256 << 20
	maxAge       = 365 * 24 * time.Hour
	keepTimeout  = 5 * time.Second
)

// Config configures a Store.
type Config struct {
	JetStream jetstream.JetStream // of the inventory's stream and the incidents' own
	// Node returns the name of a node, and false if it is none of the cluster any more.
	Node   func(protocol.NodeNumber) (name string, live bool)
	Events *event.Log
	Log    zerolog.Logger
}

// Store holds the incidents. Its methods may be called concurrently.
type Store struct {
	cfg Config
	own jetstream.Stream // of what is kept; nil: not opened yet

	mu      sync.Mutex
	nodes   map[protocol.NodeNumber][]kept // by number of the incident
	next    uint64                         // in the stream
	old     uint64                         // what comes up to here was there before the start
	dropped uint64
}

type kept struct {
	site     string
	received time.Time
	protocol.Incident
}

// keptMessage is a message of the stream of what is kept.
type keptMessage struct {
	Site     string              `json:"site"`
	Node     protocol.NodeNumber `json:"number"`
	Received time.Time           `json:"received"`
	Incident protocol.Incident   `json:"incident"`
}

// New opens nothing.
func New(cfg Config) *Store {
	return &Store{cfg: cfg, nodes: map[protocol.NodeNumber][]kept{}}
}

// Run reads what is kept and follows the inventory's stream, from its beginning on, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var st jetstream.Stream
	if !follow.Until(ctx, func() error {
		err := s.Open(ctx)
		if err == nil {
			err = s.load(ctx)
		}
		if err == nil {
			st, err = s.cfg.JetStream.Stream(ctx, protocol.InventoryStream)
		}
		return err
	}, func(err error) {
		s.cfg.Log.Warn().Err(err).Dur("retry_in", follow.Retry).Msg("incidents are not followed")
	}) {
		return nil
	}
	s.mu.Lock()
	s.old = st.CachedInfo().State.LastSeq
	s.mu.Unlock()
	facts.Follow(ctx, st, func() uint64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.next
	}, func(m facts.Message) {
		if n, k, news := s.take(m); news {
			s.keep(ctx, n, k)
		}
	}, func(err error) {
		s.cfg.Log.Warn().Err(err).Msg("incidents are not followed")
	}, protocol.SubjectIncidents)
	return nil
}

// Open makes the stream of what is kept, or brings its limits up to date; Run does it where it was
// not done.
func (s *Store) Open(ctx context.Context) (err error) {
	if s.own != nil {
		return nil
	}
	s.own, err = s.cfg.JetStream.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: protocol.IncidentStream, Description: "nodes' incidents", Subjects: []string{protocol.SubjectKeptAll}, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardOld, MaxMsgsPerSubject: keptMessages, MaxMsgSize: maxKept, MaxBytes: maxBytes, MaxAge: maxAge, AllowDirect: true,
	})
	if err != nil {
		return fmt.Errorf("open the stream of incidents: %w", err)
	}
	return nil
}

// load reads what is kept.
func (s *Store) load(ctx context.Context) error {
	st := s.own
	end := st.CachedInfo().State.LastSeq
	if st.CachedInfo().State.Msgs == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failed error
	read := uint64(0)
	follow.Stream(ctx, st, func() uint64 { return read }, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		var k keptMessage
		if json.Unmarshal(m.Data(), &k) == nil && protocol.KeptIncidentSubject(k.Site, k.Node) == m.Subject() && k.Incident.Clean() == nil {
			s.put(k.Site, k.Node, k.Incident, k.Received)
		}
		if read = meta.Sequence.Stream; read >= end {
			cancel()
		}
	}, func(err error) { failed = err; cancel() })
	return failed
}

// keep stores an incident where its node's facts do not push it out.
func (s *Store) keep(ctx context.Context, n protocol.NodeNumber, k kept) {
	b, err := json.Marshal(keptMessage{k.site, n, k.received, k.Incident})
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, keepTimeout)
		defer cancel()
		_, err = s.cfg.JetStream.Publish(ctx, protocol.KeptIncidentSubject(k.site, n), b, jetstream.WithMsgID(fmt.Sprintf("%d-%d-%d", n, k.Number, k.Revision)))
	}
	if err != nil && ctx.Err() == nil { // it comes again from the inventory's stream after a start
		s.cfg.Log.Warn().Err(err).Uint32("number", uint32(n)).Msg("incident not kept")
	}
}

// take takes one message; news: it says what was not known.
func (s *Store) take(m facts.Message) (n protocol.NodeNumber, k kept, news bool) {
	site, number, i, err := decode(m)
	name, live := s.cfg.Node(number)
	s.mu.Lock()
	s.next = max(s.next, m.Stream)
	fresh := m.Stream > s.old
	if err != nil {
		s.dropped++
	}
	first := s.dropped%1000 == 1 // of a flood not every one
	s.mu.Unlock()
	if err != nil {
		if first && fresh {
			s.cfg.Events.Add(event.InventoryBad, name, fmt.Sprintf("%.120s: %v", m.Subject, err))
			s.cfg.Log.Warn().Err(err).Str("nats_subject", m.Subject).Msg("incident dropped")
		}
		return 0, kept{}, false
	}
	if !live {
		return 0, kept{}, false
	}
	was, news := s.put(site, number, i, m.Received)
	n, k = number, kept{site, m.Received, i}
	if !news || !fresh || was != nil && was.State == i.State || was != nil && i.State != protocol.IncidentStopped {
		return n, k, news
	}
	s.cfg.Events.Add(event.Incident, name, protocol.OneLine(fmt.Sprintf("%s %s: %s; %s", id(number, i.Number), i.Subject, i.Reason, i.Action), 2*protocol.MaxIncidentText))
	return n, k, news
}

// put keeps i unless it is known in a later form; was is what was known of it.
func (s *Store) put(site string, n protocol.NodeNumber, i protocol.Incident, received time.Time) (was *protocol.Incident, news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.nodes[n]
	at, known := slices.BinarySearchFunc(l, i.Number, func(k kept, want uint64) int {
		switch {
		case k.Number < want:
			return -1
		case k.Number > want:
			return 1
		}
		return 0
	})
	k := kept{site, received, i}
	if known {
		old := l[at].Incident
		// A node that lost its list begins to count anew.
		if another := !i.Since.Equal(old.Since); i.Revision <= old.Revision && !another || another && i.Since.Before(old.Since) {
			return nil, false
		} else if another {
			l[at] = k
			return nil, true
		}
		l[at] = k
		return &old, true
	}
	if len(l) >= perNode && at == 0 {
		return nil, false // older than all that are kept
	}
	if l = slices.Insert(l, at, k); len(l) > perNode {
		l = slices.Delete(l, 0, 1)
	}
	s.nodes[n] = l
	return nil, true
}

var errSubject = errors.New("no subject of an incident")

// decode reads a message. Every byte of it is a stranger's.
func decode(m facts.Message) (site string, n protocol.NodeNumber, i protocol.Incident, err error) {
	if m.Err != nil || m.Origin.Kind != protocol.FactIncident {
		return "", 0, i, errSubject
	}
	site, n = m.Origin.Site, m.Origin.Node
	if len(m.Data) > protocol.MaxIncident {
		return site, n, i, errors.New("incident too long")
	}
	if json.Unmarshal(m.Data, &i) != nil {
		return site, n, i, errors.New("not the JSON of an incident")
	}
	return site, n, i, i.Clean()
}

// id names an incident in the cluster.
func id(n protocol.NodeNumber, incident uint64) string { return fmt.Sprintf("%d-%d", n, incident) }

// Filter says which incidents are wanted; zero values want all.
type Filter struct {
	Node, Site string
	Since      time.Time // those that lasted or began then or later
}

// List returns incidents, those that began last first.
func (s *Store) List(f Filter) []api.Incident {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []api.Incident{}
	for n, l := range s.nodes {
		name, live := s.cfg.Node(n)
		if !live {
			delete(s.nodes, n)
			continue
		}
		if f.Node != "" && name != f.Node {
			continue
		}
		for _, k := range l {
			if f.Site != "" && k.site != f.Site || !k.Until.IsZero() && k.Until.Before(f.Since) {
				continue
			}
			out = append(out, api.Incident{ID: id(n, k.Number), Node: name, Site: k.site, Received: k.received, Incident: k.Incident})
		}
	}
	slices.SortFunc(out, func(a, b api.Incident) int {
		if c := b.Since.Compare(a.Since); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// Get returns an incident by its id.
func (s *Store) Get(want string) (api.Incident, bool) {
	for _, i := range s.List(Filter{}) {
		if i.ID == want {
			return i, true
		}
	}
	return api.Incident{}, false
}

// Dropped counts the messages that made no sense.
func (s *Store) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}
