package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"causeway/agent/health"
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
)

// newest is what is known of whether the hub list held is the newest. mu of the agent
// guards it.
type newest struct {
	nonce protocol.ListNonce // of the question that is open; zero: none is
	asked time.Time          // when it was asked last, in this session; zero: not yet
	began time.Time          // the session
}

// newestSession notes that a session begins.
func (a *Agent) newestSession() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.newest = newest{began: a.now()}
}

// askWhetherNewest asks the hub of the session whether the hub list held is the newest, if
// it is time to, and looks after the condition. A hub of before does not know the question.
func (a *Agent) askWhetherNewest(now time.Time) {
	a.mu.Lock()
	n := a.newest
	a.mu.Unlock()
	shown := a.want.Now().Shown
	wait := newestEvery
	if shown.Before(n.began) {
		wait = newestAgain
	}
	if !shown.IsZero() && now.Sub(shown) > newestWithin && now.Sub(n.began) > newestGrace {
		a.board.Set(health.HubList, fmt.Sprintf("no hub has shown since %s that the hub list held is the newest: the hub may be of an older version, or somebody stands in for it who has an old key of it; "+
			"compare the hub's key in 'causeway-agent hubs show' with 'causeway status' on the hub's host", shown.Format(time.RFC3339)))
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
		err = a.want.TakeHubListAnswer(answer, n.nonce, n.asked)
	}
	if err != nil {
		a.log.Warn().Err(err).Msg("hub list of the session's hub")
	}
}
