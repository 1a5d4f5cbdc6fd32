package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"causeway/hub/plan"
	"causeway/internal/durable"
	"causeway/protocol"
)

// What is known live of nodes is no state, but a hub that starts without it would
// tell every agent of every other one's addresses anew, twice, and move prefixes
// to whichever node of a group comes back first. So it is kept in a file, which
// may be old or missing.
const (
	saveEvery = 10 * time.Second
	// startGrace is how long after a start nodes that were online before count as
	// online: they need a moment to come back.
	startGrace = 15 * time.Second
	// maxMemory is more than ten thousand nodes need.
	maxMemory = 64 << 20
)

// memory is the file.
type memory struct {
	Version int                                    `json:"v"`
	Nodes   map[protocol.NodeNumber]rememberedNode `json:"nodes"`
	Owners  []rememberedOwner                      `json:"owners"`
	// Announced are the routes that nodes announce beyond the state.
	Announced map[protocol.NodeNumber][]netip.Prefix `json:"announced,omitempty"`
}

type rememberedNode struct {
	Online     bool             `json:"online"`
	Candidates []netip.AddrPort `json:"candidates"`
}

type rememberedOwner struct {
	Prefix netip.Prefix        `json:"prefix"`
	Node   protocol.NodeNumber `json:"node"`
}

// before is a view with the owners of the run before.
func (m memory) before() *plan.Netmaps {
	v := &plan.Netmaps{Owners: map[netip.Prefix]protocol.NodeNumber{}}
	for _, o := range m.Owners {
		v.Owners[o.Prefix] = o.Node
	}
	return v
}

// remember reads the file.
func (s *Server) remember() {
	if s.cfg.Memory == "" {
		return
	}
	var m memory
	f := s.memoryFile()
	err := f.Load(&m, func() error {
		if m.Version != protocol.Version {
			return fmt.Errorf("version %d is not %d", m.Version, protocol.Version)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		s.cfg.Log.Warn().Err(errors.Join(err, f.SetAside())).Msg("what was known of nodes before is not readable, it is learnt anew")
		return
	}
	s.mu.Lock()
	s.memory = m
	s.mu.Unlock()
}

func (s *Server) memoryFile() durable.Side {
	return durable.Side{Path: s.cfg.Memory, Max: maxMemory}
}

// recall adds to what is known of node n what was known in the run before, until
// the node has reported. s.mu is held.
func (s *Server) recall(n protocol.NodeNumber, l plan.Live, now time.Time) plan.Live {
	if r, ok := s.memory.Nodes[n]; ok {
		l.Candidates = append(l.Candidates, r.Candidates...)
		l.Online = l.Online || r.Online && now.Sub(s.started) < startGrace
	}
	return l
}

// save writes the file, if there is news.
func (s *Server) save() {
	s.mu.Lock()
	known, view := s.unsaved, s.view
	announced := map[protocol.NodeNumber][]netip.Prefix{}
	for n := range known {
		for _, r := range s.cfg.Store.State().Waiting(n, s.announced(n)) {
			announced[n] = append(announced[n], r.Prefix)
		}
	}
	s.unsaved = nil
	s.mu.Unlock()
	if known == nil || s.cfg.Memory == "" {
		return
	}
	m := memory{Version: protocol.Version, Nodes: make(map[protocol.NodeNumber]rememberedNode, len(known))}
	for n, l := range known {
		m.Nodes[n] = rememberedNode{l.Online, l.Candidates}
	}
	m.Announced = announced
	for p, n := range view.Owners {
		m.Owners = append(m.Owners, rememberedOwner{p, n})
	}
	b, err := json.Marshal(m)
	if err == nil {
		err = s.memoryFile().Write(b)
	}
	if err != nil {
		s.cfg.Log.Warn().Err(err).Msg("what is known of nodes is not kept for the next start")
	}
}
