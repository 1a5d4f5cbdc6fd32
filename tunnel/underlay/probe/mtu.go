package probe

import (
	"time"

	"causeway/protocol"
)

// The largest datagram that a path carries is found by padded questions (RFC
// 8899). Sizes are payloads of UDP, in steps of WireGuard's padding. A size
// arrives if a question of that size was answered: the answer is small and
// names the question by its nonce, and the MAC of a question covers its
// length, so that what was cut on the way is not answered.
//
// Padded questions never count as evidence against a path: they get lost where
// the path is well.
const (
	sizeStep = 16
	maxSize  = protocol.ProbeSize + protocol.MaxProbePadding
	// streamSize is the largest that is looked for over a stream, which takes
	// any: about that of UDP, which comes back.
	streamSize = 1472

	searchAttempts  = 3                      // of each size in a search
	confirmAttempts = 5                      // of the confirmed size, before it is taken back: chance alone shall not do that
	attemptWait     = 100 * time.Millisecond // plus 1.5 round trips, between attempts
	confirmEvery    = 2500 * time.Millisecond
	standbyConfirm  = 30 * time.Second // of a path that carries no traffic
	raiseEvery      = 30 * time.Second // doubled each time that a raised size is taken back
	raiseSeldom     = 10 * time.Minute
	mostAtOnce      = 3 // sizes asked for in one round
)

// likelySizes are what links of 1280, 1400, 1500 and 9000 bytes and the
// largest that is looked for leave for IPv4 or IPv6, and one for a path that
// is worse than any of them.
var likelySizes = [...]int{544, 1232, 1344, 1440, 1472, 8944, 9184}

// firstSizes open a search in which nothing is known.
var firstSizes = [...]int{1232, 1472, 8944}

// sizeSearch looks for the largest size on one path. The zero value has not
// begun.
type sizeSearch struct {
	most int // the largest to look for; 0: maxSize
	size int // the largest that is known to arrive; 0: not known yet
	low  int // arrives, in this search; 0: small ones alone
	high int // does not arrive

	round   []asked // ascending; empty: nothing is asked now
	confirm bool    // the round asks for size again
	started time.Time
	tries   int
	next    time.Time // of the next attempt, or of the next confirmation

	raiseAt  time.Time
	raisePer time.Duration
	raising  bool
	raised   time.Time // when a raise last succeeded
	open     []question
}

// asked is a size that a round asks for.
type asked struct {
	size     int
	answered bool
	refused  bool // by our own interface
}

// want returns the sizes to ask for now. chosen: the path carries traffic, so
// its size is confirmed again and again. mayStart: a first search may begin.
func (m *sizeSearch) want(now time.Time, p *path, chosen, mayStart bool) []int {
	if !p.alive(now) {
		m.round, m.raising = nil, false // what gets lost now says nothing about sizes
		return nil
	}
	if len(m.round) > 0 {
		if now.Before(m.next) {
			return nil
		}
		if m.tries >= m.attempts() {
			m.conclude(now, p)
		}
	} else {
		switch {
		case m.size == 0:
			if !chosen && !mayStart || now.Before(m.next) {
				return nil
			}
			m.low, m.high = 0, m.top()+sizeStep
			m.begin(now, false)
		case !chosen && now.Before(m.next.Add(standbyConfirm-confirmEvery)):
			return nil
		case !now.Before(m.next):
			m.low, m.high = 0, m.size
			m.begin(now, true)
		case !now.Before(m.raiseAt):
			m.low, m.high = m.size, m.top()+sizeStep
			m.raiseAt, m.raising = now.Add(m.raisePer), true
			m.begin(now, false)
		}
	}
	return m.attempt(now, p)
}

func (m *sizeSearch) attempts() int {
	if m.confirm {
		return confirmAttempts
	}
	return searchAttempts
}

// begin starts a round between low and high.
func (m *sizeSearch) begin(now time.Time, confirm bool) {
	m.round, m.confirm, m.tries, m.started, m.next = m.round[:0], confirm, 0, now, now
	if confirm {
		m.round = append(m.round, asked{size: m.size})
		return
	}
	for _, s := range m.pick(m.low, m.high) {
		m.round = append(m.round, asked{size: s})
	}
	if len(m.round) == 0 {
		m.settle(now)
	}
}

func (m *sizeSearch) top() int {
	if m.most > 0 {
		return m.most
	}
	return maxSize
}

// pick chooses what to ask for between low and high, both excluded.
func (m *sizeSearch) pick(low, high int) (l []int) {
	likely := likelySizes[:]
	if low == 0 && high > m.top() {
		likely = firstSizes[:]
	}
	for _, s := range likely {
		if s > low && s < high {
			l = append(l, s)
		}
	}
	if low > 0 && high > m.top() { // a raise: if the next size does not arrive, no larger one does
		if next := low + sizeStep; next < high && (len(l) == 0 || l[0] != next) {
			l = append([]int{next}, l...)
		}
		return l[:min(len(l), mostAtOnce)]
	}
	if len(l) > 0 {
		return l[max(0, len(l)-mostAtOnce):]
	}
	first := max(low, protocol.ProbeSize)/sizeStep*sizeStep + sizeStep
	n := (high - first + sizeStep - 1) / sizeStep
	for i := range min(n, mostAtOnce) {
		l = append(l, first+n*i/min(n, mostAtOnce)*sizeStep)
	}
	return l
}

// attempt lists what is open of the round: sizes below one that arrives arrive too.
func (m *sizeSearch) attempt(now time.Time, p *path) (l []int) {
	if len(m.round) == 0 || now.Before(m.next) {
		return nil
	}
	m.tries++
	m.next = now.Add(attemptWait + p.rtt*3/2)
	if m.confirm && m.tries == 2 { // what carries on if it is true
		var lower []asked
		for _, s := range m.pick(0, m.size) {
			lower = append(lower, asked{size: s})
		}
		m.round = append(lower, m.round...)
	}
	for _, a := range m.round {
		if a.size > m.best() && !a.refused {
			l = append(l, a.size)
		}
	}
	return l
}

// best is the largest size of the round that was answered.
func (m *sizeSearch) best() (size int) {
	for _, a := range m.round {
		if a.answered {
			size = a.size
		}
	}
	return size
}

// decided reports whether nothing of the round is open any more.
func (m *sizeSearch) decided() bool {
	best := m.best()
	for _, a := range m.round {
		if a.size > best && !a.refused {
			return false
		}
	}
	return true
}

// conclude ends a round and begins the next, if there is something left to
// find.
func (m *sizeSearch) conclude(now time.Time, p *path) {
	if len(m.round) == 0 {
		return
	}
	best := m.best()
	if m.confirm && best == m.size {
		m.settle(now)
		return
	}
	refused := m.round[len(m.round)-1].refused
	if best == 0 && !refused && !p.lastAnswer.After(m.started) {
		// Nothing at all gets through: that is no matter of size.
		m.round, m.raising, m.next = nil, false, now.Add(time.Second)
		return
	}
	if m.confirm {
		m.high = m.size
		if m.raised.IsZero() || now.Sub(m.raised) > 2*m.raisePer {
			m.raisePer = raiseEvery
		} else {
			m.raisePer = min(2*m.raisePer, raiseSeldom)
		}
		m.raiseAt = now.Add(m.raisePer)
	}
	for i := len(m.round) - 1; i >= 0 && m.round[i].size > best; i-- {
		m.high = min(m.high, m.round[i].size)
	}
	m.low = max(m.low, best)
	if m.low > 0 {
		if m.raising && m.low > m.size {
			m.raised = now
		}
		m.size = m.low
	} else if m.confirm {
		m.size = 0
	}
	m.begin(now, false)
}

// settle ends a search.
func (m *sizeSearch) settle(now time.Time) {
	m.round, m.confirm, m.raising, m.next = nil, false, false, now.Add(confirmEvery)
	if m.raisePer == 0 {
		m.raisePer = raiseEvery
	}
	if m.raiseAt.IsZero() {
		m.raiseAt = now.Add(m.raisePer)
	}
}

// sent notes a padded question.
func (m *sizeSearch) sent(q question) {
	if len(m.open) == 24 {
		m.open = append(m.open[:0], m.open[1:]...)
	}
	m.open = append(m.open, q)
}

// find returns the open padded question with this nonce.
func (m *sizeSearch) find(nonce uint64, now time.Time) (question, bool) {
	for _, q := range m.open {
		if q.nonce == nonce && now.Sub(q.at) < lostAfter {
			return q, true
		}
	}
	return question{}, false
}

// answered takes the answer to q.
func (m *sizeSearch) answered(now time.Time, p *path, q question) {
	keep := m.open[:0]
	for _, o := range m.open {
		if o.nonce != q.nonce {
			keep = append(keep, o)
		}
	}
	m.open = keep
	for i := range m.round {
		if m.round[i].size == q.size && !q.at.Before(m.started) {
			m.round[i].answered = true
			if m.decided() {
				m.conclude(now, p)
			}
			return
		}
	}
}

// refuse says that our own interface takes nothing of this size.
func (m *sizeSearch) refuse(now time.Time, p *path, size int) {
	if len(m.round) == 0 {
		return
	}
	hit := false
	for i := range m.round {
		if m.round[i].size >= size {
			m.round[i].refused, hit = true, true
		}
	}
	if !hit {
		return
	}
	if m.confirm && m.tries == 1 {
		m.next = now // no need to wait for what cannot come
	}
	if m.decided() && (!m.confirm || m.tries > 1) {
		m.conclude(now, p)
	}
}

// again has the size confirmed as soon as the path answers: it was out of use.
func (m *sizeSearch) again(now time.Time) {
	m.round, m.raising, m.open, m.next = nil, false, m.open[:0], now
}

// wake is when want has something to say again; zero: not by itself.
func (m *sizeSearch) wake(now time.Time, p *path, chosen bool) time.Time {
	switch {
	case !p.alive(now) || len(m.round) == 0 && (m.size == 0 || !chosen):
		return time.Time{}
	case len(m.round) > 0 || m.next.Before(m.raiseAt):
		return m.next
	}
	return m.raiseAt
}
