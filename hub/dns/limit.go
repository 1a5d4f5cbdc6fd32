package dns

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Bounds of what one source is answered. By UDP a source may be forged, so that what is answered to a network is bounded, whoever
// asked: of what is beyond, each second question is told to come by TCP, where nobody forges, and the other one is not answered.
const (
	perNetwork = 100 // a second, of /24 or /56
	burst      = 200 // at once
	maxSources = 8192
	forOthers  = 2000 // a second, for all networks beyond maxSources together
	slip       = 2
	tcpFactor  = 10 // so many times as much by TCP
	sweepRest  = 100 * time.Millisecond
)

// network is that of a source, as a whole.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 24
	if a.Is6() {
		bits = 56
	}
	p, _ := a.Prefix(bits) // fails for no address of a packet
	return p
}

// limiter bounds what each network is answered. Its methods may be called concurrently.
type limiter struct {
	rate  rate.Limit
	burst int

	mu     sync.Mutex
	of     map[netip.Prefix]*rate.Limiter
	others *rate.Limiter
	swept  time.Time
	beyond uint64
}

func newLimiter(factor int) *limiter {
	return &limiter{rate: rate.Limit(perNetwork * factor), burst: burst * factor, of: map[netip.Prefix]*rate.Limiter{}, others: rate.NewLimiter(rate.Limit(forOthers*factor), forOthers*factor)}
}

// take reports whether one more question of a source is answered, and if not, whether it is told to come by TCP.
func (l *limiter) take(from netip.Addr, now time.Time) (ok, slips bool) {
	p := network(from)
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.of[p]
	if x == nil && len(l.of) >= maxSources && now.Sub(l.swept) >= sweepRest {
		l.swept = now
		for k, y := range l.of { // who has asked nothing lately is as good as new
			if y.TokensAt(now) >= float64(l.burst) {
				delete(l.of, k)
			}
		}
	}
	switch {
	case x != nil:
	case len(l.of) >= maxSources:
		x = l.others
	default:
		x = rate.NewLimiter(l.rate, l.burst)
		l.of[p] = x
	}
	if x.AllowN(now, 1) {
		return true, false
	}
	l.beyond++
	return false, l.beyond%slip == 0
}
