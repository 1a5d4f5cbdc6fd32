package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"causeway/agent/identity"
	"causeway/agent/join"
	"causeway/protocol"
)

// Joins is what joins prints.
type Joins struct {
	Joined  int      `json:"joined"`
	Errors  []string `json:"errors"` // of those that failed
	Tries   int64    `json:"tries"`  // that were told to come again
	Seconds float64  `json:"seconds"`
	Slowest float64  `json:"slowest_seconds"`
}

// joins redeems each token of a file, a line each, by the agent's own code, all in the same
// moment, as as many hosts behind this one's address would. State directories are made in dir.
func joins(ctx context.Context, file, dir string, wait time.Duration) (Joins, error) {
	f, err := os.Open(file)
	if err != nil {
		return Joins{}, err
	}
	defer f.Close()
	var tokens []protocol.Token
	for s := bufio.NewScanner(f); s.Scan(); {
		t, err := protocol.ParseToken(s.Text())
		if err != nil {
			return Joins{}, err
		}
		tokens = append(tokens, t)
	}
	r := Joins{Errors: []string{}}
	var mu sync.Mutex
	var tries atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for i, t := range tokens {
		wg.Go(func() {
			_, err := redeem(ctx, filepath.Join(dir, fmt.Sprint(i)), join.Config{Token: t, Name: fmt.Sprintf("host-%d", i), Version: "labtool", Wait: wait,
				Progress: func(join.Progress) { tries.Add(1) }})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				r.Errors = append(r.Errors, err.Error())
				return
			}
			r.Joined++
			r.Slowest = time.Since(start).Seconds()
		})
	}
	wg.Wait()
	r.Seconds, r.Tries = time.Since(start).Seconds(), tries.Load()
	return r, nil
}

func redeem(ctx context.Context, dir string, c join.Config) (identity.Identity, error) {
	s, err := identity.Create(dir)
	if err != nil {
		return identity.Identity{}, err
	}
	defer s.Close()
	return join.Join(ctx, s, c)
}

// Knocks is what knocks prints: requests, by their answers.
type Knocks struct {
	Sent    int64 `json:"sent"`
	Refused int64 `json:"refused"` // told to come again
	Failed  int64 `json:"failed"`  // no answer
}

// knocks is strangers at a hub's HTTPS port: so many at once ask for the hub list and send what
// is no join, half of them on a new connection each time, until told to end.
func knocks(ctx context.Context, addr string, strangers int) (Knocks, error) {
	var sent, refused, failed atomic.Int64
	var wg sync.WaitGroup
	for i := range strangers {
		wg.Go(func() {
			c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: i%2 == 0, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
			for n := 0; ctx.Err() == nil; n++ {
				method, path, body := http.MethodGet, protocol.PathHubList, []byte(nil)
				if n%2 == 1 {
					method, path, body = http.MethodPost, protocol.PathJoin, bytes.Repeat([]byte{7}, 300)
				}
				req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
				if err != nil {
					return
				}
				req.Header.Set(protocol.TicketHeader, strings.Repeat("A", 16)+"."+strings.Repeat("A", 43))
				resp, err := c.Do(req)
				sent.Add(1)
				if err != nil {
					failed.Add(1)
					continue
				}
				if resp.StatusCode == http.StatusTooManyRequests && refused.Add(1) == 1 {
					fmt.Println("told to come again")
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	return Knocks{sent.Load(), refused.Load(), failed.Load()}, nil
}
