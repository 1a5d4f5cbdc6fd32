package state

import (
	"fmt"
	"time"

	"causeway/protocol"
)

// NodeDrained makes a node the last choice for every prefix that another node
// of its site announces too. Else it goes on as before.
type NodeDrained struct {
	Number protocol.NodeNumber `json:"number"`
}

func (c NodeDrained) apply(s *State, t time.Time) error {
	n, err := s.live(c.Number)
	if err != nil {
		return err
	}
	n.Drained = t
	s.Nodes.Set(c.Number, n)
	return nil
}

// Describe returns one line.
func (c NodeDrained) Describe() string { return fmt.Sprintf("node %d drained", c.Number) }

// NodeUndrained makes a node a choice like any other again.
type NodeUndrained struct {
	Number protocol.NodeNumber `json:"number"`
}

func (c NodeUndrained) apply(s *State, _ time.Time) error {
	n, err := s.live(c.Number)
	if err != nil {
		return err
	}
	n.Drained = time.Time{}
	s.Nodes.Set(c.Number, n)
	return nil
}

// Describe returns one line.
func (c NodeUndrained) Describe() string { return fmt.Sprintf("node %d undrained", c.Number) }

// NodeRenamed gives a live node another name. Its number, keys and routes stay.
type NodeRenamed struct {
	Number protocol.NodeNumber `json:"number"`
	Name   string              `json:"name"`
}

func (c NodeRenamed) apply(s *State, _ time.Time) error {
	n, err := s.live(c.Number)
	if err != nil {
		return err
	}
	if !protocol.ValidName(c.Name) {
		return Errorf(Invalid, "%.80q is no node name: use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'", c.Name)
	}
	if o, ok := s.names.Find(c.Name); ok {
		return Errorf(Conflict, "the name %s is taken by a node of site %s", c.Name, s.Nodes.Get(o).Site)
	}
	if err := s.named(ObjectKey{KindNode, n.Name}); err != nil {
		return err
	}
	s.names.Delete(n.Name)
	n.Name = c.Name
	s.Nodes.Set(c.Number, n)
	s.names.Set(c.Name, c.Number)
	return nil
}

// Describe returns one line.
func (c NodeRenamed) Describe() string { return fmt.Sprintf("node %d renamed %s", c.Number, c.Name) }

// Drain drains the node of that name, or ends that. What holds already adds nothing.
func Drain(d *Draft, name string, drain bool) error {
	n, err := d.FindNode(name)
	if err != nil || n.Drained.IsZero() != drain {
		return err
	}
	if drain {
		return d.Add(NodeDrained{n.Number})
	}
	return d.Add(NodeUndrained{n.Number})
}

// Rename gives the node of that name another one. Its own name adds nothing.
func Rename(d *Draft, name, to string) error {
	n, err := d.FindNode(name)
	if err != nil || n.Name == to {
		return err
	}
	return d.Add(NodeRenamed{n.Number, to})
}
