package session

import (
	"context"
	"fmt"

	"causeway/hub/state"
	"causeway/protocol"
)

// Bounds of what waits for one transaction of hellos, so that the turn of others comes soon.
const (
	maxHellos      = 64
	maxHelloRoutes = 2 * protocol.MaxNodeRoutes
)

// hello is what a node says of itself, on its way into the log.
type hello struct {
	name     string // the node's
	routes   int
	announce func(*state.Draft) error
	answer   chan helloAnswer // takes one
}

type helloAnswer struct {
	state *state.State
	err   error
}

// record stores what a node announces, together with what others announce meanwhile.
func (s *Server) record(ctx context.Context, h hello) (*state.State, error) {
	h.answer = make(chan helloAnswer, 1)
	select {
	case s.hellos <- h:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-h.answer:
		return a.state, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// recordHellos stores hellos until ctx ends. A transaction takes several writes to the disk,
// and transactions come one after the other: when a whole cluster connects for the first
// time, those that wait for the same turn share it.
func (s *Server) recordHellos(ctx context.Context) {
	for {
		var batch []hello
		select {
		case h := <-s.hellos:
			batch = append(batch, h)
		case <-ctx.Done():
			return
		}
		routes := batch[0].routes
		for waiting := true; waiting && len(batch) < maxHellos && routes < maxHelloRoutes; {
			select {
			case h := <-s.hellos:
				batch, routes = append(batch, h), routes+h.routes
			default:
				waiting = false
			}
		}
		s.recordBatch(ctx, batch)
	}
}

// recordBatch stores the hellos that may be stored, in one transaction if it holds them, and
// answers all.
func (s *Server) recordBatch(ctx context.Context, batch []hello) {
	for len(batch) > 0 {
		who, why := "node:"+batch[0].name, "hello"
		if len(batch) > 1 {
			who, why = "nodes", fmt.Sprintf("hello of %d nodes", len(batch))
		}
		refused := -1
		st, err := s.cfg.Store.Update(ctx, who, why, func(d *state.Draft) error {
			refused = -1
			for i, h := range batch {
				if err := h.announce(d); err != nil {
					refused = i
					return err
				}
			}
			return nil
		})
		if refused < 0 && len(batch) > 1 && state.IsKind(err, state.Invalid) { // more than a transaction holds
			s.recordBatch(ctx, batch[:len(batch)/2])
			batch = batch[len(batch)/2:]
			continue
		}
		if err == nil || refused < 0 {
			for _, h := range batch {
				h.answer <- helloAnswer{st, err}
			}
			return
		}
		batch[refused].answer <- helloAnswer{nil, err}
		batch = append(batch[:refused], batch[refused+1:]...)
	}
}
