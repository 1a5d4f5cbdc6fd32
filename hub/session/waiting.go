package session

import (
	"context"
	"time"

	"causeway/hub/state"
)

// storeEvery is how often what waits is looked at.
const storeEvery = time.Second

// storeWaiting stores, until ctx ends, what had to wait, and what a change of the state lets become state, such as
// a site's new range.
func (s *Server) storeWaiting(ctx context.Context) {
	t := time.NewTicker(storeEvery)
	defer t.Stop()
	var last *state.State
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		st := s.cfg.Store.State()
		due := s.fleet.Due(st, last, time.Now())
		last = st
		for n, a := range due {
			_, changes, err := s.cfg.Store.Changes(a.Announce)
			if err != nil {
				continue
			}
			back, ok := s.fleet.MayStore(n, st.Nodes.Get(n).Name, a, changes)
			if !ok || changes == 0 {
				continue
			}
			announce := func(d *state.Draft) error { // its turn may come after the node's next word
				if !s.fleet.IsLast(n, a) {
					return nil
				}
				return a.Announce(d)
			}
			if _, err := s.record(ctx, hello{name: st.Nodes.Get(n).Name, routes: a.Routes, announce: announce}); err != nil && ctx.Err() == nil {
				back()
				s.fleet.Wait(n)
				s.cfg.Log.Warn().Err(err).Str("node", st.Nodes.Get(n).Name).Msg("what the node announces is not stored")
			}
			if !s.fleet.IsLast(n, a) {
				s.fleet.Again(n)
			}
		}
	}
}
