package state

import (
	"fmt"
	"time"

	"causeway/protocol"
)

// NodeKeyWanted asks a node for a WireGuard key of at least this epoch.
type NodeKeyWanted struct {
	Number  protocol.NodeNumber `json:"number"`
	Epoch   uint32              `json:"epoch"`
	Overlap time.Duration       `json:"overlap_ns"` // how long the key before it stays good at the node
}

func (c NodeKeyWanted) apply(s *State, t time.Time) error {
	n, err := s.live(c.Number)
	if err != nil {
		return err
	}
	if c.Epoch <= n.KeyEpoch() || c.Overlap < 0 {
		return Errorf(Conflict, "node %s has key epoch %d already", n.Name, n.KeyEpoch())
	}
	n.KeyWanted, n.KeyAsked, n.KeyOverlap = c.Epoch, t, c.Overlap
	s.Nodes.Set(n.Number, n)
	return nil
}

// Describe returns one line.
func (c NodeKeyWanted) Describe() string {
	return fmt.Sprintf("node %d asked for a new key, epoch %d, the old one stays good for %s", c.Number, c.Epoch, c.Overlap)
}

// WantKey asks a live node for a new WireGuard key.
func WantKey(d *Draft, name string, overlap time.Duration) error {
	n, err := d.FindNode(name)
	if err != nil {
		return err
	}
	if overlap < 0 || overlap > protocol.MaxKeyOverlap {
		return Errorf(Invalid, "overlap %s: use 0s to %s", overlap, protocol.MaxKeyOverlap)
	}
	return d.Add(NodeKeyWanted{n.Number, n.KeyEpoch() + 1, overlap})
}

// keyGrace is how long a node that was asked for a new key may take.
const keyGrace = 10 * time.Minute

// KeyOverdue says why a live node's key should have been rotated by now; empty:
// it is not due.
func (s *State) KeyOverdue(n Node, now time.Time) string {
	every := s.Sites.Get(n.Site).RotateKeys
	switch {
	case n.KeyWanted > n.KeyEpoch() && now.Sub(n.KeyAsked) > keyGrace:
		return fmt.Sprintf("asked for a new key at %s, it still has the old one", n.KeyAsked.UTC().Format(time.RFC3339))
	case every > 0 && now.Sub(n.KeySince) > every+every/4+keyGrace:
		return fmt.Sprintf("its key is of %s, its site rotates every %s", n.KeySince.UTC().Format(time.RFC3339), every)
	}
	return ""
}
