package service

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"causeway/netns/internal/conntrack"
)

// Bounds of what is counted.
const (
	// MaxFlows is how many services and backends Flows tells apart.
	MaxFlows = 1 << 16
	// maxMetered is how many flows are remembered from one list to the next, by which it is known which began: 4 MB. Of more none is known.
	maxMetered = 1 << 17
	// meterGap is how old the last list may be. Conntrack keeps a TCP connection that ended for 2 minutes, so that of what began since
	// a younger one hardly anything is gone already.
	meterGap = 100 * time.Second
)

// meter remembers the last list of flows.
type meter struct {
	mu    sync.Mutex
	at    time.Time         // of the list; zero: there is none
	flows map[uint64]uint64 // bytes of each, by its hash; nil: they were too many
	sums  map[Of]sum
}

// sum is what was counted since the agent runs.
type sum struct{ begun, bytes uint64 }

// Flows counts the flows to services by one list of conntrack's, and what began since the list before. Beyond MaxFlows it is an
// error, with those that it had by then.
func (t *Table) Flows(ctx context.Context) (map[Of]Count, error) {
	m := &t.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	t.mu.Lock()
	exposed := t.live.exposed
	t.mu.Unlock()
	now := time.Now()
	known := m.flows
	if now.Sub(m.at) > meterGap {
		known = nil
	}
	out, seen, news := map[Of]Count{}, make(map[uint64]uint64, len(known)), map[Of]sum{}
	err := t.each(ctx, func(f conntrack.Flow) error {
		of := Of{f.To.Addr(), f.Proto, f.To.Port(), f.Answers}
		if k, by := exposed[key{f.To.Addr(), f.Proto, f.To.Port()}]; by {
			of.VIP, of.Port = k.vip, k.port
		}
		n, there := out[of]
		if !there && len(out) >= MaxFlows {
			return fmt.Errorf("flows of services: more than %d services and backends", MaxFlows)
		}
		switch {
		case !f.Replied:
			n.Unreplied++
		case f.Proto == unix.IPPROTO_UDP || open(f):
			n.Open++
		}
		n.Counted = n.Counted || f.Counted
		out[of] = n
		h := f.Hash()
		if _, twice := seen[h]; twice || seen == nil {
			return nil
		}
		if seen[h] = f.Bytes; len(seen) > maxMetered {
			seen = nil
			return nil
		}
		x, was := news[of], uint64(0)
		if had, old := known[h]; !old {
			x.begun++
		} else if was = had; was > f.Bytes {
			was = f.Bytes
		}
		x.bytes += f.Bytes - was
		news[of] = x
		return nil
	})
	if err != nil { // the list is not whole, and cannot be compared with another
		m.flows = nil
		return out, err
	}
	m.at, m.flows = now, seen
	if known != nil && seen != nil {
		for of, x := range news {
			if _, there := m.sums[of]; !there && len(m.sums) >= MaxFlows {
				continue
			}
			if m.sums == nil {
				m.sums = map[Of]sum{}
			}
			had := m.sums[of]
			m.sums[of] = sum{had.begun + x.begun, had.bytes + x.bytes}
		}
	}
	for of, x := range m.sums {
		n, there := out[of]
		if !there && len(out) >= MaxFlows {
			continue
		}
		n.Begun, n.Bytes = x.begun, x.bytes
		out[of] = n
	}
	maps.DeleteFunc(out, func(_ Of, n Count) bool { return n == Count{} || n == Count{Counted: true} })
	return out, nil
}
