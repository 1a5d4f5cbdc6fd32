package join

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"
)

// A hub that has too much to do says so, and is asked again.
const (
	busyTries = 5
	busyPause = time.Second // and up to as much again, so that hosts that join together do not come together
)

// busy reports whether a status says that the hub, or what is before it, has too much to do.
func busy(status int) bool { return status == http.StatusTooManyRequests || status >= 500 }

// do sends r, again while the answer is that there is too much to do.
func do(cl *http.Client, r *http.Request) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := cl.Do(r)
		if err != nil || !busy(resp.StatusCode) || try == busyTries {
			return resp, err
		}
		resp.Body.Close()
		if r.GetBody != nil {
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-time.After(busyPause + rand.N(busyPause)):
		}
	}
}

func errBusy(addr string, status int) error {
	return fmt.Errorf("the hub at %s is busy (HTTP status %d); try again with the same token", addr, status)
}
