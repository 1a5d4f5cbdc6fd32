package reconcile

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count the runs of steps.
type metrics struct{ runs, errors, seconds *prometheus.CounterVec }

func newMetrics(steps []*step) *metrics {
	vec := func(name, help string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_hub_reconcile_" + name, Help: help}, []string{"step"})
		for _, s := range steps { // a counter that begins at 0 has a rate from its first run on
			v.WithLabelValues(s.name)
		}
		return v
	}
	return &metrics{
		runs:    vec("runs_total", "Runs of what the hub does by itself, by step."),
		errors:  vec("errors_total", "Errors of what the hub does by itself, by step."),
		seconds: vec("seconds_total", "Time that runs of what the hub does by itself took, by step, without what is stored beside them."),
	}
}

func (m *metrics) ran(step string, took time.Duration) {
	m.runs.WithLabelValues(step).Inc()
	m.seconds.WithLabelValues(step).Add(took.Seconds())
}

func (m *metrics) failed(step string) { m.errors.WithLabelValues(step).Inc() }

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range []*prometheus.CounterVec{m.runs, m.errors, m.seconds} {
		v.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, v := range []*prometheus.CounterVec{m.runs, m.errors, m.seconds} {
		v.Collect(ch)
	}
}

// Metrics count the runs of each step.
func (l *Loop) Metrics() prometheus.Collector { return l.metrics }
