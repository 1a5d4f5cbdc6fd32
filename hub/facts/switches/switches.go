// Package switches keeps which services nodes moved between sites, and why, as their agents tell it over NATS: the newest of each
// node. They lie in the inventory's stream, where each node has its share, and are read from there anew at each start. Whose they
// are says the subject.
package switches

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/hub/api"
	"causeway/hub/facts"
	"causeway/hub/facts/event"
	"causeway/hub/follow"
	"causeway/hub/notice"
	"causeway/protocol"
)

// Bounds of what is kept.
const (
	perNode = 256
	overall = 20_000 // of all nodes
	recent  = 1000   // news, for whoever watches
)

// Config configures a Store.
type Config struct {
	JetStream jetstream.JetStream // of the inventory's stream
	// Node returns the name of a node, and false if it is none of the cluster any more.
	Node   func(protocol.NodeNumber) (name string, live bool)
	Events *event.Log
	Log    zerolog.Logger
}

// Store holds the switches. Its methods may be called concurrently.
type Store struct {
	cfg     Config
	notices notice.Board[uint64]

	mu      sync.Mutex
	nodes   map[protocol.NodeNumber]*node
	list    []entry // of all nodes, in the order in which they came
	next    uint64  // in the stream
	old     uint64  // what comes up to here was there before the start
	seq     uint64
	left    uint64
	dropped uint64
}

// node is what is known of one.
type node struct {
	boot protocol.BootID
	last uint64 // number of the boot
	kept int
}

type entry struct {
	seq    uint64
	number protocol.NodeNumber
	site   string
	protocol.ServiceSwitch
}

// New opens nothing.
func New(cfg Config) *Store {
	return &Store{cfg: cfg, nodes: map[protocol.NodeNumber]*node{}}
}

// Notices has wake hear of news.
func (s *Store) Notices(wake chan<- struct{}) *notice.Reader[uint64] { return s.notices.Join(wake) }

// Run follows the inventory's stream, from its beginning on, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	failed := func(err error) { s.cfg.Log.Warn().Err(err).Msg("switches of services are not followed") }
	var st jetstream.Stream
	if !follow.Until(ctx, func() (err error) {
		st, err = s.cfg.JetStream.Stream(ctx, protocol.InventoryStream)
		return err
	}, failed) {
		return nil
	}
	s.mu.Lock()
	s.old = st.CachedInfo().State.LastSeq
	s.mu.Unlock()
	facts.Follow(ctx, st, func() uint64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.next
	}, s.take, failed, protocol.SubjectSwitches)
	return nil
}

// take takes one report.
func (s *Store) take(m facts.Message) {
	site, n, r, err := decode(m)
	name, live := s.cfg.Node(n)
	s.mu.Lock()
	fresh := m.Stream > s.old
	if m.Stream <= s.next { // it comes twice
		s.mu.Unlock()
		return
	}
	s.next = m.Stream
	if err != nil {
		s.dropped++
		tell := fresh && s.dropped%1000 == 1 // of a flood not every one
		s.mu.Unlock()
		if tell {
			s.cfg.Events.Add(event.InventoryBad, name, fmt.Sprintf("%.120s: %v", m.Subject, err))
			s.cfg.Log.Warn().Err(err).Str("nats_subject", m.Subject).Msg("switches dropped")
		}
		return
	}
	var news []protocol.ServiceSwitch
	if live {
		news = s.put(n, site, r)
	}
	s.mu.Unlock()
	if len(news) == 0 {
		return
	}
	s.notices.Mark(0)
	if fresh {
		s.cfg.Events.Add(event.ServiceSwitched, name, eventText(news))
	}
}

// eventText is one event of what a node moved together.
func eventText(l []protocol.ServiceSwitch) string {
	x := l[0]
	text := fmt.Sprintf("service %s: %s to %s, %s", x.Service, sites(x.From), sites(x.To), x.Why)
	if x.Why == protocol.SwitchDead {
		text = fmt.Sprintf("service %s: site %s is dead, %d connections reset", x.Service, x.Site, x.Reset)
	}
	if x.Gap > 0 {
		text += fmt.Sprintf(" (%s after the last answer)", x.Gap)
	}
	if len(l) > 1 {
		text += fmt.Sprintf("; and %d more: causeway service events", len(l)-1)
	}
	return protocol.OneLine(text, 512)
}

func sites(l []string) string {
	if len(l) == 0 {
		return "nobody"
	}
	return strings.Join(l, ", ")
}

// decode reads a report. Every byte of it is a stranger's.
func decode(m facts.Message) (site string, n protocol.NodeNumber, r protocol.SwitchReport, err error) {
	if m.Err != nil || m.Origin.Kind != protocol.FactSwitches {
		return "", 0, r, errors.New("no subject of switches")
	}
	site, n = m.Origin.Site, m.Origin.Node
	if len(m.Data) > protocol.MaxSwitchReport {
		return site, n, r, errors.New("report too long")
	}
	if json.Unmarshal(m.Data, &r) != nil {
		return site, n, r, errors.New("not the JSON of a report of switches")
	}
	return site, n, r, r.Clean()
}

// put takes what is new of a report. s.mu is held.
func (s *Store) put(n protocol.NodeNumber, site string, r protocol.SwitchReport) (news []protocol.ServiceSwitch) {
	x := s.nodes[n]
	if x == nil {
		x = &node{}
		s.nodes[n] = x
	}
	if x.boot != r.BootID {
		x.boot, x.last = r.BootID, 0
	}
	for _, w := range r.Switches {
		if w.Number <= x.last {
			continue
		}
		x.last = w.Number
		s.seq++
		s.list = append(s.list, entry{s.seq, n, site, w})
		x.kept++
		news = append(news, w)
	}
	if len(news) > 0 {
		s.left += r.LeftOut
	}
	if over := x.kept - perNode; over > 0 {
		s.list = slices.DeleteFunc(s.list, func(e entry) bool {
			if e.number != n || over == 0 {
				return false
			}
			over--
			x.kept--
			return true
		})
	}
	if over := len(s.list) - overall; over > 0 {
		for _, e := range s.list[:over] {
			s.nodes[e.number].kept--
		}
		s.list = slices.Clone(s.list[over:])
	}
	return news
}

// List returns switches that match, those that came last at the end, at most limit.
func (s *Store) List(q api.ServiceEventQuery) []api.ServiceEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []api.ServiceEvent{}
	limit := q.Limit
	if limit <= 0 {
		limit = overall
	}
	for _, e := range slices.Backward(s.list) {
		if len(out) == limit {
			break
		}
		name, live := s.cfg.Node(e.number)
		if x := (api.ServiceEvent{Sequence: e.seq, Node: name, NodeSite: e.site, ServiceSwitch: e.ServiceSwitch}); live && q.Matches(x) {
			out = append(out, x)
		}
	}
	slices.Reverse(out)
	return out
}

// News are the last ones, oldest first.
func (s *Store) News() []api.ServiceEvent { return s.List(api.ServiceEventQuery{Limit: recent}) }
