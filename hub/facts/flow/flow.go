// Package flow keeps what nodes logged of flows, as their agents tell it over NATS: each flow once for each node that saw it,
// with how often and when last. Reports lie in a stream of their own, where each node has its share, and are folded
// from there anew at each start. Whose they are says the subject.
package flow

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"causeway/hub/follow"
	"causeway/hub/notice"
	"causeway/protocol"
)

// Bounds of what is kept.
const (
	perNode = 4096    // flows
	overall = 100_000 // of all nodes
	recent  = 1000    // news, for whoever watches

	keptReports = 1024 // of a node, in the stream
	maxBytes    = 256 << 20
	maxReports  = maxBytes / protocol.MaxFlowReport
	maxAge      = 30 * 24 * time.Hour
)

// Results of a report.
const (
	resultTaken     = "taken"
	resultMalformed = "malformed" // it made no sense, and was dropped
	resultStranger  = "stranger"  // of a node that is none of the cluster any more
)

// Config configures a Store.
type Config struct {
	JetStream jetstream.JetStream // of the stream
	// Inside says that the server is the hub's own. A stream with a bound in bytes reserves them there, and a hub of
	// the version before would find none left for its own.
	Inside bool
	// Node returns the name of a node, and false if it is none of the cluster any more.
	Node func(protocol.NodeNumber) (name string, live bool)
	Log  zerolog.Logger
}

// Entry is a flow that a node saw.
type Entry struct {
	Sequence uint64 // of its last change; no two have the same
	Node     string // its name now
	Site     string // of the node, when it told of it
	protocol.Flow
	number protocol.NodeNumber
}

// key is what flows of a node are told apart by.
type key struct {
	from, to              netip.Addr
	proto                 uint8
	port                  uint16
	rule                  string
	refused, here, midway bool
}

// Store holds the flows. Its methods may be called concurrently.
type Store struct {
	cfg     Config
	stream  jetstream.Stream // nil: not opened yet
	reports *prometheus.CounterVec
	notices notice.Board[uint64]

	mu    sync.Mutex
	nodes map[protocol.NodeNumber]map[key]*Entry
	total int
	seq   uint64
	next  uint64 // in the stream
	old   uint64 // what comes up to here was there before the start
	news  []Entry
	left  uint64
}

// New opens nothing.
func New(cfg Config) *Store {
	s := &Store{cfg: cfg, nodes: map[protocol.NodeNumber]map[key]*Entry{},
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_hub_flow_reports_total", Help: "Reports of nodes on the flows that they log, by what became of them."}, []string{"result"})}
	for _, r := range []string{resultTaken, resultMalformed, resultStranger} {
		s.reports.WithLabelValues(r)
	}
	return s
}

// Metrics counts reports.
func (s *Store) Metrics() prometheus.Collector { return s.reports }

// Notices has wake hear of news of flows.
func (s *Store) Notices(wake chan<- struct{}) *notice.Reader[uint64] { return s.notices.Join(wake) }

// Open makes the stream, or brings its limits up to date; Run does it where it was not done.
func (s *Store) Open(ctx context.Context) (err error) {
	if s.stream != nil {
		return nil
	}
	reserved := int64(maxBytes)
	if s.cfg.Inside {
		reserved = -1
	}
	s.stream, err = s.cfg.JetStream.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: protocol.FlowStream, Description: "flows that nodes log", Subjects: []string{protocol.SubjectFlowsAll}, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardOld, MaxMsgsPerSubject: keptReports, MaxMsgs: maxReports, MaxMsgSize: protocol.MaxFlowReport + 4096, MaxBytes: reserved, MaxAge: maxAge,
		Duplicates: time.Second, // as of the inventory's stream
	})
	if err != nil {
		return fmt.Errorf("open the stream of flows: %w", err)
	}
	return nil
}

// Run follows the stream, from its beginning on, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	if !follow.Until(ctx, func() error { return s.Open(ctx) }, func(err error) {
		s.cfg.Log.Warn().Err(err).Dur("retry_in", follow.Retry).Msg("flows are not followed")
	}) {
		return nil
	}
	s.mu.Lock()
	s.old = s.stream.CachedInfo().State.LastSeq
	s.mu.Unlock()
	follow.Stream(ctx, s.stream, func() uint64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.next
	}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) {
		s.take(m.Subject(), m.Data(), meta.Sequence.Stream)
	}, func(err error) {
		s.cfg.Log.Warn().Err(err).Msg("flows are not followed")
	})
	return nil
}

// take folds one report in.
func (s *Store) take(subject string, data []byte, stream uint64) {
	site, n, r, err := decode(subject, data)
	_, live := s.cfg.Node(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if stream <= s.next { // it comes twice
		return
	}
	s.next = stream
	result := resultTaken
	switch {
	case err != nil:
		result = resultMalformed
	case !live:
		result = resultStranger
	}
	if stream > s.old {
		s.reports.WithLabelValues(result).Inc()
	}
	if result != resultTaken {
		return
	}
	s.left += r.LeftOut
	for _, f := range r.Flows {
		s.put(n, site, f)
	}
	s.notices.Mark(0)
}

// decode reads a report. Every byte of it is a stranger's.
func decode(subject string, data []byte) (site string, n protocol.NodeNumber, r protocol.FlowReport, err error) {
	if site, n, err = protocol.ParseFlowSubject(subject); err != nil {
		return "", 0, r, err
	}
	if len(data) > protocol.MaxFlowReport {
		return site, n, r, errors.New("report too long")
	}
	if json.Unmarshal(data, &r) != nil {
		return site, n, r, errors.New("not the JSON of a report")
	}
	return site, n, r, r.Clean()
}

// put takes a flow. s.mu is held.
func (s *Store) put(n protocol.NodeNumber, site string, f protocol.Flow) {
	k := key{f.From, f.To, f.Proto, f.Port, f.Rule, f.Refused, f.Here, f.Midway}
	l := s.nodes[n]
	if l == nil {
		l = map[key]*Entry{}
		s.nodes[n] = l
	}
	s.seq++
	e := l[k]
	if e == nil {
		if len(l) >= perNode {
			s.forget(l, 1)
		}
		e = &Entry{Flow: f, number: n}
		e.Count = 0
		l[k] = e
		s.total++
	}
	e.Sequence, e.Site = s.seq, site
	e.Count += min(f.Count, 1<<48)
	if f.First.Before(e.First) {
		e.First = f.First
	}
	if f.Last.After(e.Last) {
		e.Last = f.Last
	}
	if s.news = append(s.news, *e); len(s.news) > 2*recent {
		s.news = slices.Clone(s.news[recent:])
	}
	if s.total <= overall {
		return
	}
	// Whoever has most makes room.
	var most map[key]*Entry
	for _, x := range s.nodes {
		if len(x) > len(most) {
			most = x
		}
	}
	s.forget(most, max(1, len(most)/8))
}

// forget drops the flows of a node that were seen longest ago. s.mu is held.
func (s *Store) forget(l map[key]*Entry, n int) {
	keys := make([]key, 0, len(l))
	for k := range l {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(l[a].Last.Compare(l[b].Last), cmp.Compare(l[a].Sequence, l[b].Sequence))
	})
	for _, k := range keys[:n] {
		delete(l, k)
		s.total--
	}
}

// List returns the flows that were seen since a time, those that were seen last at the end. A flow that the node saw where it
// began is not there a second time as the node at its other end saw it.
func (s *Store) List(since time.Time) []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Entry, 0, min(s.total, 1024))
	began := map[key]bool{}
	for n, l := range s.nodes {
		name, live := s.cfg.Node(n)
		if !live {
			s.total -= len(l)
			delete(s.nodes, n)
			continue
		}
		for k, e := range l {
			if e.Last.Before(since) {
				continue
			}
			x := *e
			x.Node = name
			out = append(out, x)
			if k.here {
				began[ends(k)] = true
			}
		}
	}
	out = slices.DeleteFunc(out, func(e Entry) bool {
		return !e.Here && !e.Refused && began[ends(key{from: e.From, to: e.To, proto: e.Proto, port: e.Port})]
	})
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Or(a.Last.Compare(b.Last), cmp.Compare(a.Sequence, b.Sequence)) })
	return out
}

// ends are what is the same of a flow at both ends.
func ends(k key) key {
	return key{from: k.from, to: k.to, proto: k.proto, port: k.port, refused: k.refused}
}

// News are the last changes, each with the flow as it was then, oldest first.
func (s *Store) News() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Clone(s.news[max(0, len(s.news)-recent):])
	for i := range out {
		out[i].Node, _ = s.cfg.Node(out[i].number)
	}
	return out
}

// LeftOut is how many flows were too many for nodes to log, since the oldest report that is kept.
func (s *Store) LeftOut() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}
