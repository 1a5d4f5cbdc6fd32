package session

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel/mux"
)

// Limits of connections to the bulk port. A node's door for them is as that of control
// connections (unproven.go), and apart from it.
const (
	maxBulkNode = 8                // of one node that are asked for or open
	bulkWait    = 10 * time.Second // for the agent to open one
)

// ErrBulkFull says that a node has as many bulk connections as it may.
var ErrBulkFull = fmt.Errorf("%d long answers of this node are under way, no more at once; try again when one has ended", maxBulkNode)

// bulk is what is known of connections to the bulk port.
type bulk struct {
	door door

	mu    sync.Mutex
	open  map[protocol.NodeNumber]int // asked for or open
	asked map[string]*bulkAsked       // by nonce
}

// bulkAsked is a connection that an agent was asked for.
type bulkAsked struct {
	node      protocol.NodeNumber
	challenge protocol.Challenge
	came      chan net.Conn // takes one
}

// Bulk is as Debug, for an answer that may be long: it takes a connection of its own, and waits
// there for whoever reads it, not on the way of netmaps. An agent of the version before has
// no such thing, and gets a debug stream. It fails with ErrOffline or ErrBulkFull, and where the agent does not come.
func (s *Server) Bulk(ctx context.Context, n protocol.NodeNumber) (net.Conn, error) {
	ses, features := s.sessionOf(n)
	switch {
	case ses == nil:
		return nil, ErrOffline
	case !ses.known.Proven || !slices.Contains(features, protocol.FeatureBulk):
		return ses.mux.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamDebug})
	case !s.bulk.enter(n):
		return nil, ErrBulkFull
	}
	c, err := s.askBulk(ctx, ses)
	if err != nil {
		s.bulk.leave(n)
		return nil, err
	}
	b := &bulkConn{Conn: c, done: make(chan struct{}), left: func() { s.bulk.leave(n) }}
	go b.endWith(ses.mux)
	return b, nil
}

// askBulk asks the agent of ses for a connection and waits for it.
func (s *Server) askBulk(ctx context.Context, ses *session) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, bulkWait)
	defer cancel()
	a := &bulkAsked{node: ses.node, challenge: protocol.Challenge{Nonce: make([]byte, protocol.ChallengeNonce), Hub: s.cfg.Number, Boot: s.boot}, came: make(chan net.Conn, 1)}
	rand.Read(a.challenge.Nonce)
	s.bulk.ask(a)
	err := ses.send(protocol.KindBulk, a.challenge)
	if err == nil {
		select {
		case c := <-a.came:
			return c, nil
		case <-ses.mux.Done():
			err = ErrOffline
		case <-ctx.Done():
			err = fmt.Errorf("its agent opened no connection to port %d of the hub's overlay address: %w", protocol.BulkPort, ctx.Err())
		}
	}
	if !s.bulk.forget(a) { // it came meanwhile
		abort(<-a.came)
	}
	return nil, err
}

// ServeBulk accepts connections to the bulk port on l, which it closes, until ctx ends.
func (s *Server) ServeBulk(ctx context.Context, l net.Listener) error {
	return acceptAll(ctx, l, "bulk", s.serveBulk)
}

// serveBulk gives c to whoever asked for it, if it proves to be that; all else it closes.
func (s *Server) serveBulk(ctx context.Context, c net.Conn) {
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		abort(c)
		return
	}
	node, ok := s.cfg.Store.State().NodeByOverlay(from.Addr())
	if !ok {
		abort(c)
		return
	}
	k := s.bulk.door.knock(node.Number, c)
	stop := context.AfterFunc(ctx, func() { abort(c) })
	defer stop()
	c.SetReadDeadline(time.Now().Add(unprovenTimeout))
	var p protocol.BulkProof
	err = protocol.ReadFrame(&endNoted{Conn: c, knock: k}, &p, protocol.MaxProof)
	if waited := k.end(); err != nil || !waited || ctx.Err() != nil || !s.bulk.take(node, p, c) {
		abort(c)
	}
}

// enter counts one more of node n, if there may be.
func (b *bulk) enter(n protocol.NodeNumber) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open[n] >= maxBulkNode {
		return false
	}
	if b.open == nil {
		b.open = map[protocol.NodeNumber]int{}
	}
	b.open[n]++
	return true
}

func (b *bulk) leave(n protocol.NodeNumber) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open[n]--; b.open[n] == 0 {
		delete(b.open, n)
	}
}

func (b *bulk) ask(a *bulkAsked) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.asked == nil {
		b.asked = map[string]*bulkAsked{}
	}
	b.asked[string(a.challenge.Nonce)] = a
}

// forget takes a back. It reports whether nothing came of it.
func (b *bulk) forget(a *bulkAsked) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	nonce := string(a.challenge.Nonce)
	_, ok := b.asked[nonce]
	delete(b.asked, nonce)
	return ok
}

// take hands c, of node, to who waits for it: each challenge is good once.
func (b *bulk) take(node state.Node, p protocol.BulkProof, c net.Conn) bool {
	b.mu.Lock()
	a := b.asked[string(p.Nonce)]
	b.mu.Unlock()
	if a == nil || a.node != node.Number || !p.Proves(a.challenge, node.Number, node.IdentityKey) {
		return false
	}
	c.SetReadDeadline(time.Time{})
	if b.forget(a) {
		a.came <- c
		return true
	}
	return false
}

// bulkConn is a connection that ends with the session in which it was asked for.
type bulkConn struct {
	net.Conn
	once sync.Once
	done chan struct{}
	left func()
}

func (b *bulkConn) endWith(m *mux.Session) {
	select {
	case <-m.Done():
		b.Close()
	case <-b.done:
	}
}

// Close ends it at once: what the agent has sent, or would, is of no use to anybody any more.
func (b *bulkConn) Close() error {
	err := net.ErrClosed
	b.once.Do(func() {
		close(b.done)
		abort(b.Conn)
		b.left()
		err = nil
	})
	return err
}
