package onhost

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"causeway/agent/health"
	"causeway/netns"
	"causeway/netns/look"
)

const (
	// passingCalm is how long no packet has to run into the wall until the condition holds again.
	passingCalm = 15 * time.Second
	// passingLooks is how many looks in a row have to find more of them until it does not: while
	// routes change, a few run into it that would have been closed or routed a moment later.
	passingLooks = 2
	// shownPassing is how many rules a condition names.
	shownPassing = 3
)

// passing is what would lead packets past the tunnel, and what the wall of closed ranges
// dropped of them. Its methods may be called concurrently.
type passing struct {
	mu      sync.Mutex
	rules   []look.Passing
	err     error  // they could not be read
	dropped uint64 // by the wall, as last read
	more    int    // looks in a row that found more
	at      time.Time
	applied string // causes of the routes' condition beside these
	note    string
}

// setRoutes sets the condition of the routes: what the last apply says, and what leads past them.
func (k *Keeper) setRoutes(causes, note string) {
	k.passing.mu.Lock()
	k.passing.applied, k.passing.note = causes, note
	k.passing.mu.Unlock()
	k.lookAtRules()
}

// lookAtRules finds rules before the tunnel's anew.
func (k *Keeper) lookAtRules() {
	rules, err := k.look.Passing()
	w := &k.passing
	w.mu.Lock()
	if !slices.Equal(rules, w.rules) { // what was dropped is no word on these
		w.more, w.at = 0, time.Time{}
	}
	w.rules, w.err = rules, err
	w.mu.Unlock()
	k.tellPassing()
}

// countPassing reads what the wall has dropped.
func (k *Keeper) countPassing(ctx context.Context, now time.Time) {
	drops, err := k.host.AccessDrops(ctx)
	if err != nil { // no table: the condition 'repair' says so
		return
	}
	w := &k.passing
	w.mu.Lock()
	n := drops[netns.ClosedDrops]
	switch {
	case n < w.dropped: // the chain was made anew
		w.more = 0
	case n > w.dropped:
		w.more++
		if w.more >= passingLooks {
			w.at = now
		}
	default:
		w.more = 0
	}
	w.dropped = n
	if !w.at.IsZero() && now.Sub(w.at) > passingCalm {
		w.at = time.Time{}
	}
	w.mu.Unlock()
	k.tellPassing()
}

// tellPassing sets the condition of the routes.
func (k *Keeper) tellPassing() {
	facts := k.Facts()
	w := &k.passing
	w.mu.Lock()
	defer w.mu.Unlock()
	var causes []string
	if w.applied != "" {
		causes = append(causes, w.applied)
	}
	var certain, other []string
	for _, r := range w.rules {
		of := r.Of.String()
		if q, ok := facts.Ranges().Of(netip.PrefixFrom(r.Of, r.Of.BitLen())); ok {
			of = q.String()
		}
		text := fmt.Sprintf("%s for %s", r, of)
		if r.Certain {
			certain = append(certain, text)
		} else {
			other = append(other, text)
		}
	}
	switch {
	case len(certain) > 0:
		causes = append(causes, fmt.Sprintf("a rule of routing policy before the tunnel's (pref %d) leads packets elsewhere, and they are dropped, as they would leave in clear: %s; 'causeway diag explain' says the way past it", netns.RulePreference, someOf(certain)))
	case !w.at.IsZero() && len(other) > 0:
		causes = append(causes, fmt.Sprintf("packets for ranges of the tunnel were about to leave by another interface and are dropped; rules of routing policy before the tunnel's (pref %d) that may lead them there: %s; 'causeway diag explain' says the way past them", netns.RulePreference, someOf(other)))
	case !w.at.IsZero():
		causes = append(causes, "packets for ranges of the tunnel were about to leave by another interface and are dropped; no rule of routing policy leads them there: 'causeway diag explain' looks closer")
	case w.err != nil:
		causes = append(causes, w.err.Error())
	}
	if len(causes) > 0 {
		k.board.Set(health.Routes, strings.Join(causes, "; "))
	} else {
		k.board.SetNote(health.Routes, w.note)
	}
}

// someOf names the first of a list.
func someOf(l []string) string {
	if n := len(l) - shownPassing; n > 0 {
		l = append(l[:shownPassing:shownPassing], fmt.Sprintf("and %d more", n))
	}
	return strings.Join(l, ", ")
}
