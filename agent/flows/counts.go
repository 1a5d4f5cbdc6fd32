package flows

import (
	"fmt"
	"sync"
	"time"

	"causeway/netns/policy"
)

// counters are the wall's, read at most once a second.
type counters struct {
	mu     sync.Mutex
	read   time.Time
	counts policy.Counts
	err    error
}

// Counts are the wall's counters, no older than a second, with rules by POLICY/RULE. Without a wall it is an error that
// policy.NoTable knows.
func (w *Watcher) Counts() (policy.Counts, error) {
	c := &w.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); c.read.IsZero() || now.Sub(c.read) >= time.Second {
		counts, err := w.cfg.Counted()
		rules := make(map[string]policy.Count, len(counts.Rules))
		for name, n := range counts.Rules {
			rules[ruleName(name)] = n
		}
		counts.Rules = rules
		c.read, c.counts, c.err = now, counts, err
	}
	return c.counts, c.err
}

// direction watches whether conntrack says of flows who began them.
type direction struct {
	looked, grew time.Time
	was          uint64
	known, blind bool
}

// Times of a direction. One stray packet is no news.
const (
	lookEvery  = 10 * time.Second
	calm       = 5 * time.Minute
	manyBlinds = 10 // packets between two looks
)

// look says why flows have no direction, and whether that is news.
func (d *direction) look(now time.Time, wall bool, counts func() (policy.Counts, error)) (cause string, news bool) {
	if !wall {
		news = d.blind
		*d = direction{}
		return "", news
	}
	if now.Sub(d.looked) < lookEvery {
		return "", false
	}
	d.looked = now
	c, err := counts()
	if err != nil {
		return "", false // the part's own drift tells of it
	}
	n := c.Untracked.Packets
	grown := uint64(0)
	if d.known && n > d.was {
		grown = n - d.was
	}
	d.was, d.known = n, true
	switch {
	case grown >= manyBlinds:
		d.grew = now
		if !d.blind {
			d.blind = true
			return fmt.Sprintf("a rule of this host keeps packets of the tunnel from conntrack (notrack; %d just now): policies are judged by the headers of each packet alone, and open UDP's answers the other way round too; find it by: nft list ruleset | grep -B3 notrack", grown), true
		}
	case d.blind && now.Sub(d.grew) >= calm:
		d.blind = false
		return "", true
	}
	return "", false
}
