package desired

import (
	"slices"

	"causeway/protocol"
)

// TakeGone adds a list of nodes that left or were revoked and drops those that it covers; it says
// why it does not. Lists only grow; there is more than one where a hub was restored from a backup
// and does not know yet what an older list says.
func (d *Desired) TakeGone(s protocol.SignedGoneList) string {
	pin := d.Own.Now().Pin
	nodes, err := s.Open(pin)
	if err != nil {
		return err.Error()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	names := map[protocol.NodeNumber]bool{}
	for _, n := range nodes {
		names[n] = true
	}
	var keep []protocol.SignedGoneList
	all := map[protocol.NodeNumber]bool{}
	for _, old := range d.now.Said {
		l, err := old.Open(pin)
		if err != nil {
			continue
		}
		if len(nodes) == 0 || covers(l, nodes) {
			return "" // nothing new
		}
		if slices.ContainsFunc(l, func(n protocol.NodeNumber) bool { return !names[n] }) {
			keep = append(keep, old)
			for _, n := range l {
				all[n] = true
			}
		}
	}
	if len(keep) == protocol.MaxGoneLists {
		return "it is one too many that say different things"
	}
	for n := range names {
		all[n] = true
	}
	d.now.Said, d.now.Gone = append(keep, s), all
	return ""
}

// covers reports whether l, ascending, has all of m.
func covers(l, m []protocol.NodeNumber) bool {
	for _, n := range m {
		if _, ok := slices.BinarySearch(l, n); !ok {
			return false
		}
	}
	return true
}

// lost are peers of held, of an earlier epoch, that next does not have, though
// nobody said that they are gone.
func lost(held, next protocol.Netmap, gone map[protocol.NodeNumber]bool) (out []protocol.LostPeer) {
	for _, p := range held.Peers {
		n := p.Number()
		if gone[n] || slices.ContainsFunc(next.Peers, func(q protocol.Peer) bool { return q.Number() == n }) {
			continue
		}
		out = append(out, protocol.LostPeer{Number: n, Name: p.Name, Site: p.Site})
	}
	return out
}
