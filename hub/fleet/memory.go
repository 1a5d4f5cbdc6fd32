package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/internal/durable"
	"causeway/protocol"
)

// What is known live of nodes is no state, but a hub that starts without it would
// tell every agent of every other one's addresses anew, twice, and move prefixes
// to whichever node of a group comes back first. So it is kept in a file, which
// may be old or missing.
const (
	// SaveEvery is how soon the file has what is known.
	SaveEvery = 10 * time.Second
	// StartGrace is how long after a start nodes that were online before count as
	// online: they need a moment to come back.
	StartGrace = 15 * time.Second
	// maxMemory is more than ten thousand nodes need.
	maxMemory = 64 << 20
)

// Memory is the file.
type Memory struct {
	Version int                                `json:"v"`
	Nodes   map[protocol.NodeNumber]Remembered `json:"nodes"`
	Owners  []rememberedOwner                  `json:"owners"`
	// Announced are the routes that nodes announce beyond the state.
	Announced map[protocol.NodeNumber][]netip.Prefix `json:"announced,omitempty"`
}

// Remembered is what was known of a node in the run before.
type Remembered struct {
	Online     bool             `json:"online"`
	Candidates []netip.AddrPort `json:"candidates"`
	Fences     bool             `json:"fences,omitempty"` // its agent had FeatureServiceFence
}

type rememberedOwner struct {
	Prefix netip.Prefix        `json:"prefix"`
	Node   protocol.NodeNumber `json:"node"`
}

// before are netmaps with the owners of the run before.
func (m Memory) before() *plan.Netmaps {
	v := &plan.Netmaps{Owners: map[netip.Prefix][]protocol.NodeNumber{}}
	for _, o := range m.Owners {
		v.Owners[o.Prefix] = append(v.Owners[o.Prefix], o.Node)
	}
	return v
}

// LoadMemory reads the file at path; where there is none, nothing is remembered. One that cannot be read it sets
// aside, with an error.
func LoadMemory(path string) (Memory, error) {
	var m Memory
	f := memoryFile(path)
	err := f.Load(&m, func() error {
		if m.Version != protocol.Version {
			return fmt.Errorf("version %d is not %d", m.Version, protocol.Version)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return Memory{}, nil
	}
	if err != nil {
		return Memory{}, errors.Join(err, f.SetAside())
	}
	return m, nil
}

// Save writes the file at path, whole or not at all.
func (m Memory) Save(path string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return memoryFile(path).Write(b)
}

func memoryFile(path string) durable.Side {
	return durable.Side{Path: path, Max: maxMemory}
}

// Remember takes what was known in the run before.
func (t *Table) Remember(m Memory) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.before = state.Map[protocol.NodeNumber, Remembered]{}
	for n, r := range m.Nodes {
		t.before.Set(n, r)
	}
	m.Nodes = nil
	t.memory = m
	t.says++
	t.notices.MarkAll()
}

// Unsaved is what the next run is to know. ok is false if that was told already.
func (t *Table) Unsaved() (m Memory, ok bool) {
	st := t.cfg.State()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unsaved == nil {
		return Memory{}, false
	}
	m = Memory{Version: protocol.Version, Nodes: make(map[protocol.NodeNumber]Remembered, len(t.unsaved)), Announced: map[protocol.NodeNumber][]netip.Prefix{}}
	for n, l := range t.unsaved {
		m.Nodes[n] = Remembered{l.Online, l.Candidates, t.before.Get(n).Fences || t.nodes[n] != nil && slices.Contains(t.nodes[n].hello.Features, protocol.FeatureServiceFence)}
		for _, r := range st.Waiting(n, t.announced(n)) {
			m.Announced[n] = append(m.Announced[n], r.Prefix)
		}
	}
	for p, nodes := range t.netmaps.Owners {
		for _, n := range nodes {
			m.Owners = append(m.Owners, rememberedOwner{p, n})
		}
	}
	t.unsaved = nil
	return m, true
}
