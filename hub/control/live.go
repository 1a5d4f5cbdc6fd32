package control

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/liveness"
	"causeway/hub/state"
	"causeway/protocol"
)

// live is what is known of a node from its sessions. Server.mu guards it.
type live struct {
	session  *session // nil: none now
	leaving  bool     // gone from the state, and being told
	lastWord time.Time
	goodbye  bool // the last session was ended by the agent, not by silence
	hello    protocol.Hello
	status   protocol.Status
	heard    bool // a status came in this session
	acked    protocol.NetmapVersion
	refused  []protocol.RefusedPart
	errors   []string
	machine  *liveness.Machine
	up       time.Time     // since when there is this session
	shut     time.Time     // since when it is quarantined, as far as this hub saw
	own      budget        // of sessions that prove the node's identity
	old      budget        // of those that do not
	streams  *rate.Limiter // of all its sessions
	voice    *voice        // in the log, of all its sessions
	changes  *rate.Limiter // of the log, by hellos
	keys     *rate.Limiter // of its new WireGuard keys
	said     announcement
	late     time.Time // it announced more changes than it may
	lateTold time.Time // and that was told
	boots    boots

	// Sessions that were refused since the last event of it.
	refusals    int
	refusedPace *rate.Limiter
	left        departure
	firstProof  time.Time // of the node's identity, seen by this run of the hub; zero: none
}

// budget bounds how often a node may come.
type budget struct{ hellos, connects *rate.Limiter }

func newBudget() budget {
	return budget{rate.NewLimiter(rate.Every(helloEvery), helloBurst), rate.NewLimiter(rate.Every(connEvery), connBurst)}
}

func (l *live) budget(proven bool) budget {
	if proven {
		return l.own
	}
	return l.old
}

// Info is what is known live of a node.
type Info struct {
	State      string // api.Node…
	Since      time.Time
	Reasons    []string
	Hello      protocol.Hello
	Status     protocol.Status
	Acked      protocol.NetmapVersion
	Refused    []protocol.RefusedPart
	Connected  time.Time // since when there is a control session; zero: none
	LastWord   time.Time // by the hub's clock; zero: none since the hub's start
	Goodbye    bool      // the agent ended its last session itself
	Conditions []protocol.Condition
}

// Info returns what is known of node n.
func (s *Server) Info(n state.Node) Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.nodes[n.Number]
	if l == nil {
		l = &live{machine: liveness.New(s.started)}
	}
	i := Info{Hello: l.hello, Status: l.status, Acked: l.acked, Refused: slices.Clone(l.refused), LastWord: l.lastWord, Goodbye: l.goodbye, Conditions: slices.Clone(l.status.Conditions)}
	if l.session != nil {
		i.Connected = l.up
	}
	i.State, i.Since, i.Reasons = judge(n, l)
	if text := s.strayOf(n); text != "" && i.State == api.NodeUnreachable {
		i.Reasons = []string{text}
	}
	return i
}

// judge returns a node's state, since when, and why it is not ready.
func judge(n state.Node, l *live) (string, time.Time, []string) {
	switch {
	case n.Gone == state.GoneLeft:
		return api.NodeLeft, n.GoneTime, []string{"it left the cluster"}
	case n.Gone == state.GoneRevoked:
		return api.NodeRevoked, n.GoneTime, []string{"it was revoked"}
	}
	v := l.machine.Verdict()
	switch {
	case n.Quarantine != "":
		return api.NodeQuarantined, l.shut, []string{n.Quarantine}
	case n.Statement == nil && l.session == nil:
		return api.NodeJoined, n.Joined, []string{"it redeemed its token, but its agent was never seen on the tunnel; is 'causeway-agent run' running there?"}
	}
	return v.State, v.Since, v.Reasons
}

// complaints are what is wrong with a connected node by its own last word.
func complaints(l *live) []string {
	var reasons []string
	for _, c := range l.status.Conditions {
		if !c.OK && c.Name != protocol.ConditionPaths {
			r := c.Name
			if c.Cause != "" {
				r += ": " + c.Cause
			}
			reasons = append(reasons, r)
		}
	}
	reasons = append(reasons, l.errors...)
	if !l.heard {
		reasons = append(reasons, "no status yet")
	}
	return reasons
}

// node returns the record of node n, making it. s.mu is held.
func (s *Server) node(n protocol.NodeNumber) *live {
	l, ok := s.nodes[n]
	if !ok {
		l = &live{machine: liveness.New(s.started), own: newBudget(), old: newBudget(), streams: rate.NewLimiter(nodeStreamRate, nodeStreamBurst), voice: newVoice(),
			changes: newChanges(), keys: newKeys(), refusedPace: rate.NewLimiter(rate.Every(refusedEvery), refusedBurst)}
		s.nodes[n] = l
	}
	return l
}

// judged lets node n be judged by what is known now. s.mu is held.
func (s *Server) judged(n protocol.NodeNumber, l *live) {
	e := liveness.Evidence{Session: l.session != nil, Word: l.lastWord, Probe: s.cfg.Tunnel.Proven(n)}
	if e.Session {
		e.Reasons = complaints(l)
	}
	if !l.machine.Observe(time.Now(), e) {
		return
	}
	node := s.cfg.Store.State().Nodes[n]
	if !node.Live() || node.Quarantine != "" {
		return
	}
	switch v := l.machine.Verdict(); v.State {
	case api.NodeReady:
		s.cfg.Events.Add(event.NodeReady, node.Name, "the node is ready")
	case api.NodeDegraded:
		s.cfg.Events.Add(event.NodeDegraded, node.Name, protocol.OneLine("the node is degraded: "+strings.Join(v.Reasons, "; "), maxText))
	case api.NodeUnreachable:
		s.cfg.Events.Add(event.NodeUnreachable, node.Name, "the node is unreachable: "+v.Reasons[0])
	}
}

// lookAround judges all nodes: silence is no event.
func (s *Server) lookAround() {
	st := s.cfg.Store.State()
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, l := range s.nodes {
		if quarantined := st.Nodes[n].Quarantine != ""; quarantined != !l.shut.IsZero() {
			if l.shut = (time.Time{}); quarantined {
				l.shut = time.Now().UTC()
			}
		}
		s.judged(n, l)
	}
}

// missed tells of nodes that were there before this hub's start and are not yet.
func (s *Server) missed() {
	st := s.cfg.Store.State()
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, r := range s.memory.Nodes {
		if node := st.Nodes[n]; r.Online && node.Live() && s.node(n).session == nil {
			s.cfg.Events.Add(event.NodeUnreachable, node.Name, "the node is unreachable: "+s.node(n).machine.Verdict().Reasons[0])
		}
	}
}

// Bounds of what agents report, beyond the size of a message.
const (
	maxText       = 300
	maxConditions = 64
	maxPaths      = 10000
	maxAddrs      = 64
	maxParts      = 256
)

func cleanHello(h *protocol.Hello) {
	h.AgentVersion, h.Engine = protocol.OneLine(h.AgentVersion, 64), protocol.OneLine(h.Engine, 32)
	h.Features = h.Features[:min(len(h.Features), maxParts)]
	for i := range h.Features {
		h.Features[i] = protocol.OneLine(h.Features[i], 64)
	}
	maps.DeleteFunc(h.Labels, func(k, v string) bool { return protocol.CheckLabel(k, v) != nil })
	if len(h.Labels) > protocol.MaxNodeLabels {
		h.Labels = nil
	}
}

func cleanStatus(st *protocol.Status) {
	st.Candidates = st.Candidates[:min(len(st.Candidates), maxAddrs)]
	st.Paths = st.Paths[:min(len(st.Paths), maxPaths)]
	for i := range st.Paths {
		st.Paths[i].Name = protocol.OneLine(st.Paths[i].Name, 64)
		at := st.Paths[i].Addr
		st.Paths[i].Addr = netip.AddrPortFrom(at.Addr().WithZone(""), at.Port()) // a zone may be any text
		st.Paths[i].Path = protocol.PathKind(protocol.OneLine(string(st.Paths[i].Path), 16))
	}
	st.Conditions = st.Conditions[:min(len(st.Conditions), maxConditions)]
	for i := range st.Conditions {
		c := &st.Conditions[i]
		c.Name, c.Cause = protocol.OneLine(c.Name, 64), protocol.OneLine(c.Cause, maxText)
		c.Note = protocol.OneLine(c.Note, maxText)
		c.DependsOn = c.DependsOn[:min(len(c.DependsOn), maxConditions)]
		for j := range c.DependsOn {
			c.DependsOn[j] = protocol.OneLine(c.DependsOn[j], 64)
		}
	}
	st.Upgrade = cleanUpgrade(st.Upgrade)
}

func cleanAck(a *protocol.NetmapAck) {
	a.Refused = a.Refused[:min(len(a.Refused), maxParts)]
	for i := range a.Refused {
		a.Refused[i].Prefix, a.Refused[i].Reason = protocol.OneLine(a.Refused[i].Prefix, 64), protocol.OneLine(a.Refused[i].Reason, maxText)
	}
	a.Lost = a.Lost[:min(len(a.Lost), maxParts)]
	for i := range a.Lost {
		a.Lost[i].Name, a.Lost[i].Site = protocol.OneLine(a.Lost[i].Name, 64), protocol.OneLine(a.Lost[i].Site, 64)
	}
	a.Errors = a.Errors[:min(len(a.Errors), maxConditions)]
	for i := range a.Errors {
		a.Errors[i] = protocol.OneLine(a.Errors[i], maxText)
	}
}
