package main

import (
	"cmp"
	"slices"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// meter makes rates of the counters that nodes report. Nodes report them every few
// seconds, so a rate is what passed between two reports.
type meter struct {
	last map[pathKey]reading
}

type pathKey struct {
	node string
	peer protocol.NodeNumber
}

type reading struct {
	at             time.Time
	rx, tx         uint64
	rxRate, txRate float64 // bytes a second
	rated          bool
}

// staleRate is how long a rate stands without a new report.
const staleRate = 3 * protocol.StatusInterval

// feed takes the paths of nodes as they were read at a time.
func (m *meter) feed(at time.Time, nodes []api.Node) {
	next := map[pathKey]reading{}
	for _, n := range nodes {
		for _, p := range n.Paths {
			k := pathKey{n.Name, p.Peer}
			r, ok := m.last[k]
			switch {
			case !ok || p.RxBytes < r.rx || p.TxBytes < r.tx: // new, or its agent started again
				r = reading{at: at, rx: p.RxBytes, tx: p.TxBytes}
			case p.RxBytes != r.rx || p.TxBytes != r.tx:
				s := at.Sub(r.at).Seconds()
				r = reading{at, p.RxBytes, p.TxBytes, float64(p.RxBytes-r.rx) / s, float64(p.TxBytes-r.tx) / s, s > 0}
			case at.Sub(r.at) > staleRate:
				r.rxRate, r.txRate, r.rated = 0, 0, true
			}
			next[k] = r
		}
	}
	m.last = next
}

// load is the traffic of a node, or between two sites.
type load struct {
	from, to string // a node and its site, or two sites
	state    string
	rx, tx   float64 // bytes a second
	rated    bool
	rtt      time.Duration // the largest
	loss     float64       // the largest
	paths    map[protocol.PathKind]int
}

func (l *load) add(p protocol.PathStatus, r reading) {
	l.rx += r.rxRate
	l.tx += r.txRate
	l.rated = l.rated || r.rated
	l.rtt, l.loss = max(l.rtt, p.RTT), max(l.loss, p.Loss)
	if p.Path != protocol.PathNone {
		l.paths[p.Shown()]++
	}
}

// nodeLoads is a load for each node that is there, the busiest first. The path to the
// hub counts for neither.
func (m *meter) nodeLoads(nodes []api.Node) []*load {
	var out []*load
	for _, n := range nodes {
		if n.State == api.NodeLeft || n.State == api.NodeRevoked {
			continue
		}
		l := &load{from: n.Name, to: n.Site, state: nodeState(n).Text, paths: map[protocol.PathKind]int{}}
		for _, p := range n.Paths {
			if p.Name != "hub" {
				l.add(p, m.last[pathKey{n.Name, p.Peer}])
			}
		}
		out = append(out, l)
	}
	return busiest(out)
}

// siteLoads is a load for each pair of sites that talk, as the first one's nodes see it.
func (m *meter) siteLoads(nodes []api.Node) []*load {
	site := map[protocol.NodeNumber]string{}
	for _, n := range nodes {
		site[n.Number] = n.Site
	}
	pairs := map[[2]string]*load{}
	var out []*load
	for _, n := range nodes {
		for _, p := range n.Paths {
			to, ok := site[p.Peer]
			if !ok {
				continue
			}
			k := [2]string{n.Site, to}
			if pairs[k] == nil {
				pairs[k] = &load{from: n.Site, to: to, paths: map[protocol.PathKind]int{}}
				out = append(out, pairs[k])
			}
			pairs[k].add(p, m.last[pathKey{n.Name, p.Peer}])
		}
	}
	return busiest(out)
}

func busiest(l []*load) []*load {
	slices.SortStableFunc(l, func(a, b *load) int {
		return cmp.Or(-cmp.Compare(a.rx+a.tx, b.rx+b.tx), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	return l
}
