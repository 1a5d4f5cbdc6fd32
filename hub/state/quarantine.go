package state

import (
	"fmt"
	"time"

	"causeway/protocol"
)

// NodeQuarantined shuts a node off from all others until an admin decides. It
// keeps its name, number, routes and its session with the hub.
type NodeQuarantined struct {
	Number protocol.NodeNumber `json:"number"`
	Why    string              `json:"why"`
}

func (c NodeQuarantined) apply(s *State, _ time.Time) error {
	n, err := s.live(c.Number)
	if err != nil {
		return err
	}
	if c.Why == "" {
		return Errorf(Invalid, "quarantine of node %s without a reason", n.Name)
	}
	n.Quarantine = c.Why
	s.Nodes.Set(c.Number, n)
	return nil
}

// Describe returns one line.
func (c NodeQuarantined) Describe() string {
	return fmt.Sprintf("node %d quarantined: %s", c.Number, c.Why)
}

// NodeReleased ends a quarantine.
type NodeReleased struct {
	Number protocol.NodeNumber `json:"number"`
}

func (c NodeReleased) apply(s *State, _ time.Time) error {
	n, err := s.live(c.Number)
	if err != nil {
		return err
	}
	n.Quarantine = ""
	s.Nodes.Set(c.Number, n)
	return nil
}

// Describe returns one line.
func (c NodeReleased) Describe() string {
	return fmt.Sprintf("node %d released from quarantine", c.Number)
}

// Quarantine shuts a node off. One that is shut off already stays as it is.
func Quarantine(d *Draft, n protocol.NodeNumber, why string) error {
	if d.Nodes.Get(n).Quarantine != "" {
		return nil
	}
	return d.Add(NodeQuarantined{n, why})
}

// Release ends the quarantine of the node of that name.
func Release(d *Draft, name string) error {
	n, err := d.FindNode(name)
	if err != nil {
		return err
	}
	if n.Quarantine == "" {
		return Errorf(Conflict, "node %s is not in quarantine", name)
	}
	return d.Add(NodeReleased{n.Number})
}
