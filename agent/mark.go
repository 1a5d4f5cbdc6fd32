package agent

import (
	"fmt"
	"time"

	"causeway/protocol"
)

// mark is the newest word of the cluster's state that the netmap held came with; nil: none.
func (a *Agent) mark() *protocol.StateMark {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held == nil {
		return nil
	}
	return a.held.Netmap.Mark
}

// compareMarks hears how far the state of a hub has come that answers over HTTPS and gives this node no
// session. m is what this node showed. A mark that is not the cluster's says nothing.
func (a *Agent) compareMarks(m, hubs *protocol.StateMark) {
	why := ""
	switch {
	case m == nil || hubs == nil || hubs.Check(a.id.Pin) != nil:
	case hubs.Less(*m):
		why = fmt.Sprintf("the hub's state was set back: it ends at transaction %d of %s, and this node has seen transaction %d of %s; "+
			"on the hub's host: 'causeway doctor' says how to mend that. If this node joined or changed its key in between, it has to join again",
			hubs.Sequence, hubs.Time.Format(time.RFC3339), m.Sequence, m.Time.Format(time.RFC3339))
	case hubs.Epoch > m.Epoch:
		why = "the hub's state was restored from an earlier time, and it gives this node no session: if this node joined or changed its key since then, it has to join again, " +
			"with a new token: 'causeway token create' on the hub, then here 'causeway-agent leave' and 'causeway-agent join'"
	}
	a.mu.Lock()
	a.hubSetBack = why
	a.mu.Unlock()
}

// stateWas says why a hub that is there gives no session, as far as its state explains it; "": it does not.
func (a *Agent) stateWas() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hubSetBack
}
