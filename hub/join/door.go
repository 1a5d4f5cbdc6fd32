package join

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"causeway/tunnel/underlay/stream"
)

const (
	// DefaultSourceRate is how many requests one source may send in a second, in the
	// long run, and ten times as many at once.
	DefaultSourceRate = 10
	// MaxSourceRate bounds the setting: one source must not use up what all may.
	MaxSourceRate = overallRate
	burstSeconds  = 10
)

// Rates of the door, requests a second. Joins are rare; what is above these is an attack or a
// mistake. What is kept back of it is for those who were quiet until now, so that a flood, from
// however many addresses, leaves room for a host that joins: it takes two requests.
const (
	overallRate   = 500
	overallBurst  = 1000
	reserveRate   = 200
	reserveBurst  = 400
	quietEvery    = 20 * time.Second // a source is quiet that asks so seldom
	quietBurst    = 10
	quietNetRate  = 40 // of all quiet ones of a network, an IPv4 /24 or IPv6 /48
	quietNetBurst = 200
	openRate      = 1 // of a source's requests that are opened, without room, to see whether they show a token
	openBurst     = 10
	tokenRate     = 2 // of requests that show a token or its ticket, which need no room
	tokenBurst    = 20
)

// door decides which requests are answered. Whoever asks is known by the address alone, which a
// flood has many of; what it costs to ask it, and what it keeps, do not depend on how many.
type door struct {
	sources *sketch[netip.Addr]
	quiet   *sketch[netip.Addr]
	nets    *sketch[netip.Prefix]
	opens   *sketch[netip.Addr]
	tokens  *sketch[string]
	all     *rate.Limiter
	reserve *rate.Limiter
}

func newDoor(perSecond int) *door {
	return &door{
		sources: newSketch[netip.Addr](float64(perSecond), float64(perSecond*burstSeconds)),
		quiet:   newSketch[netip.Addr](1/quietEvery.Seconds(), quietBurst),
		nets:    newSketch[netip.Prefix](quietNetRate, quietNetBurst),
		opens:   newSketch[netip.Addr](openRate, openBurst),
		tokens:  newSketch[string](tokenRate, tokenBurst),
		all:     rate.NewLimiter(overallRate-reserveRate, overallBurst-reserveBurst), reserve: rate.NewLimiter(reserveRate, reserveBurst),
	}
}

// source reports whether a's source is within its own rate.
func (d *door) source(a netip.Addr, now time.Time) bool {
	return d.sources.take(stream.SourceOf(a), now)
}

// room reports whether there is room for a request of a.
func (d *door) room(a netip.Addr, now time.Time) bool {
	a = stream.SourceOf(a)
	quiet := d.quiet.take(a, now)
	return d.all.AllowN(now, 1) || quiet && d.nets.take(network(a), now) && d.reserve.AllowN(now, 1)
}

// open reports whether a request of a may be opened although there is no room for it.
func (d *door) open(a netip.Addr, now time.Time) bool { return d.opens.take(stream.SourceOf(a), now) }

// token reports whether a request that shows the token of that id, or its ticket, is answered
// although there is no room for those that show none.
func (d *door) token(id string, now time.Time) bool { return d.tokens.take(id, now) }

// network is what counts as one network.
func network(a netip.Addr) netip.Prefix {
	bits := 48
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits) // fails for no address without a zone
	return p
}

// sketch holds token buckets by key, in as much memory as it was made with: each key has a cell
// in either row, which it may share with others, and what it is judged by is the emptier.
type sketch[K comparable] struct {
	rate, burst float64
	mu          sync.Mutex
	start       time.Time
	rows        [2]struct {
		seed  maphash.Seed
		cells []cell
	}
}

// cell is a bucket: what was used of it at a time.
type cell struct{ used, at float32 }

const cells = 1 << 15

func newSketch[K comparable](perSecond, burst float64) *sketch[K] {
	s := &sketch[K]{rate: perSecond, burst: burst, start: time.Now()}
	for i := range s.rows {
		s.rows[i].seed, s.rows[i].cells = maphash.MakeSeed(), make([]cell, cells)
	}
	return s
}

// take takes one from the bucket of key, if there is one left.
func (s *sketch[K]) take(key K, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := now.Sub(s.start).Seconds()
	var at [2]*cell
	least := s.burst
	for i := range s.rows {
		r := &s.rows[i]
		c := &r.cells[maphash.Comparable(r.seed, key)%cells]
		if d := t - float64(c.at); d > 0 {
			c.used = float32(max(0, float64(c.used)-d*s.rate))
		}
		c.at = float32(t)
		at[i], least = c, min(least, float64(c.used))
	}
	if least+1 > s.burst {
		return false
	}
	for _, c := range at { // a cell that others filled is as full as it was
		c.used = max(c.used, float32(least+1))
	}
	return true
}
