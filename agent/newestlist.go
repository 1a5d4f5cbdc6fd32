package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/protocol"
)

const (
	// newestEvery is how often the hub of a session is asked whether the hub list held
	// is the newest: at the begin of each session, and then so often.
	newestEvery = 6 * time.Hour
	// newestAgain is how soon it is asked again if it did not say so.
	newestAgain = 5 * time.Minute
	// newestWithin is how old its word may get, while there is a session, before
	// that is a condition.
	newestWithin = 24 * time.Hour
	// newestGrace is how long a new session may take to answer.
	newestGrace = time.Minute
	// newestKept is how much later its word is before it goes to disk again.
	newestKept = time.Hour
)

// newest is what is known of whether the hub list held is the newest. mu of the agent
// guards it.
type newest struct {
	nonce protocol.ListNonce // of the question that is open; zero: none is
	asked time.Time          // when it was asked last, in this session; zero: not yet
	began time.Time          // the session
	shown time.Time          // when the list held was last shown to be the newest, by this or an earlier run; zero: never
}

// newestSession notes that a session begins.
func (a *Agent) newestSession() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.newest = newest{began: a.now(), shown: a.newest.shown}
}

// askWhetherNewest asks the hub of the session whether the hub list held is the newest, if
// it is time to, and looks after the condition. A hub of before does not know the question.
func (a *Agent) askWhetherNewest(now time.Time) {
	a.mu.Lock()
	n := a.newest
	a.mu.Unlock()
	wait := newestEvery
	if n.shown.Before(n.began) {
		wait = newestAgain
	}
	if !n.shown.IsZero() && now.Sub(n.shown) > newestWithin && now.Sub(n.began) > newestGrace {
		a.board.Set(health.HubList, fmt.Sprintf("no hub has shown since %s that the hub list held is the newest: the hub may be of an older version, or somebody stands in for it who has an old key of it; "+
			"compare the hub's key in 'causeway-agent hubs show' with 'causeway status' on the hub's host", n.shown.Format(time.RFC3339)))
	}
	if !n.asked.IsZero() && now.Sub(n.asked) < wait {
		return
	}
	nonce, err := protocol.NewListNonce()
	if err == nil {
		a.mu.Lock()
		a.newest.nonce, a.newest.asked = nonce, now
		a.mu.Unlock()
		err = a.control.AskHubList(nonce)
	}
	if err != nil {
		a.log.Debug().Err(err).Msg("the hub was not asked for the newest hub list")
	}
}

// hubListTold is the control channel's: the hub's answer.
func (a *Agent) hubListTold(_ context.Context, answer protocol.HubListAnswer) {
	a.mu.Lock()
	n := a.newest
	a.newest.nonce = protocol.ListNonce{}
	a.mu.Unlock()
	err := errors.New("nobody asked")
	if n.nonce != (protocol.ListNonce{}) {
		err = a.takeHubListAnswer(answer, n.nonce, n.asked)
	}
	if err != nil {
		a.log.Warn().Err(err).Msg("hub list of the session's hub")
	}
}

// takeHubListAnswer stores a newer list, and that the list is the newest if that was shown:
// n was asked at this time.
func (a *Agent) takeHubListAnswer(answer protocol.HubListAnswer, n protocol.ListNonce, asked time.Time) error {
	var shown bool
	if answer.Fresh != nil {
		if _, err := answer.OpenFresh(a.own.Now().Pin, n); err != nil {
			return err
		}
		shown = true
	}
	a.applyMu.Lock()
	defer a.applyMu.Unlock()
	if why := a.takeHubList(answer.SignedHubList); why != "" {
		return errors.New(why)
	}
	a.mu.Lock()
	shown = shown && bytes.Equal(a.signed.Payload, answer.Payload)
	if shown && asked.After(a.newest.shown) {
		a.newest.shown = asked.UTC()
	}
	kept := a.own.Now().HubListConfirmed
	a.mu.Unlock()
	if !shown {
		return nil
	}
	a.board.Set(health.HubList, "")
	if asked.Sub(kept) < newestKept {
		return nil
	}
	return a.own.Change(func(id *identity.Identity) { id.HubListConfirmed = asked.UTC() })
}
