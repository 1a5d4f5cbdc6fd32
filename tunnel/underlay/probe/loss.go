package probe

import "time"

// A path that loses much is left for one that does not. Loss is that of
// questions and answers together, over the last ones; a first loss on the
// chosen path makes questions more frequent, so that a few seconds tell.
const (
	remembered = 48                     // questions
	lossWindow = 10 * time.Second       // older ones count no more
	lossWatch  = 3 * time.Second        // after a loss questions are frequent for so long
	lossyEvery = 400 * time.Millisecond // questions over a lossy path: it might be clean again
	watchEvery = 125 * time.Millisecond // questions over the chosen path while it is watched

	// What tells a path that loses 30 % from one that loses 5 (CUSUM: the
	// logarithms of 0.3/0.05 and 0.95/0.7): each loss adds, each answer takes
	// off down to zero, and at lossyAt the path is lossy. At 30 % that are about
	// 17 questions; at 4 % it happens about once in two hours.
	lostScore = 1.8
	keptScore = 0.3
	lossyAt   = 5.5

	cleanFrom = 0.05 // a lossy path is clean again when it loses less than this
	cleanSeen = 16   // of so many

	// mostFails bounds the time that a path has to be good again to 16 seconds:
	// with the search for a dead one it is back in use within 30.
	mostFails = 4
)

// outcomes counts what was asked lately, as far as it is decided.
func (p *path) outcomes(now time.Time) (lost, total int) {
	for _, q := range p.asked {
		age := now.Sub(q.at)
		switch {
		case age > lossWindow:
		case q.done:
			total++
		case age >= late+2*p.rtt:
			lost++
			total++
		}
	}
	return lost, total
}

// gaps counts how often something of what was asked lately was lost between answers.
func (p *path) gaps(now time.Time) (n int) {
	answered, lost := false, false
	for _, q := range p.asked {
		switch age := now.Sub(q.at); {
		case age > lossWindow:
		case q.done:
			if answered && lost {
				n++
			}
			answered, lost = true, false
		case age >= late+2*p.rtt:
			lost = true
		}
	}
	return n
}

// loss is the part of the last questions that was not answered.
func (p *path) loss(now time.Time) float64 {
	lost, total := p.outcomes(now)
	if total == 0 {
		return 0
	}
	return float64(lost) / float64(total)
}

// lossScore weighs losses against answers in their order, see lossyAt. What
// was lost since the last answer does not count yet: the path may be dead.
func (p *path) lossScore(now time.Time) (score float64) {
	since := 0.0
	for _, q := range p.asked {
		switch age := now.Sub(q.at); {
		case age > lossWindow:
		case q.done:
			score, since = max(0, score+since-keptScore), 0
		case age >= late+2*p.rtt:
			since += lostScore
		}
	}
	return score
}

// lostLately reports whether a question of the last seconds was lost.
func (p *path) lostLately(now time.Time) bool {
	for _, q := range p.asked {
		if age := now.Sub(q.at); !q.done && age >= late+2*p.rtt && age < lossWatch {
			return true
		}
	}
	return false
}

// judgeLoss notes whether the path has become lossy or clean. One that lost
// too much while it was used has to make up for it as one that died.
func (p *path) judgeLoss(now time.Time, chosen bool) {
	if !p.alive(now) {
		return
	}
	if !p.lossy {
		if p.lossy = p.lossScore(now) >= lossyAt; p.lossy && chosen {
			p.fails++
		}
		return
	}
	if lost, total := p.outcomes(now); total >= cleanSeen && float64(lost) < cleanFrom*float64(total) {
		p.lossy, p.goodSince = false, now
	}
}
