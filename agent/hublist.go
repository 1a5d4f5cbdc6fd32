package agent

import (
	"context"
	"fmt"
	"time"

	"causeway/agent/debug"
	"causeway/agent/identity"
	"causeway/agent/netmapcheck"
	"causeway/protocol"
)

// NewerHubList opens a hub list for a node and says whether it goes before the one of this
// serial that the node holds. One of the same serial is neither newer nor an error.
func NewerHubList(id identity.Identity, held uint64, s protocol.SignedHubList, now time.Time) (l protocol.HubList, newer bool, err error) {
	if l, err = s.Open(id.Pin); err != nil {
		return l, false, err
	}
	switch {
	case l.Serial < held:
		return l, false, fmt.Errorf("serial %d is lower than %d, which this agent holds", l.Serial, held)
	case l.Serial == held:
		return l, false, nil
	}
	if err := l.ValidAt(now); err != nil {
		return l, false, err
	}
	if why := netmapcheck.Overlay(l.Overlay, id.Number, id.Overlay); why != "" {
		return l, false, fmt.Errorf("%s", why)
	}
	return l, true, nil
}

// debugHubs is the hub list held.
func (a *Agent) debugHubs() debug.Hubs {
	a.mu.Lock()
	defer a.mu.Unlock()
	return ShownHubs(a.hubs, a.signed, a.newest.shown)
}

// ShownHubs is a hub list as debug endpoints and commands show it.
func ShownHubs(l protocol.HubList, s protocol.SignedHubList, confirmed time.Time) debug.Hubs {
	return debug.Hubs{Serial: l.Serial, NotBefore: l.NotBefore, NotAfter: l.NotAfter, Confirmed: confirmed, Hubs: notNil(l.Hubs), Signed: s}
}

// setHubs takes a hub list from a person on the host.
func (a *Agent) setHubs(_ context.Context, s protocol.SignedHubList) debug.HubsResult {
	a.applyMu.Lock()
	defer a.applyMu.Unlock()
	before := a.debugHubs().Serial
	why := a.takeHubList(s)
	now := a.debugHubs()
	return debug.HubsResult{Taken: why == "" && now.Serial > before, Error: why, Hubs: now}
}
