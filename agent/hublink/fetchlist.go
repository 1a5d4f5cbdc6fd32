package hublink

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"causeway/internal/retry"
	"causeway/netns"
	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
)

const (
	// fetchAfter is how long there was no control session before the hub list is
	// asked for over HTTPS: it may name another hub key or address. Then it is
	// asked for again, at pauses from fetchFirst to fetchEvery, or later if that is the answer.
	fetchAfter = 4 * time.Second
	fetchFirst = 10 * time.Second
	fetchEvery = 20 * time.Second
	// fetchLost is the pause while nobody answers there: a hub that starts waits some seconds for
	// what its nodes know, before it gives numbers away.
	fetchLost = 4 * time.Second
	fetchWait = 8 * time.Second
)

// FollowList asks listed hubs for a newer list while there is no control
// session, and the hub of a session whether the one held is the newest. Whoever answers is
// nobody special: the cluster key signed the list, and the word that it is the newest.
func (l *Link) FollowList(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	since, due := time.Now(), time.Time{}
	pause, lost := retry.Backoff{First: fetchFirst, Most: fetchEvery}, retry.Backoff{First: fetchLost, Most: fetchLost}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := time.Now()
		if l.control.Connected() && l.boundHub(0) != 0 { // a session ends some seconds after the hub fell silent
			since, due = now, time.Time{}
			pause.Reset()
			l.askWhetherNewest(now)
			continue
		}
		if now.Sub(since) < fetchAfter || now.Before(due) {
			continue
		}
		var wait time.Duration // the longest that a hub asks for
		answered := false
		list := l.want.Now().Hubs
		for _, h := range list.Hubs {
			for _, at := range h.HTTPS {
				err := l.fetchListAt(ctx, at)
				answered = answered || !errors.As(err, new(*url.Error))
				if err != nil && ctx.Err() == nil {
					wait = max(wait, retry.Asked(err))
					l.log.Debug().Err(err).Msg("no hub list")
				}
			}
		}
		if answered {
			due = time.Now().Add(pause.Next(wait))
		} else {
			due = time.Now().Add(lost.Next(0))
		}
	}
}

// fetchListAt asks at an HTTPS address for the newest list.
func (l *Link) fetchListAt(ctx context.Context, at string) error {
	n, err := protocol.NewListNonce()
	if err != nil {
		return err
	}
	asked := l.now()
	q := ListQuestion{Nonce: n, Mark: l.want.Mark(), Node: l.nodeAsk(n)}
	answer, err := l.fetch(ctx, at, q)
	if err != nil {
		return fmt.Errorf("hub list of %s: %w", at, err)
	}
	err = l.want.TakeHubListAnswer(answer, n, asked)
	l.hearStanding(ctx, q, answer) // a hub that was set back has an older list, too
	if err != nil {
		return fmt.Errorf("hub list of %s: %w", at, err)
	}
	return nil
}

// ListFetcher gets the hub list from an HTTPS address of a hub, over sockets
// that never take tunnel routes.
func ListFetcher(proxy func(*url.URL) (*url.URL, error), lookup sock.Lookup) ListFetch {
	cl := &http.Client{
		Timeout: fetchWait,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return sock.DialTCP(ctx, netns.DefaultMark, lookup, addr)
			},
			DisableKeepAlives: true, OnProxyConnectResponse: retry.ProxyAnswer,
			Proxy: func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
			// The certificate is not looked at: TLS is transport only here.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context, at string, q ListQuestion) (a protocol.HubListAnswer, err error) {
		query := "?" + protocol.NonceParameter + "=" + q.Nonce.String() + "&" + protocol.NodeParameter + "=" + q.Node.Query()
		if q.Mark != nil {
			query += "&" + protocol.MarkParameter + "=" + q.Mark.Query()
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+at+protocol.PathHubList+query, nil)
		if err != nil {
			return a, err
		}
		resp, err := cl.Do(req)
		if err != nil {
			return a, fmt.Errorf("ask for it: %w", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return a, fmt.Errorf("ask for it: %w", retry.FromResponse(resp))
		}
		return readList(resp.Body)
	}
}

// ListQuestion is the question for the hub list of a node that has no session. It shows what the
// node knows of the cluster's state, if it knows anything, and who asks.
type ListQuestion struct {
	Nonce protocol.ListNonce
	Mark  *protocol.StateMark
	Node  protocol.NodeAsk
}

// ListFetch asks it at an HTTPS address of a hub.
type ListFetch func(ctx context.Context, at string, q ListQuestion) (protocol.HubListAnswer, error)

// readList reads a list that anybody may have sent; Open judges it.
func readList(r io.Reader) (s protocol.HubListAnswer, err error) {
	b, err := io.ReadAll(io.LimitReader(r, protocol.MaxHubList+1))
	if err != nil {
		return s, fmt.Errorf("read hub list: %w", err)
	}
	if len(b) > protocol.MaxHubList {
		return s, fmt.Errorf("read hub list: it is longer than %d bytes", protocol.MaxHubList)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("read hub list: %w", err)
	}
	return s, nil
}
