package session

import (
	"context"
	"errors"
	"time"

	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// leave takes the node out as its agent wishes, and ends the session.
func (ses *session) leave(ctx context.Context) error {
	s := ses.s
	if !ses.known.Proven {
		return ses.leaveUnproven(ctx)
	}
	s.fleet.Leaving(ses.known)
	_, err := s.cfg.Store.Update(ctx, "node:"+ses.name(), "leave", func(d *state.Draft) error {
		return state.Remove(d, ses.node, state.GoneLeft)
	})
	if err == nil {
		s.cfg.Events.Add(event.NodeDown, ses.name(), "the node left the cluster")
		ses.log.Info().Msg("node left")
		err = ses.send(protocol.KindLeft, struct{}{})
	} else {
		ses.bad(errors.New("the hub cannot store that the node leaves"))
	}
	// The agent closes once it heard; until then the tunnel to it stays.
	t := time.AfterFunc(farewell, func() { ses.mux.Close() })
	defer t.Stop()
	<-ses.mux.Done()
	s.fleet.Left(ses.known, err == nil)
	s.fleet.Recheck()
	return err
}

// leaveUnproven takes the wish and says goodbye to the agent, which is done with it.
func (ses *session) leaveUnproven(ctx context.Context) error {
	s := ses.s
	s.fleet.WantsToLeave(ses.known)
	name := ses.name()
	s.cfg.Events.Add(event.NodeRefused, name, "the node says that it leaves, in a session that does not prove its identity: it is taken out in "+fleet.DepartAfter.String()+" unless it is heard before; 'causeway node revoke "+name+"' does so now")
	ses.log.Warn().Msg("a session that does not prove the node's identity says that it leaves")
	err := ses.send(protocol.KindLeft, struct{}{})
	select { // the agent closes once it heard
	case <-ses.mux.Done():
	case <-ctx.Done():
	case <-time.After(farewell):
	}
	return err
}
