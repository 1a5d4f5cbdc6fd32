package join

import (
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
	maxSources    = 10000
	// Sources beyond the table share this.
	strangersRate  = 50
	strangersBurst = 200
	// Whoever was silent so long has a full burst again and is as good as new.
	sourceIdle = burstSeconds * time.Second
	sweepEvery = time.Second
)

// sources limits the rate of each source, of the IPv6 ones by /64. What it
// costs to ask it does not depend on how many there are.
type sources struct {
	rate      int // requests a second
	mu        sync.Mutex
	m         map[netip.Addr]*source
	swept     time.Time
	strangers *rate.Limiter
}

type source struct {
	lim  *rate.Limiter
	last time.Time
}

func newSources(perSecond int) sources {
	return sources{rate: perSecond, m: map[netip.Addr]*source{}, strangers: rate.NewLimiter(strangersRate, strangersBurst)}
}

func (s *sources) allow(a netip.Addr, now time.Time) bool {
	a = stream.SourceOf(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	src, ok := s.m[a]
	if !ok {
		if len(s.m) >= maxSources && now.Sub(s.swept) >= sweepEvery {
			s.swept = now
			for k, v := range s.m {
				if now.Sub(v.last) > sourceIdle {
					delete(s.m, k)
				}
			}
		}
		if len(s.m) >= maxSources {
			return s.strangers.AllowN(now, 1)
		}
		src = &source{lim: rate.NewLimiter(rate.Limit(s.rate), s.rate*burstSeconds)}
		s.m[a] = src
	}
	src.last = now
	return src.lim.AllowN(now, 1)
}
