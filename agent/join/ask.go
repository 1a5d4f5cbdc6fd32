package join

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"causeway/internal/retry"
	"causeway/protocol"
)

// Pauses between tries, and how many more tries there are after the wait is over: the last one
// begins before.
const (
	firstPause = time.Second
	mostPause  = 8 * time.Second
)

// Progress is what keeps a join waiting.
type Progress struct {
	Err   error         // of the last try: one line, what it is and what to look at
	Tries int           // until now
	Left  time.Duration // until no further try is begun
}

// waiter tries requests again while what keeps them passes by itself.
type waiter struct {
	until time.Time
	begun time.Time
	tell  func(Progress)
	pause retry.Backoff
	tries int
}

func newWaiter(c Config) *waiter {
	now := time.Now()
	return &waiter{until: now.Add(c.Wait), begun: now, tell: c.Progress, pause: retry.Backoff{First: firstPause, Most: mostPause}}
}

// do calls try until it succeeds, or fails with what does not pass, or the time is over. The
// error is the last try's.
func (w *waiter) do(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		w.tries++
		pause := w.pause.Next(retry.Asked(err))
		left := time.Until(w.until)
		if !temporary(err) || ctx.Err() != nil {
			return err
		}
		if pause >= left {
			if w.tries > 1 {
				err = fmt.Errorf("%w; tried %d times within %s", err, w.tries, time.Since(w.begun).Round(time.Second))
			}
			return err
		}
		if w.tell != nil {
			w.tell(Progress{err, w.tries, left})
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// temporary is retry.Temporary, and a hub that says that it is busy.
func temporary(err error) bool {
	var r *RefusedError
	return retry.Temporary(err) || errors.As(err, &r) && r.Code == protocol.RefusedBusy
}

// ask sends a request of one try and reads the answer to it, at most max bytes and one. The
// answer is one of status 200; every other one is an error with a *retry.StatusError.
func ask(cl *http.Client, r *http.Request, t protocol.Token, max int64) ([]byte, error) {
	r.Header.Set(protocol.TicketHeader, t.Ticket().String())
	resp, err := cl.Do(r)
	if err != nil {
		return nil, unreachable(t.Addr, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, answered(t.Addr, retry.FromResponse(resp))
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, max+1))
	if err != nil {
		return nil, unreachable(t.Addr, err)
	}
	return b, nil
}

// answered says in one line what an answer means that is no success.
func answered(addr string, e *retry.StatusError) error {
	switch {
	case e.Code == http.StatusTooManyRequests:
		return fmt.Errorf("the hub at %s has too many requests (%w); try again with the same token", addr, e)
	case e.Code == http.StatusNetworkAuthenticationRequired || e.Code/100 == 3:
		return fmt.Errorf("%s answers with %w: no Causeway hub is there, but a captive portal or a proxy; log in there, or check the token's address", addr, e)
	case retry.Status(e.Code):
		return fmt.Errorf("the hub at %s is away or busy, or a proxy before it finds none (%w); try again with the same token", addr, e)
	}
	return fmt.Errorf("%s answers with %w: no Causeway hub is there; check the token's address and any proxy between", addr, e)
}
