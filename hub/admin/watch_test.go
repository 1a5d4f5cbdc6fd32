package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
)

// list is a list that a test changes.
type list struct{ items []watched }

func (l *list) set(names ...string) {
	l.items = nil
	for _, n := range names {
		name, shown, _ := strings.Cut(n, "=")
		l.items = append(l.items, watched{name: name, object: n, shown: shown})
	}
}

func lines(l []api.Change) (out []string) {
	for _, c := range l {
		out = append(out, strings.TrimSpace(c.Change+" "+c.Name+" "+string(c.Object)))
	}
	return out
}

// look refreshes a feed by hand: nobody has joined it.
func look(t *testing.T, f *feed) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	require.NoError(t, f.refresh(t.Context(), nil))
}

func newFeed(l *list, log bool) *feed {
	f := &feed{log: log, list: func(context.Context, map[string]bool) ([]watched, error) { return l.items, nil }}
	f.clear()
	f.id = "x"
	return f
}

func TestFeed(t *testing.T) {
	l := &list{}
	f := newFeed(l, false)
	l.set("a=1", "b=1")
	look(t, f)
	all, seq, err := f.present(0)
	require.NoError(t, err)
	require.Equal(t, []string{`present a "a=1"`, `present b "b=1"`}, lines(all))
	start := seq
	_, more, err := f.since(seq)
	require.NoError(t, err)

	l.set("b=2", "c=1")
	look(t, f)
	select {
	case <-more:
	default:
		t.Fatal("nobody is told")
	}
	ch, _, err := f.since(start)
	require.NoError(t, err)
	require.Equal(t, []string{`changed b "b=2"`, `added c "c=1"`, "removed a"}, lines(ch))
	look(t, f)
	require.Equal(t, start+3, f.seq, "nothing new")

	at, ok := f.resume(f.token(start + 1))
	require.True(t, ok)
	ch, _, err = f.since(at)
	require.NoError(t, err)
	require.Equal(t, []string{`added c "c=1"`, "removed a"}, lines(ch))
	for _, token := range []string{"", "x", "x.", "y.1", "x.99", "x.-1", strings.Repeat("x", 1000)} {
		_, ok := f.resume(token)
		require.False(t, ok, token)
	}

	for i := range feedRing + 10 {
		l.set(fmt.Sprintf("b=%d", i+10), "c=1")
		look(t, f)
	}
	require.Len(t, f.ring, feedRing)
	_, _, err = f.since(start)
	require.ErrorIs(t, err, errFeedBehind)
	_, ok = f.resume(f.token(start))
	require.False(t, ok)

	l.items = []watched{{name: "big", object: strings.Repeat("x", feedBytes/4)}}
	for i := range 20 {
		l.items[0].shown = i
		look(t, f)
		require.LessOrEqual(t, f.bytes, feedBytes)
	}
	require.NotEmpty(t, f.ring)
}

// Of a log entries fall out at the end without a word, and a limit counts at the start.
func TestFeedOfALog(t *testing.T) {
	l := &list{}
	f := newFeed(l, true)
	l.set("1", "2", "3")
	look(t, f)
	all, seq, err := f.present(2)
	require.NoError(t, err)
	require.Equal(t, []string{`present 2 "2"`, `present 3 "3"`}, lines(all))
	l.set("3", "4")
	look(t, f)
	ch, _, err := f.since(seq)
	require.NoError(t, err)
	require.Equal(t, []string{`added 4 "4"`}, lines(ch))
	require.Len(t, f.now, 2)
}

// follower is a watch by the API's own client.
type follower struct {
	changes chan api.Change
	lost    chan error
	end     chan error
	stop    context.CancelFunc
}

func follow(t *testing.T, c *api.Client, kind string, limit int) *follower {
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{make(chan api.Change, 1000), make(chan error, 100), make(chan error, 1), cancel}
	t.Cleanup(cancel)
	go func() {
		f.end <- c.Follow(ctx, api.Watch{Kind: kind, Limit: limit, Lost: func(err error) { f.lost <- err }, Each: func(l []api.Change) error {
			for _, ch := range l {
				f.changes <- ch
			}
			if len(l) == 0 {
				f.changes <- api.Change{Change: "empty"}
			}
			return nil
		}})
	}()
	return f
}

func (f *follower) next(t *testing.T) api.Change {
	t.Helper()
	select {
	case ch := <-f.changes:
		return ch
	case err := <-f.end:
		t.Fatalf("the watch ended: %v", err)
	case <-time.After(patience):
		t.Fatalf("nothing came; lost: %d", len(f.lost))
	}
	return api.Change{}
}

func (f *follower) want(t *testing.T, what ...string) {
	t.Helper()
	for _, w := range what {
		ch := f.next(t)
		require.Equal(t, w, strings.TrimSpace(ch.Change+" "+ch.Name))
	}
}

func (h *remoteHub) site(t *testing.T, name string) {
	t.Helper()
	_, err := h.cfg.Store.Update(t.Context(), "test", "site create "+name, func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: name}) })
	require.NoError(t, err)
}

// Lists and logs are followed; a watch whose connection breaks goes on where it was; a
// revoked admin's ends for good.
func TestWatch(t *testing.T) {
	h := startRemote(t, nil)
	h.site(t, "a")
	ctx := h.admin("vera", Viewer)
	client := func() *api.Client {
		c, err := api.NewClient(api.ClientConfig{Context: &ctx})
		require.NoError(t, err)
		t.Cleanup(c.Close)
		return c
	}
	sites, events, audit := follow(t, client(), api.WatchSites, 0), follow(t, client(), api.WatchEvents, 10), follow(t, client(), api.WatchAudit, 1)
	sites.want(t, "present a")
	events.want(t, "empty")
	require.Equal(t, api.Present, audit.next(t).Change)

	h.site(t, "b")
	h.cfg.Events.Add(event.NodeUp, "n", "hello")
	sites.want(t, "added b")
	var e api.Event
	ch := events.next(t)
	require.NoError(t, json.Unmarshal(ch.Object, &e))
	require.Equal(t, []string{"added", "hello"}, []string{ch.Change, e.Message})
	var a api.AuditEntry
	ch = audit.next(t)
	require.NoError(t, json.Unmarshal(ch.Object, &a))
	require.Equal(t, []string{"added", "site create b"}, []string{ch.Change, a.Why})

	// Break all connections.
	tag := h.watches.feeds[api.WatchSites].id
	for i := range 2 {
		h.cut()
		<-sites.lost
		h.site(t, fmt.Sprintf("c%d", i))
		require.Equal(t, api.Added, sites.next(t).Change, "what came meanwhile, once")
		require.Equal(t, api.Added, audit.next(t).Change)
	}
	require.Equal(t, tag, h.watches.feeds[api.WatchSites].id, "by its position")
	require.Empty(t, events.changes)

	// Without a position that the hub knows the list comes again, and only differences are told.
	f := h.watches.feeds[api.WatchSites]
	f.mu.Lock()
	f.id = "another"
	f.mu.Unlock()
	h.cut()
	<-sites.lost
	h.site(t, "d")
	sites.want(t, "added d")
	_, err := h.cfg.Store.Update(t.Context(), "test", "site delete", func(d *state.Draft) error { return d.Add(state.SiteDeleted{Name: "a"}) })
	require.NoError(t, err)
	sites.want(t, "removed a")

	// Not for her role; and nothing more once she is no admin.
	require.ErrorContains(t, client().Follow(t.Context(), api.Watch{Kind: api.WatchAdmins}), "your role")
	h.revoke("vera")
	for what, w := range map[string]*follower{"sites": sites, "events": events, "audit": audit} {
		select {
		case err := <-w.end:
			require.ErrorContains(t, err, "revoked", what)
		case <-time.After(patience):
			t.Fatalf("the watch of %s goes on", what)
		}
	}
	require.Zero(t, h.watches.open.Load())
}

// A reader that takes nothing is cut off and holds up nobody; so many watches are open at
// once and no more.
func TestWatchesAreBounded(t *testing.T) {
	t.Parallel()
	s := New(Config{Number: 1, Store: statetest.Open(t), Events: &event.Log{}, Log: zerolog.Nop()})
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	client, err := api.NewClient(api.ClientConfig{Socket: path})
	require.NoError(t, err)
	defer client.Close()

	ask := func() (net.Conn, *bufio.Reader) {
		c, err := net.Dial("unix", path)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "GET /v1/watch/events?limit=0 HTTP/1.1\r\nHost: hub\r\n\r\n")
		return c, bufio.NewReader(c)
	}
	slow, r := ask()
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "200")
	quick := follow(t, client, api.WatchEvents, 0)
	quick.want(t, "empty")
	start := time.Now()
	for n := 0; s.watches.open.Load() == 2; n++ { // until the slow one is cut off
		require.Less(t, time.Since(start), 3*bodyTimeout, "the slow reader is still there")
		for i := range 500 { // of several nodes: of one alone fewer are kept
			s.cfg.Events.Add(event.NodeUp, fmt.Sprintf("n%d", i%5), strings.Repeat("x", 1000))
		}
		for range 500 {
			require.Equal(t, api.Added, quick.next(t).Change)
		}
	}
	t.Logf("a reader that took nothing was cut off after %s", time.Since(start).Round(time.Second))
	slow.Close()

	for i := range maxWatches + 5 {
		_, r := ask()
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		want := "200"
		if i >= maxWatches-1 {
			want = "503"
		}
		require.Contains(t, line, want, i)
	}
	quick.stop()
	cancel()
	require.NoError(t, <-done)
	require.Eventually(t, func() bool { return s.watches.open.Load() == 0 }, patience, time.Millisecond)
}
