package agent

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"causeway/agent/dns"
	"causeway/agent/repair"
	"causeway/netns"
	"causeway/netns/policy"
	"causeway/protocol"
)

// counters are what the agent counts itself.
type counters struct {
	sessions, ended  prometheus.Counter
	inventory        *prometheus.CounterVec
	repairs, givenUp *prometheus.CounterVec
	names            *prometheus.CounterVec
}

// metrics are the agent's own, read from its state when they are asked for.
type metrics struct {
	answers                 *answers
	wall                    func() time.Time
	info, condition, peers  *prometheus.Desc
	refused, netmap, netAge *prometheus.Desc
	rx, tx, dropped, drops  *prometheus.Desc
	access                  *prometheus.Desc
	passed, passedBytes     *prometheus.Desc
	closed                  *prometheus.Desc
	loss, rtt, clock        *prometheus.Desc
	suspects                *prometheus.Desc
}

// accessWait bounds how long a scrape waits for nftables.
const accessWait = 2 * time.Second

func newCounters(reg prometheus.Registerer) *counters {
	c := &counters{
		repairs:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_agent_repairs_total", Help: "Times that what others changed on the host was put back, by kind."}, []string{"kind"}),
		givenUp:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_agent_repairs_given_up_total", Help: "Times that something was changed again and again, and was given up or goes on slowly, by kind."}, []string{"kind"}),
		sessions:  prometheus.NewCounter(prometheus.CounterOpts{Name: "causeway_agent_control_sessions_total", Help: "Control sessions that a hub welcomed."}),
		ended:     prometheus.NewCounter(prometheus.CounterOpts{Name: "causeway_agent_control_sessions_ended_total", Help: "Control sessions and attempts at one that ended."}),
		inventory: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_agent_inventory_total", Help: "Inventory messages by outcome."}, []string{"outcome"}),
	}
	c.names = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_agent_dns_questions_total", Help: "Questions for names by the answer's code; dropped: none was given, for they were too many or no questions."}, []string{"code"})
	for _, code := range dns.Codes {
		c.names.WithLabelValues(code)
	}
	for _, outcome := range []string{"acknowledged", "error"} {
		c.inventory.WithLabelValues(outcome)
	}
	for _, k := range netns.Kinds {
		c.repairs.WithLabelValues(string(k))
		c.givenUp.WithLabelValues(string(k))
	}
	reg.MustRegister(c.repairs, c.givenUp, c.names, c.sessions, c.ended, c.inventory, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return c
}

func registerMetrics(a *answers, now func() time.Time, reg prometheus.Registerer) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("causeway_agent_"+name, help, labels, nil)
	}
	m := &metrics{answers: a, wall: now,
		info:        desc("info", "The agent; always 1.", "version", "engine", "node", "site"),
		condition:   desc("condition", "1 where a health condition holds.", "condition"),
		peers:       desc("peers", "Peers and hubs by the path chosen; none: sought, and there is none; idle: no traffic for a while.", "path"),
		refused:     desc("netmap_refused_parts", "Parts of the held netmap that were refused."),
		netmap:      desc("netmap_version", "Version of the netmap held: the sequence of the hub's state log."),
		netAge:      desc("netmap_confirmed_timestamp_seconds", "When a hub last stood by the netmap held."),
		rx:          desc("receive_bytes_total", "Bytes received from peers and hubs inside the tunnel."),
		dropped:     desc("dropped_datagrams_total", "Datagrams received and not delivered, by reason.", "reason"),
		drops:       desc("dropped_packets_total", "Packets of the tunnel and messages of WireGuard that the engine dropped, by reason; the engine wireguard-go counts elsewhere alone.", "reason"),
		access:      desc("access_dropped_packets_total", "Packets that the host's nftables dropped since the rules were last made: from the tunnel to what is not this node's (destination) or to the host itself (shields), into it from a source that is not this node's (source) or by an interface where that is not (interface); and for ranges of the tunnel by another way than it (closed).", "reason"),
		passed:      desc("policy_packets_total", "Packets that passed by a rule of a policy here, POLICY/RULE, since it was last made; of more than 1000 rules the last by name together, as others.", "rule"),
		passedBytes: desc("policy_bytes_total", "The same in bytes.", "rule"),
		closed:      desc("policy_judged_packets_total", "Packets that no rule of a policy opened: answered with a refusal (refused), or not (dropped); and those judged by their headers alone, for conntrack was kept from them (untracked) or made nothing of them (invalid).", "verdict"),
		tx:          desc("transmit_bytes_total", "Bytes sent to peers and hubs inside the tunnel."),
		loss:        desc("path_loss_max_ratio", "What the worst path of a kind loses of its probes; no series where no path is of that kind.", "path"),
		suspects:    desc("paths_without_data", "Paths to peers and hubs that answer probes and are left alone, because they carry no data, or little."),
		rtt:         desc("path_rtt_max_seconds", "Round trip time of the longest path of a kind; no series where no path is of that kind.", "path"),
		clock:       desc("time_seconds", "What time it is by this host's clock."),
	}
	reg.MustRegister(m)
}

func (c *counters) mended(kind string) { c.repairs.WithLabelValues(kind).Inc() }
func (c *counters) gaveUp(kind string) { c.givenUp.WithLabelValues(kind).Inc() }

func (c *counters) named(code string) { c.names.WithLabelValues(code).Inc() }

func (c *counters) sessionBegan() { c.sessions.Inc() }
func (c *counters) sessionEnded() { c.ended.Inc() }

func (c *counters) published(err error) {
	if err != nil {
		c.inventory.WithLabelValues("error").Inc()
		return
	}
	c.inventory.WithLabelValues("acknowledged").Inc()
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.info, m.condition, m.peers, m.refused, m.netmap, m.netAge, m.rx, m.tx, m.dropped, m.drops, m.access, m.passed, m.passedBytes, m.closed, m.loss, m.rtt, m.clock, m.suspects} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	a := m.answers
	gauge(m.info, 1, a.version, a.tunnel.EngineName(), a.want.Name(), a.own.Now().Site)
	for _, c := range a.board.List() {
		v := 0.0
		if c.OK {
			v = 1
		}
		gauge(m.condition, v, c.Name)
	}
	m.collectPaths(gauge)
	gauge(m.suspects, float64(len(m.answers.tunnel.Suspects())))
	gauge(m.clock, float64(m.wall().UnixMilli())/1000)
	refused, version, confirmed := len(a.host.Facts().Result.Refused), uint64(0), 0.0
	if held := a.want.Now().Held; held != nil {
		version, confirmed = held.Netmap.Version, float64(held.Confirmed.Unix())
	}
	gauge(m.refused, float64(refused))
	gauge(m.netmap, float64(version))
	gauge(m.netAge, confirmed)
	for reason, n := range a.tunnel.Dropped() {
		ch <- prometheus.MustNewConstMetric(m.dropped, prometheus.CounterValue, float64(n), reason)
	}
	for reason, n := range a.tunnel.Drops() {
		ch <- prometheus.MustNewConstMetric(m.drops, prometheus.CounterValue, float64(n), string(reason))
	}
	ctx, cancel := context.WithTimeout(context.Background(), accessWait)
	defer cancel()
	if drops, err := a.net.AccessDrops(ctx); err == nil { // no table: no series
		for reason, n := range drops {
			ch <- prometheus.MustNewConstMetric(m.access, prometheus.CounterValue, float64(n), reason)
		}
	}
	m.collectPolicy(ch)
	rx, tx := repair.Traffic(a.tunnel.Paths())
	ch <- prometheus.MustNewConstMetric(m.rx, prometheus.CounterValue, float64(rx))
	ch <- prometheus.MustNewConstMetric(m.tx, prometheus.CounterValue, float64(tx))
}

// maxRuleSeries bounds the rules that have a series of their own.
const maxRuleSeries = 1000

// collectPolicy tells of the wall; without any there are no series.
func (m *metrics) collectPolicy(ch chan<- prometheus.Metric) {
	if wallOf(m.answers.host.Facts()) == nil {
		return
	}
	c, err := m.answers.flows.Counts()
	if err != nil {
		return
	}
	count := func(d *prometheus.Desc, v uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), label)
	}
	var others policy.Count
	names := slices.Sorted(maps.Keys(c.Rules))
	for i, name := range names {
		n := c.Rules[name]
		if i >= maxRuleSeries {
			others.Packets, others.Bytes = others.Packets+n.Packets, others.Bytes+n.Bytes
			continue
		}
		count(m.passed, n.Packets, name)
		count(m.passedBytes, n.Bytes, name)
	}
	if len(names) > maxRuleSeries {
		count(m.passed, others.Packets, "others")
		count(m.passedBytes, others.Bytes, "others")
	}
	for verdict, n := range map[string]policy.Count{"refused": c.Refused, "dropped": c.Dropped, "untracked": c.Untracked, "invalid": c.Invalid} {
		count(m.closed, n.Packets, verdict)
	}
}

// collectPaths tells of paths by their kind: a series for each peer would be the square of a
// cluster's nodes. Which one is the worst 'causeway doctor' names.
func (m *metrics) collectPaths(gauge func(*prometheus.Desc, float64, ...string)) {
	kinds := map[protocol.PathKind][]protocol.PathStatus{protocol.PathNone: nil, protocol.PathIdle: nil, protocol.PathDirect: nil, protocol.PathRelay: nil, protocol.PathStream: nil}
	for _, p := range m.answers.tunnel.Paths() {
		k := p.Path
		if p.Idle {
			k = protocol.PathIdle
		}
		if l, ok := kinds[k]; ok {
			kinds[k] = append(l, p)
		}
	}
	for k, l := range kinds {
		gauge(m.peers, float64(len(l)), string(k))
		if k == protocol.PathNone || k == protocol.PathIdle || len(l) == 0 { // no probes
			continue
		}
		var loss float64
		var rtt time.Duration
		for _, p := range l {
			loss, rtt = max(loss, p.Loss), max(rtt, p.RTT)
		}
		gauge(m.loss, loss, string(k))
		gauge(m.rtt, rtt.Seconds(), string(k))
	}
}
