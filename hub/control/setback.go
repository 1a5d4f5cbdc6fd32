package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/protocol"
)

const (
	// witnessTime is how long after its start a hub waits at most for its nodes before it gives a
	// number away: if its state was set back, they know, and it may be the number of one of them.
	// One that the hub does not know is heard after some 9 s: it has to miss the hub, and asks over HTTPS.
	witnessTime = 14 * time.Second
	// witnessWait is how much of that one join waits; it is told to come again then.
	witnessWait = 7 * time.Second
)

// ErrStarting says that nodes of a hub that has just started have not said yet what they know.
var ErrStarting = errors.New("the hub has just started, and hears its nodes first")

// witness takes the mark of node by's Hello. One that is not the cluster's says nothing.
func (s *Server) witness(ctx context.Context, by string, m *protocol.StateMark) error {
	if m == nil {
		return nil
	}
	before := s.cfg.Store.SetBack()
	err := s.cfg.Store.Witness(ctx, *m)
	if errors.Is(err, protocol.ErrPinMismatch) || errors.Is(err, protocol.ErrStateMarkInvalid) {
		s.cfg.Log.Warn().Err(err).Str("node", by).Msg("a node shows a mark of the state that is not this cluster's")
		return nil
	}
	if now := s.cfg.Store.SetBack(); before == nil && now != nil {
		s.cfg.Events.Add(event.StateSetBack, by, now.Error())
	}
	return err
}

// Heard waits until the nodes have said what they know of the state, or witnessTime is over. It fails with
// the *state.SetBackError if it was set back, with ErrStarting after witnessWait, and if ctx ends.
func (s *Server) Heard(ctx context.Context) error {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	end := time.NewTimer(witnessWait)
	defer end.Stop()
	for time.Since(s.started) < witnessTime && !s.allHere() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end.C:
			if err := s.cfg.Store.SetBack(); err != nil {
				return err
			}
			return ErrStarting
		case <-tick.C:
			if err := s.cfg.Store.SetBack(); err != nil { // sooner than all are here
				return err
			}
		}
	}
	return s.cfg.Store.SetBack()
}

// allHere reports whether each live node whose agent ever ran has had a session since the start. A
// hub that never had any, and is not new, may have been set back to before its first.
func (s *Server) allHere() bool {
	st := s.cfg.Store.State()
	back, of := s.here(st)
	return back == of && (len(st.Nodes) > 0 || s.cfg.New)
}

// here counts the live nodes of st whose agent ever ran, and those of them that have had a
// session since the start.
func (s *Server) here(st *state.State) (back, of int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range st.LiveNodes() {
		if n.Statement == nil {
			continue
		}
		of++
		if l := s.nodes[n.Number]; l != nil && (l.session != nil || !l.up.IsZero()) {
			back++
		}
	}
	return back, of
}

const (
	// markEvery is how soon nodes hear of a change of the state that changes no netmap, such as
	// a token or an admin.
	markEvery = 2 * time.Second
	// markNodes is how many do: enough that one of them is there when it is asked for, however
	// many there are.
	markNodes = 32
)

// tellMark gives some nodes the cluster key's word of how far the state has come, if it went on
// since they were told, so that a hub that is set back hears of it whatever the change was.
func (s *Server) tellMark() {
	st := s.cfg.Store.State()
	if st.Seq == s.marked || st.Settling || s.cfg.Store.SetBack() != nil {
		return
	}
	var to []*session
	s.mu.Lock()
	for _, l := range s.nodes { // in another order each time
		if l.session != nil && slices.Contains(l.hello.Features, protocol.FeatureMark) && len(to) < markNodes {
			to = append(to, l.session)
		}
	}
	s.mu.Unlock()
	if len(to) == 0 {
		return
	}
	s.marked = st.Seq
	m := st.Mark(s.cfg.Cluster)
	for _, ses := range to {
		go func() { // ends within writeTimeout
			if err := ses.send(protocol.KindMark, m); err != nil {
				ses.log.Debug().Err(err).Msg("mark of the state not sent")
			}
		}()
	}
}
