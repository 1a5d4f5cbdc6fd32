package fleet

import (
	"maps"
	"slices"

	"causeway/protocol"
)

// await is who has yet to take a change of who may talk.
type await struct {
	talk   uint64                           // plan.Netmaps.Talk
	nodes  map[protocol.NodeNumber]struct{} // that are waited for
	passed map[protocol.NodeNumber]struct{} // that are not any more, until they take netmaps as new as that
}

// Await begins to wait for those who have a session now to take netmaps in which is who may talk by the newest ones. Who
// takes none of that change counts at once, and who was passed before is not waited for. Arrived tells when all have it.
func (t *Table) Await() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := &t.await; t.netmaps != nil {
		a.talk, a.nodes = t.netmaps.Talk, map[protocol.NodeNumber]struct{}{}
		for n, l := range t.nodes {
			_, passed := a.passed[n]
			if l.session != nil && !passed && t.netmaps.Has(n) && (l.session.held == nil || l.session.held.Talk < a.talk) {
				a.nodes[n] = struct{}{}
			}
		}
	}
	if len(t.await.nodes) == 0 {
		poke(t.arrived)
	}
}

// Arrived receives, coalesced, when nobody is waited for any more.
func (t *Table) Arrived() <-chan struct{} { return t.arrived }

// Awaited is how many nodes are waited for.
func (t *Table) Awaited() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.await.nodes)
}

// Pass waits no more for anybody, and returns who was waited for, by number.
func (t *Table) Pass() []protocol.NodeNumber {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := &t.await
	out := slices.Sorted(maps.Keys(a.nodes))
	if a.passed == nil {
		a.passed = map[protocol.NodeNumber]struct{}{}
	}
	for _, n := range out {
		a.passed[n] = struct{}{}
	}
	a.nodes = nil
	return out
}

// Passed are the nodes that were not waited for and have not taken the last change of who may talk since, by number.
func (t *Table) Passed() []protocol.NodeNumber {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.await.passed, func(n protocol.NodeNumber, _ struct{}) bool { return t.nodes[n] == nil })
	return slices.Sorted(maps.Keys(t.await.passed))
}

// took notes that node n holds netmaps with who may talk as of that count. t.mu is held.
func (a *await) took(n protocol.NodeNumber, talk uint64) (last bool) {
	if talk < a.talk {
		return false
	}
	delete(a.passed, n)
	if _, ok := a.nodes[n]; !ok {
		return false
	}
	delete(a.nodes, n)
	return len(a.nodes) == 0
}
