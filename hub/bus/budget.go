package bus

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"causeway/protocol"
)

// Budget is what one node may send over NATS, over all its streams together. What is beyond
// it waits at the agent: nothing of it is read.
type Budget struct {
	Lines       int // of the protocol in a second, in the long run: each message is one
	LinesAtOnce int
	Bytes       int // of lines and payloads in a second, in the long run
	BytesAtOnce int // at least the largest payload
}

// NodeBudget lets what waits at an agent after an outage (1000 messages or 4 MiB) through in
// a quarter of a minute, and the largest snapshot every 4 s.
var NodeBudget = Budget{Lines: 50, LinesAtOnce: 200, Bytes: 256 << 10, BytesAtOnce: maxPayload + maxLine}

// Bounds of what one node may have open. An agent has one stream and two subscriptions; a
// second stream is there while the hub does not know yet that the first has ended.
const (
	nodeStreams = 2 // the oldest is closed for one that is too many
	nodeSubs    = 8 // of one stream
	// spentNodes is how many nodes' budgets are kept beyond those that are connected:
	// whoever comes back goes on with what he had left.
	spentNodes = 1024
)

// What the filter counts.
const (
	RefusedSubject = "subject"       // a publish to a subject that is not one of the node's five
	RefusedSubs    = "subscriptions" // more than nodeSubs
	RefusedStream  = "streams"       // more than nodeStreams: the oldest was closed
	RefusedLine    = "protocol"      // what no client may say; it ends the stream
	RefusedSlow    = "slow"          // a client that does not take what is sent to it
)

func newRefused() *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_hub_nats_refused_total", Help: "What nodes and readers asked of NATS beyond what they may, by reason."}, []string{"reason"})
	for _, r := range []string{RefusedSubject, RefusedSubs, RefusedStream, RefusedLine, RefusedSlow} {
		v.WithLabelValues(r)
	}
	return v
}

// Metrics counts what was refused.
func (s *Server) Metrics() prometheus.Collector { return s.refused }

// purse is what a node has left of its budget.
type purse struct {
	lines, bytes *rate.Limiter
	streams      []*stream // that are open, the oldest first; Server.mu guards it
}

type stream struct{ end func() }

// full reports whether nothing of the budget is spent.
func (p *purse) full(b Budget) bool {
	return p.lines.Tokens() >= float64(b.LinesAtOnce) && p.bytes.Tokens() >= float64(b.BytesAtOnce)
}

// pay waits until n bytes of a line and its payload are within the budget.
func (p *purse) pay(ctx context.Context, n int) error {
	if err := p.lines.Wait(ctx); err != nil {
		return err
	}
	return p.bytes.WaitN(ctx, min(n, p.bytes.Burst()))
}

// enter counts a stream of node n, which end closes; leave ends that.
func (s *Server) enter(n protocol.NodeNumber, end func()) (p *purse, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.purses) >= s.connected+spentNodes {
		for k, p := range s.purses {
			if len(p.streams) == 0 && p.full(s.budget) {
				delete(s.purses, k)
			}
		}
	}
	p = s.purses[n]
	if p == nil {
		p = &purse{lines: rate.NewLimiter(rate.Limit(s.budget.Lines), s.budget.LinesAtOnce), bytes: rate.NewLimiter(rate.Limit(s.budget.Bytes), s.budget.BytesAtOnce)}
		s.purses[n] = p
	}
	if len(p.streams) == 0 {
		s.connected++
	}
	st := &stream{end}
	if p.streams = append(p.streams, st); len(p.streams) > nodeStreams {
		s.refused.WithLabelValues(RefusedStream).Inc()
		go p.streams[0].end() // a node that does not read makes that wait, and nobody else
		p.streams = p.streams[1:]
	}
	return p, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		was := len(p.streams)
		if p.streams = slices.DeleteFunc(p.streams, func(x *stream) bool { return x == st }); was > 0 && len(p.streams) == 0 {
			s.connected--
		}
	})
}

// agentSubjects are those that node n of site may publish to.
func agentSubjects(site string, n protocol.NodeNumber) []string {
	return []string{protocol.InventorySubject(site, n), protocol.DeltaSubject(site, n), protocol.IncidentSubject(site, n), protocol.SwitchesSubject(site, n), protocol.FlowSubject(site, n)}
}

// subscriptions counts those of one stream that the server's permissions let through.
type subscriptions struct {
	inbox, ask string
	ids        map[string]bool // the client's
}

// note notes a SUB or UNSUB of words f. One that ends by a count stays until the stream ends.
func (s *subscriptions) note(f []string) error {
	switch {
	case f[0] == "UNSUB" && len(f) == 2:
		delete(s.ids, f[1])
	case f[0] == "SUB" && len(f) >= 3 && (f[1] == s.ask || strings.HasPrefix(f[1], s.inbox)):
		if s.ids[f[len(f)-1]] = true; len(s.ids) > nodeSubs {
			return fmt.Errorf("%w: more than %d subscriptions", ErrProtocol, nodeSubs)
		}
	}
	return nil
}

func budgetOf(b Budget) Budget { return cmp.Or(b, NodeBudget) }
