package service

import (
	"context"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	svc "causeway/netns/service"
	"causeway/protocol"
)

// maxSeries bounds the services that have series of their own; others are left out, and counted.
const maxSeries = 500

// flowsWait bounds how long a scrape waits for conntrack.
const flowsWait = 2 * time.Second

// counters are what an engine counts itself.
type counters struct {
	reach    *prometheus.CounterVec
	released prometheus.Counter
	prodded  prometheus.Counter
	failed   *prometheus.CounterVec
}

func newCounters() *counters {
	c := &counters{
		reach:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_agent_service_nodes_changed_total", Help: "Times that a node with backends of services was reached otherwise, by how it was then."}, []string{"reach"}),
		released: prometheus.NewCounter(prometheus.CounterOpts{Name: "causeway_agent_service_flows_released_total", Help: "Flows to backends of services that had only begun, or were UDP, and were released to go elsewhere."}),
		prodded:  prometheus.NewCounter(prometheus.CounterOpts{Name: "causeway_agent_service_flows_prodded_total", Help: "Open connections to dead backends of services whose clients were prodded, so that they are reset."}),
	}
	c.failed = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_agent_service_connections_failed_total", Help: "Connections from this node and what is behind it to a service that a backend refused, or did not answer, by site."}, []string{"service", "site", "how"})
	for _, s := range []ReachState{Up, Suspect, Dead, Probation} {
		c.reach.WithLabelValues(s.String())
	}
	return c
}

var (
	backendsDesc    = prometheus.NewDesc("causeway_agent_service_backends", "Backends of a service by site, as this node sees them: used ones, and all.", []string{"service", "site", "which"}, nil)
	connectionsDesc = prometheus.NewDesc("causeway_agent_service_connections", "Connections from this node and what is behind it to a service, by site: open, or unanswered yet.", []string{"service", "site", "which"}, nil)
	begunDesc       = prometheus.NewDesc("causeway_agent_service_connections_begun_total", "Connections from this node and what is behind it to a service that began and were not refused at once, by site, where they are counted every 100 s at least.", []string{"service", "site"}, nil)
	bytesDesc       = prometheus.NewDesc("causeway_agent_service_bytes_total", "What those connections carried both ways, by site, where the kernel counts it (net.netfilter.nf_conntrack_acct); else 0.", []string{"service", "site"}, nil)
	rttDesc         = prometheus.NewDesc("causeway_agent_service_rtt_seconds", "Round trip of this agent's questions to the nodes with a service's backends, by site: of the nearest one; 0: they are here, or it is not known.", []string{"service", "site"}, nil)
	leftOutDesc     = prometheus.NewDesc("causeway_agent_services_without_series", "Services that have no series of their own: there are more than 500.", nil, nil)
	switchesDesc    = prometheus.NewDesc("causeway_agent_service_switches_total", "Times that this node moved the new connections of a service between sites, or reset open ones of a site that is dead.", []string{"service"}, nil)
	lateDesc        = prometheus.NewDesc("causeway_agent_service_late_total", "Times that the agent was late at its own questions to other nodes.", nil, nil)
)

// Describe implements prometheus.Collector.
func (e *Engine) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{backendsDesc, connectionsDesc, begunDesc, bytesDesc, rttDesc, leftOutDesc, lateDesc, switchesDesc} {
		ch <- d
	}
	e.count.reach.Describe(ch)
	e.count.released.Describe(ch)
	e.count.prodded.Describe(ch)
	e.count.failed.Describe(ch)
}

// Collect implements prometheus.Collector.
func (e *Engine) Collect(ch chan<- prometheus.Metric) {
	e.count.reach.Collect(ch)
	e.count.released.Collect(ch)
	e.count.prodded.Collect(ch)
	e.count.failed.Collect(ch)
	ctx, cancel := context.WithTimeout(context.Background(), flowsWait)
	defer cancel()
	v, err := e.View(ctx, "")
	if err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	gauge(leftOutDesc, max(0, len(v.Services)-maxSeries))
	ch <- prometheus.MustNewConstMetric(lateDesc, prometheus.CounterValue, float64(v.Late))
	if len(v.Services) == 0 {
		return
	}
	for name, n := range e.switches.count(v.Services[:min(len(v.Services), maxSeries)]) {
		ch <- prometheus.MustNewConstMetric(switchesDesc, prometheus.CounterValue, float64(n), name)
	}
	flows, err := e.cfg.Table.Flows(ctx)
	open := openOf(flows)
	for _, s := range v.Services[:min(len(v.Services), maxSeries)] {
		type site struct {
			used, all int
			count     svc.Count
			rtt       time.Duration
		}
		sites := map[string]*site{}
		for _, x := range s.Endpoints {
			y := sites[x.Site]
			if y == nil {
				y = &site{}
				sites[x.Site] = y
			}
			if y.all++; x.Use {
				y.used++
			}
			y.count = y.count.Plus(open.of(s, x.Addr))
			if x.RTT > 0 && (y.rtt == 0 || x.RTT < y.rtt) {
				y.rtt = x.RTT
			}
		}
		for name, y := range sites {
			gauge(backendsDesc, y.used, s.Name, name, "used")
			gauge(backendsDesc, y.all, s.Name, name, "all")
			ch <- prometheus.MustNewConstMetric(rttDesc, prometheus.GaugeValue, y.rtt.Seconds(), s.Name, name)
			if err == nil {
				gauge(connectionsDesc, y.count.Open, s.Name, name, "open")
				gauge(connectionsDesc, y.count.Unreplied, s.Name, name, "unanswered")
				ch <- prometheus.MustNewConstMetric(begunDesc, prometheus.CounterValue, float64(y.count.Begun), s.Name, name)
				ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(y.count.Bytes), s.Name, name)
			}
		}
	}
}

// counted are flows by service's address and backend's, whatever the ports.
type counted map[[2]netip.Addr]svc.Count

func openOf(flows map[svc.Of]svc.Count) counted {
	out := counted{}
	for of, n := range flows {
		k := [2]netip.Addr{of.VIP, of.Backend.Addr()}
		out[k] = out[k].Plus(n)
	}
	return out
}

func (c counted) of(s protocol.ServiceView, a netip.Addr) svc.Count {
	vip := s.VIP4
	if a.Is6() {
		vip = s.VIP6
	}
	return c[[2]netip.Addr{vip, a}]
}
