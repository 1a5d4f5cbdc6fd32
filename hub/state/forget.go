package state

import (
	"cmp"
	"slices"
	"time"

	"causeway/protocol"
)

// What opens nothing any more is kept for a while, for whoever looks at lists, and then forgotten: the audit has it for good.
// An unknown token, admin or NATS user is refused like one that was used, revoked or expired, so nothing comes back by it. What
// is forgotten follows from the log alone, from its times and sequences, so that every hub and every start comes to the same.
//
// Nodes that are gone stay: their numbers, keys and identities are never given or taken again, and agents are told of them.
const (
	// ForgetAfter is how long after it expired a token or admin is kept.
	ForgetAfter = 30 * 24 * time.Hour
	// keptDead is how many tokens are kept that are not open, and how many admins and NATS users that are shut out.
	keptDead = 5000
	// forgetEvery is after how many transactions the state is looked through, beside once a day of the log's time.
	forgetEvery = 1000
)

// forget takes out what t's time makes needless. It is called once for each transaction, before that is the last one.
func (s *State) forget(t Transaction) {
	s.forgot = nil
	const day = 24 * 60 * 60
	if t.Time.Unix()/day == s.Time.Unix()/day && t.Sequence%forgetEvery != 0 {
		return
	}
	var tokens []dead[protocol.TokenID]
	for id, k := range s.Tokens.All() {
		if k.State(t.Time) != TokenOpen {
			tokens = append(tokens, dead[protocol.TokenID]{id, k.Created, k.Expires})
		}
	}
	for _, id := range needless(tokens, t.Time) {
		s.Tokens.Delete(id)
		s.forgot = append(s.forgot, Thing{ThingToken, id})
	}
	var admins, users []dead[string]
	for name, a := range s.Admins.All() {
		if a.State(t.Time) != AdminActive {
			admins = append(admins, dead[string]{name, a.Created, a.Expires})
		}
	}
	for _, name := range needless(admins, t.Time) {
		s.Admins.Delete(name)
		s.forgot = append(s.forgot, Thing{ThingAdmin, name})
	}
	for name, u := range s.NATSUsers.All() {
		if u.Revoked {
			users = append(users, dead[string]{name, u.Created, t.Time}) // they do not expire
		}
	}
	for _, name := range needless(users, t.Time) {
		s.NATSUsers.Delete(name)
		s.forgot = append(s.forgot, Thing{ThingNATSUser, name})
	}
}

// dead is something that opens nothing.
type dead[K any] struct {
	key              K
	created, expires time.Time
}

// needless are those that expired long ago, and of the others the oldest beyond keptDead. l is in the order of keys.
func needless[K any](l []dead[K], now time.Time) (out []K) {
	l = slices.DeleteFunc(l, func(d dead[K]) bool {
		old := now.Sub(d.expires) > ForgetAfter
		if old {
			out = append(out, d.key)
		}
		return old
	})
	slices.SortStableFunc(l, func(a, b dead[K]) int { return cmp.Compare(a.created.UnixNano(), b.created.UnixNano()) })
	for _, d := range l[:max(0, len(l)-keptDead)] {
		out = append(out, d.key)
	}
	return out
}
