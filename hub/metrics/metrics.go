// Package metrics tells Prometheus how the hub and its nodes are, and load balancers
// whether the hub is ready. docs/METRICS.md lists all metrics; a test holds it to the code.
//
// No label takes a value that a stranger chooses. One metric has a series for each
// node, causeway_hub_node_up: which node is down is what operators ask first, and some
// thousands of series that change only as nodes come and go cost a Prometheus little. All
// else is by site, state, reason or kind.
package metrics

import (
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// findingsAge is how old a count of doctor's findings may be: it looks at every pair of nodes.
const findingsAge = 15 * time.Second

// Config is where figures come from. The functions may be called concurrently.
type Config struct {
	Version      string
	State        func() *state.State
	Standings    func(*state.State) map[protocol.NodeNumber]fleet.Standing
	Relay        func() tunnel.RelayStats
	Events       func(kind string) uint64 // how many there were
	Conditions   func() []protocol.Condition
	Findings     func() map[string]int // of doctor, by severity
	DiskFree     func() (uint64, error)
	Certificates map[string]time.Time // until when each is good
	More         []prometheus.Collector
	// Unready says in one word what keeps the hub from its work; empty: nothing does.
	Unready func() string
}

// Server serves the metrics. Its methods may be called concurrently.
type Server struct {
	cfg      Config
	registry *prometheus.Registry
	all      []*prometheus.Desc

	info, ready, nodes, nodeUp, sessions, behind, lag, refused *prometheus.Desc
	routes, sequence, changed, events, condition, findings     *prometheus.Desc
	bound, datagrams, bytes, dropped, free, certificate, clock *prometheus.Desc

	mu    sync.Mutex
	found map[string]int
	at    time.Time // of found
}

// New registers all metrics. It listens on nothing.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, registry: prometheus.NewRegistry()}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		d := prometheus.NewDesc("causeway_hub_"+name, help, labels, nil)
		s.all = append(s.all, d)
		return d
	}
	s.info = desc("info", "The hub; always 1.", "version")
	s.ready = desc("ready", "1 where the hub takes joins and changes, as /readyz says.")
	s.nodes = desc("nodes", "Nodes of the cluster, by site and state.", "site", "state")
	s.nodeUp = desc("node_up", "1 where the hub hears of the node, which is then ready or degraded; 0 where it does not, or where the node is quarantined.", "node", "site")
	s.sessions = desc("control_sessions", "Control sessions with nodes.")
	s.behind = desc("netmap_behind_nodes", "Nodes with a control session that have not applied the newest netmap.")
	s.lag = desc("netmap_lag_seconds", "For how long the slowest node with a control session has owed a newer netmap.")
	s.refused = desc("netmap_refused_nodes", "Nodes with a control session that refused parts of their netmap.")
	s.routes = desc("routes", "Routes of nodes, by state; pending ones wait for an operator.", "state")
	s.sequence = desc("state_sequence", "Sequence of the last transaction in the state log.")
	s.changed = desc("state_changed_timestamp_seconds", "When the last transaction was stored.")
	s.events = desc("events_total", "Events, by kind, as 'causeway events' lists them.", "kind")
	s.condition = desc("condition", "1 where a health condition of the hub holds, as 'causeway status' lists them.", "condition")
	s.findings = desc("doctor_findings", "Findings of 'causeway doctor', by severity; up to 15 s old.", "severity")
	s.bound = desc("relay_bound_nodes", "Nodes that the relay can send to.")
	s.datagrams = desc("relay_datagrams_total", "Datagrams that the relay forwarded.")
	s.bytes = desc("relay_bytes_total", "Bytes of the datagrams that the relay forwarded.")
	s.dropped = desc("relay_dropped_datagrams_total", "Datagrams that the relay did not forward, by reason.", "reason")
	s.free = desc("disk_free_bytes", "Free space where the data directory is.")
	s.certificate = desc("certificate_expiry_timestamp_seconds", "Until when a certificate of the hub is good.", "certificate")
	s.clock = desc("time_seconds", "What time it is by the hub's clock.")
	s.registry.MustRegister(s, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.registry.MustRegister(cfg.More...)
	return s
}

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range s.all {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(s.info, 1, strings.ToValidUTF8(s.cfg.Version, "?"))
	gauge(s.ready, yes(s.cfg.Unready() == ""))

	gauge(s.clock, float64(time.Now().UnixMilli())/1000)

	st := s.cfg.State()
	gauge(s.sequence, float64(st.Seq))
	gauge(s.changed, float64(st.Time.Unix()))
	s.collectNodes(st, gauge)
	routes := map[protocol.RouteState]int{protocol.RoutePending: 0, protocol.RouteApproved: 0, protocol.RouteRejected: 0}
	for _, r := range st.Routes.All() {
		routes[r.State]++
	}
	for k, n := range routes {
		gauge(s.routes, float64(n), string(k))
	}

	for _, k := range event.Kinds {
		counter(s.events, s.cfg.Events(k), k)
	}
	for _, c := range s.cfg.Conditions() {
		gauge(s.condition, yes(c.OK), c.Name)
	}
	for severity, n := range s.countFindings() {
		gauge(s.findings, float64(n), severity)
	}

	r := s.cfg.Relay()
	gauge(s.bound, float64(r.BoundNodes))
	counter(s.datagrams, r.Datagrams)
	counter(s.bytes, r.Bytes)
	dropped := map[string]uint64{} // a counter that begins at 0 has a rate from its first drop on
	for _, reason := range tunnel.RelayDropReasons() {
		dropped[reason] = 0
	}
	maps.Copy(dropped, r.Dropped)
	for reason, n := range dropped {
		counter(s.dropped, n, reason)
	}

	if free, err := s.cfg.DiskFree(); err == nil {
		gauge(s.free, float64(free))
	}
	for name, t := range s.cfg.Certificates {
		gauge(s.certificate, float64(t.Unix()), name)
	}
}

// collectNodes tells of the live nodes of st.
func (s *Server) collectNodes(st *state.State, gauge func(*prometheus.Desc, float64, ...string)) {
	type key struct{ site, state string }
	nodes := map[key]int{}
	for site := range st.Sites.All() {
		for _, x := range []string{api.NodeJoined, api.NodeReady, api.NodeDegraded, api.NodeUnreachable, api.NodeQuarantined} {
			nodes[key{site, x}] = 0
		}
	}
	var sessions, behind, refused int
	var lag time.Duration
	for number, x := range s.cfg.Standings(st) {
		n := st.Nodes.Get(number)
		nodes[key{n.Site, x.State}]++
		up := 0.0
		if x.State == api.NodeReady || x.State == api.NodeDegraded {
			up = 1
		}
		gauge(s.nodeUp, up, n.Name, n.Site)
		if x.Connected {
			sessions++
		}
		if x.Behind > 0 {
			behind++
		}
		if x.Refused {
			refused++
		}
		lag = max(lag, x.Behind)
	}
	for k, n := range nodes {
		gauge(s.nodes, float64(n), k.site, k.state)
	}
	gauge(s.sessions, float64(sessions))
	gauge(s.behind, float64(behind))
	gauge(s.lag, lag.Seconds())
	gauge(s.refused, float64(refused))
}

func (s *Server) countFindings() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.found == nil || time.Since(s.at) >= findingsAge {
		s.found, s.at = s.cfg.Findings(), time.Now()
	}
	return s.found
}
