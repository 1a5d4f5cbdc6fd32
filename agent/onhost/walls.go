package onhost

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"causeway/agent/repair"
	"causeway/netns"
)

// neverGivenUp is what keeps something closed: it is put back for ever, however often others take
// it away. Without walls (nftables) peers reach what they shall not; without routes and rules
// packets for other sites take the host's own routes, in clear. A part of the plan (netns.Part) may be a wall too. All else that
// others change cuts the node off, which is closed too.
func neverGivenUp(subject string) bool {
	return slices.Contains(closing, subject) || strings.HasPrefix(subject, netns.PartPrefix)
}

// closing are the plan's own subjects of those.
var closing = []string{string(netns.Nftables), string(netns.Routes), string(netns.Rules)}

// guard takes all peers away while others take the walls down again and again, and gives them back
// once the walls have stood for repair.Stand. k.mu is held.
//
// What the walls alone hold, so that it is closed: 'shields' (what of this host peers
// reach), and that nobody on a LAN or in a container sends into the tunnel as a pod or as this
// node (access-interface). Held without them too: where peers' packets go and where they come
// from (the engines of both ends), and the overlay ports of hubs (proof of the identity), which
// stay in reach: the node has to hear its hub.
func (r *repairs) guard(now time.Time) {
	r.overAt = time.Time{}
	subjects := slices.Clone(closing)
	for subject, e := range r.episodes {
		if e.kind == netns.Parts {
			subjects = append(subjects, subject)
		}
	}
	for _, subject := range subjects {
		if until, fought := r.machine.Fought(subject, now); fought && (r.overAt.IsZero() || until.Before(r.overAt)) {
			r.overAt = until
		}
	}
	walls := string(netns.Nftables)
	e := r.episodes[walls]
	down := e != nil && e.drifting // since the last look, and not put back by it
	k := r.k
	closed := down || r.foughtOver(walls, now)
	if closed == k.fought {
		return
	}
	k.fought = closed
	if err := k.reach(k.Facts().Result.Peers); err != nil {
		k.log.Error().Err(err).Msg("peers were not set")
	}
	if closed {
		k.log.Warn().Msg("others have taken the nftables table down again: no peer is reached until it stands")
	} else {
		k.log.Info().Msg("the nftables table stands: peers are reached again")
	}
}

// foughtOver reports whether a subject that is never given up is fought over. k.mu is held.
func (r *repairs) foughtOver(subject string, now time.Time) bool {
	_, fought := r.machine.Fought(subject, now)
	return fought
}

// goesOn words what becomes of a subject that is undone again and again.
func goesOn(subject string) string {
	switch {
	case subject == string(netns.Nftables):
		return fmt.Sprintf("and now every %s, and no peer is reached until it has stood for %s", repair.FightDelay, repair.Stand)
	case neverGivenUp(subject):
		return fmt.Sprintf("and now every %s", repair.FightDelay)
	}
	return "and not any more"
}
