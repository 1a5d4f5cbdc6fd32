package hublink

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
func (l *Link) newestSession() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.newest = newest{began: l.now()}
}

// askWhetherNewest asks the hub of the session whether the hub list held is the newest, if
// it is time to, and looks after the condition. A hub of before does not know the question.
func (l *Link) askWhetherNewest(now time.Time) {
	l.mu.Lock()
	n := l.newest
	l.mu.Unlock()
	shown := l.want.Now().Shown
	wait := newestEvery
	if shown.Before(n.began) {
		wait = newestAgain
	}
	if !shown.IsZero() && now.Sub(shown) > newestWithin && now.Sub(n.began) > newestGrace {
		l.board.Set(health.HubList, fmt.Sprintf("no hub has shown since %s that the hub list held is the newest: the hub may be of an older version, or somebody stands in for it who has an old key of it; "+
			"compare the hub's key in 'causeway-agent hubs show' with 'causeway status' on the hub's host", shown.Format(time.RFC3339)))
	}
	if !n.asked.IsZero() && now.Sub(n.asked) < wait {
		return
	}
	nonce, err := protocol.NewListNonce()
	if err == nil {
		l.mu.Lock()
		l.newest.nonce, l.newest.asked = nonce, now
		l.mu.Unlock()
		err = l.control.AskHubList(nonce)
	}
	if err != nil {
		l.log.Debug().Err(err).Msg("the hub was not asked for the newest hub list")
	}
}

// hubListTold is the control channel's: the hub's answer.
func (l *Link) hubListTold(_ context.Context, answer protocol.HubListAnswer) {
	l.mu.Lock()
	n := l.newest
	l.newest.nonce = protocol.ListNonce{}
	l.mu.Unlock()
	err := errors.New("nobody asked")
	if n.nonce != (protocol.ListNonce{}) {
		err = l.want.TakeHubListAnswer(answer, n.nonce, n.asked)
	}
	if err != nil {
		l.log.Warn().Err(err).Msg("hub list of the session's hub")
	}
}
