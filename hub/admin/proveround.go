package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"causeway/hub/state"
	"causeway/protocol"
)

const (
	// proveAtOnce is how many agents are asked at once.
	proveAtOnce = 32
	// proveSettle is how long a packet may take that nothing says will come; proveComes how long one that should.
	proveSettle, proveComes = 250 * time.Millisecond, 2 * time.Second
	// proveAsk bounds what an agent is asked amid a round.
	proveAsk = 5 * time.Second
)

// round is packets that are tried at once, at all agents that these are between.
type round struct {
	p       *prover
	tasks   []*task
	secret  uint32
	watches map[protocol.NodeNumber]*protocol.ProveWatch
	nodes   []state.Node

	mu   sync.Mutex
	sent map[uint32]protocol.ProveSent
	seen map[protocol.NodeNumber]map[uint32]protocol.ProveSeen
	deaf map[protocol.NodeNumber]bool // whose kernel does not count
}

func word() uint32 {
	var b [4]byte
	for {
		rand.Read(b[:])
		if v := binary.BigEndian.Uint32(b[:]); v != 0 {
			return v
		}
	}
}

// round tries some tasks, and judges those of which something is known then.
func (p *prover) round(ctx context.Context, tasks []*task) {
	r := &round{p: p, tasks: tasks, secret: word(), watches: map[protocol.NodeNumber]*protocol.ProveWatch{},
		sent: map[uint32]protocol.ProveSent{}, seen: map[protocol.NodeNumber]map[uint32]protocol.ProveSeen{}, deaf: map[protocol.NodeNumber]bool{}}
	r.prepare()
	ctx, cancel := context.WithTimeout(ctx, protocol.MaxProveTime+proveAsk)
	defer cancel() // which ends what goes on at agents
	if failed := r.each(r.nodes, func(n state.Node) error { return r.watch(ctx, n) }); len(failed) > 0 {
		for n, err := range failed {
			if p.fails[n]++; ctx.Err() == nil && p.fails[n] >= proveTries {
				p.bad[n] = protocol.OneLine(err.Error(), 200)
			}
		}
		return // without them again
	}
	var senders []state.Node
	for _, n := range r.nodes {
		if len(r.watches[n.Number].Send) > 0 {
			senders = append(senders, n)
		}
	}
	failed := r.each(senders, func(n state.Node) error { return r.send(ctx, n) })
	for start := time.Now(); ; {
		lost := r.each(r.nodes, func(n state.Node) error { return r.look(ctx, n) })
		for n, err := range lost {
			failed[n] = err
		}
		took := time.Since(start)
		if len(lost) > 0 || took > proveSettle && (!r.expects() || took > proveComes) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
		if ctx.Err() != nil {
			break
		}
	}
	for _, t := range tasks {
		p.judge(t, r, failed)
	}
}

// prepare makes each packet, and tells each node what it has to do.
func (r *round) prepare() {
	at := func(n state.Node) *protocol.ProveWatch {
		w := r.watches[n.Number]
		if w == nil {
			w = &protocol.ProveWatch{Secret: r.secret}
			r.watches[n.Number] = w
			r.nodes = append(r.nodes, n)
		}
		return w
	}
	used := map[uint32]bool{r.secret: true, r.secret + 1: true}
	token := func() uint32 {
		for {
			if v := word(); !used[v] {
				used[v] = true
				return v
			}
		}
	}
	for _, t := range r.tasks {
		t.packet = protocol.ProvePacket{Token: token(), Behind: token(), Proto: t.Port.Proto, Port: t.Port.First, To: t.to.addrs[0]}
		w := at(t.to.node)
		w.Receive = append(w.Receive, t.packet)
		p := t.packet
		if t.from.own {
			p.From = t.from.addrs[0]
		} else {
			p.Among = t.from.addrs
		}
		w = at(t.from.node)
		w.Send = append(w.Send, p)
	}
}

// each asks some nodes at once, and says which failed.
func (r *round) each(nodes []state.Node, ask func(state.Node) error) map[protocol.NodeNumber]error {
	failed := map[protocol.NodeNumber]error{}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(proveAtOnce)
	for _, n := range nodes {
		g.Go(func() error {
			if err := ask(n); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed[n.Number] = err
			}
			return nil
		})
	}
	g.Wait()
	return failed
}

// watch has a node count, until ctx ends.
func (r *round) watch(ctx context.Context, n state.Node) error {
	b, err := json.Marshal(r.watches[n.Number])
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+protocol.DebugProve, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(protocol.DebugWho, who(ctx))
	resp, err := r.p.s.agentClient(n.Number, protocol.MaxProveTime+proveAsk).Do(req)
	if err != nil {
		return agentError(n.Name, err)
	}
	context.AfterFunc(ctx, func() { resp.Body.Close() })
	if resp.StatusCode == http.StatusNotFound {
		return fmt.Errorf("the agent of node %s is too old for this", n.Name)
	}
	text, err := io.ReadAll(&line{r: io.LimitReader(resp.Body, 4<<10)})
	var ready protocol.ProveReady
	if err != nil || json.Unmarshal(text, &ready) != nil {
		return fmt.Errorf("the answer of node %s makes no sense", n.Name)
	}
	if !ready.Ready {
		return fmt.Errorf("node %s: %s", n.Name, protocol.OneLine(ready.Error, 200))
	}
	return nil
}

// line reads up to the end of a line.
type line struct {
	r    io.Reader
	done bool
}

func (l *line) Read(p []byte) (int, error) {
	if l.done || len(p) == 0 {
		return 0, io.EOF
	}
	n, err := l.r.Read(p[:1])
	l.done = n == 1 && p[0] == '\n'
	return n, err
}

func (r *round) send(ctx context.Context, n state.Node) error {
	var out protocol.ProveSents
	if err := r.p.s.ask(ctx, n, protocol.DebugProveSend, protocol.ProveNow{Secret: r.secret}, &out, proveAsk); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range out.Sent {
		r.sent[x.Token] = x
	}
	return nil
}

func (r *round) look(ctx context.Context, n state.Node) error {
	var out protocol.ProveSeens
	if err := r.p.s.ask(ctx, n, protocol.DebugProveSeen, protocol.ProveNow{Secret: r.secret}, &out, proveAsk); err != nil {
		return err
	}
	l := map[uint32]protocol.ProveSeen{}
	for _, x := range out.Seen {
		l[x.Token] = x
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[n.Number], r.deaf[n.Number] = l, !out.Counts
	return nil
}

// expects reports whether a packet that should come has not come yet.
func (r *round) expects() bool {
	for _, t := range r.tasks {
		s, at := r.sent[t.packet.Token], r.seen[t.to.node.Number][t.packet.Token]
		if t.Open && s.Sent && !at.Passed || !t.Open && s.Behind && s.Peer && !at.BehindCame {
			return true
		}
	}
	return false
}

// judge settles a task, or has it tried once more.
func (p *prover) judge(t *task, r *round, failed map[protocol.NodeNumber]error) {
	s, from, to := r.sent[t.packet.Token], r.seen[t.from.node.Number][t.packet.Token], r.seen[t.to.node.Number][t.packet.Token]
	// Each says what it alone can know: the sender of its kernel, the receiver of its.
	x := protocol.ProofSeen{Forward: s.Forward, Peer: s.Peer, NoRoute: s.NoRoute, Behind: s.Behind, Error: protocol.OneLine(s.Error, 200)}
	x.ProveSeen = protocol.ProveSeen{Token: t.packet.Token, Began: from.Began, Entered: from.Entered, Elsewhere: from.Elsewhere,
		Came: to.Came, Passed: to.Passed, BehindCame: to.BehindCame, BehindPassed: to.BehindPassed}
	err := errors.Join(failed[t.from.node.Number], failed[t.to.node.Number])
	switch {
	case err != nil:
		x.Error = protocol.OneLine(err.Error(), 200)
	case r.deaf[t.from.node.Number] || r.deaf[t.to.node.Number]:
		x.Error = "a kernel does not count what comes out of the tunnel"
	}
	t.pair.Tried = protocol.ProofEnds{FromNode: t.from.node.Name, ToNode: t.to.node.Name, From: s.From.WithZone(""), To: t.packet.To}
	if !t.pair.Tried.From.IsValid() {
		t.pair.Tried.From = t.from.addrs[0]
	}
	t.pair.Seen = x
	t.pair.Result, t.pair.Layer, t.pair.Second, t.pair.Why = t.pair.Judge()
	t.tries++
	t.settled = t.tries >= proveTries || t.pair.Result != protocol.ProofNotTried && t.pair.Result != protocol.ProofLost
	if !t.settled {
		pair := t.pair
		if t.shift++; p.pick(t) != "" {
			t.settled = true
		}
		pair.Tried, t.pair = t.pair.Tried, pair
	}
}
