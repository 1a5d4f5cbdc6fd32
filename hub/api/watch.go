package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Limits of a watch.
const (
	maxWatchLine = 4 << 20
	watchSilence = 45 * time.Second // the hub gives a sign of life every 10 s
	rewatchFirst = 200 * time.Millisecond
	rewatchLast  = 3 * time.Second
)

// Kinds of lists that can be watched: the last part of the path.
const (
	WatchSites     = "sites"
	WatchTokens    = "tokens"
	WatchNodes     = "nodes"
	WatchRoutes    = "routes"
	WatchInventory = "inventory"
	WatchAdmins    = "admins"
	WatchNATSUsers = "nats-users"
	WatchEvents    = "events" // a log: entries are added, and nothing else
	WatchAudit     = "audit"  // likewise
	WatchFlows     = "flows"  // likewise: one for each change of a flow
	// WatchServiceEvents is a log of what nodes switched of services.
	WatchServiceEvents = "service-events"
)

// WatchObjects is the list of the declared objects of a kind.
func WatchObjects(kind string) string { return "objects/" + url.PathEscape(kind) }

// ErrWatchEnded says that the hub ended a watch: it stops, or the watcher was too slow.
var ErrWatchEnded = errors.New("the hub ended the watch")

// refused is an error that another try meets again.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// Watch is a list that is followed.
type Watch struct {
	Kind string
	// Limit is how many old entries of a log come first; zero: none. Lists come whole.
	Limit int
	// Lost, if it is not nil, hears why the connection was lost, once until it is back.
	Lost func(error)
	// Each hears of changes, of the whole list first, and may be called with none then.
	// Its error ends the watch.
	Each func([]Change) error

	began bool
	last  string              // the resume token
	known map[string][32]byte // hash of each object, by name
	names []string            // of a log: the order of known
}

// rememberedEntries bounds what is known of a log.
const rememberedEntries = 2000

func (w *Watch) log() bool { return IsLog(w.Kind) }

// IsLog reports whether a list of that kind is a log.
func IsLog(kind string) bool {
	return kind == WatchEvents || kind == WatchAudit || kind == WatchFlows || kind == WatchServiceEvents
}

// Follow follows a list until ctx ends, whose error it returns, until the hub refuses to
// be watched, or until w.Each fails. A hub that goes away is waited for once the watch has
// begun; what changed meanwhile is told then, each object once.
func (c *Client) Follow(ctx context.Context, w Watch) error {
	w.known = map[string][32]byte{}
	wait, lost := rewatchFirst, false
	for {
		begun := false
		err := c.watchOnce(ctx, &w, func() { begun = true })
		var answer *Error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !w.began, errors.As(err, new(refused)), errors.As(err, &answer) && answer.Status/100 == 4:
			return err
		}
		var own eachError
		if errors.As(err, &own) {
			return own.error
		}
		if begun {
			wait, lost = rewatchFirst, false
		}
		if !lost && w.Lost != nil {
			w.Lost(err)
		}
		lost = true
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, rewatchLast)
	}
}

// eachError is what a watcher's own function returned.
type eachError struct{ error }

// watchOnce follows a list over one connection.
func (c *Client) watchOnce(ctx context.Context, w *Watch, synced func()) error {
	header := http.Header{}
	if w.last != "" {
		header.Set("Last-Event-ID", w.last)
	}
	limit := w.Limit
	if w.began {
		limit = 1000 // none may be missing; those that are known are told no more
	}
	var whole []Change // since reset
	resetting := false
	var batch []Change
	return c.watch(ctx, "/v1/watch/"+w.Kind+"?limit="+strconv.Itoa(limit), header, nil, func(e sse) error {
		switch e.kind {
		case "reset":
			resetting, whole = true, nil
		case "change":
			var ch Change
			if err := json.Unmarshal(e.data, &ch); err != nil {
				return fmt.Errorf("read the hub's changes: %w", err)
			}
			if resetting {
				whole = append(whole, ch)
				return nil
			}
			if w.note(&ch) {
				batch = append(batch, ch)
			}
		case "synced":
			if resetting {
				batch, whole, resetting = append(batch, w.resync(whole)...), nil, false
			}
			synced()
		}
		if e.id != "" {
			w.last = e.id
		}
		if e.more || resetting || w.began && len(batch) == 0 {
			return nil
		}
		w.began = true
		out := batch
		batch = nil
		if err := w.Each(out); err != nil {
			return eachError{err}
		}
		return nil
	})
}

// note remembers a change, and reports whether it is one.
func (w *Watch) note(ch *Change) bool {
	if ch.Change == Removed {
		_, ok := w.known[ch.Name]
		delete(w.known, ch.Name)
		return ok
	}
	name := ch.Name
	sum := sha256.Sum256(ch.Object)
	if w.log() { // a hub that starts again counts its events anew
		name = string(sum[:])
	}
	before, ok := w.known[name]
	switch {
	case ok && before == sum:
		return false
	case !w.began:
		ch.Change = Present
	case ok:
		ch.Change = Changed
	default:
		ch.Change = Added
	}
	w.known[name] = sum
	if w.log() {
		if w.names = append(w.names, name); len(w.names) > rememberedEntries {
			delete(w.known, w.names[0])
			w.names = w.names[1:]
		}
	}
	return true
}

// resync compares a whole list with what is known.
func (w *Watch) resync(list []Change) (out []Change) {
	here := map[string]bool{}
	for _, ch := range list {
		here[ch.Name] = true
		if w.note(&ch) {
			out = append(out, ch)
		}
	}
	if w.log() {
		return out
	}
	for name := range w.known {
		if !here[name] {
			delete(w.known, name)
			out = append(out, Change{Change: Removed, Name: name})
		}
	}
	return out
}

// FollowFacts hands over each change of the facts of node, or of all nodes if it is
// empty, until ctx ends or the hub ends the watch. ready, if it is not nil, is called once
// nothing can be missed any more; what either function returns ends the watch.
func (c *Client) FollowFacts(ctx context.Context, node string, ready func() error, each func(InventoryChange) error) error {
	path := "/v1/inventory/watch"
	if node != "" {
		path += "?node=" + url.QueryEscape(node)
	}
	return c.watch(ctx, path, nil, ready, func(e sse) error {
		if e.data == nil {
			return nil
		}
		var v InventoryChange
		if err := json.Unmarshal(e.data, &v); err != nil {
			return fmt.Errorf("read the hub's events: %w", err)
		}
		return each(v)
	})
}

// sse is a server-sent event.
type sse struct {
	kind, id string
	data     []byte
	more     bool // another one is here already
}

// watch reads server-sent events. One without data is only a sign of life.
func (c *Client) watch(parent context.Context, path string, header http.Header, ready func() error, each func(sse) error) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	silent := time.AfterFunc(watchSilence, cancel)
	defer silent.Stop()
	explain := func(err error) error {
		if ctx.Err() != nil && parent.Err() == nil {
			err = context.DeadlineExceeded
		}
		return c.explain(err, watchSilence)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.cfg.BaseURL+path, nil)
	if err != nil {
		return err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Accept", "text/event-stream, application/problem+json")
	res, err := c.success(req, watchSilence)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	r := bufio.NewReaderSize(res.Body, 64<<10)
	var e sse
	for {
		line, err := readLine(r)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return ErrWatchEnded
		}
		if err != nil {
			return explain(err)
		}
		silent.Reset(watchSilence)
		if ready != nil {
			if err := ready(); err != nil {
				return err
			}
			ready = nil
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch string(name) {
		case "event":
			e.kind = string(value)
		case "id":
			e.id = string(value)
		case "data":
			e.data = bytes.Clone(value)
		case "":
			if len(line) > 0 { // a comment
				continue
			}
			if e.more = r.Buffered() > 0; e.data == nil { // no event, but what was held back for more can go
				e.kind = ""
			}
			if err := each(e); err != nil {
				return err
			}
			e = sse{}
		}
	}
}

// readLine reads a line of at most maxWatchLine bytes, without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var long []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(long)+len(part) > maxWatchLine {
			return nil, fmt.Errorf("a line of more than %d bytes", maxWatchLine)
		}
		if err == nil && long == nil {
			return part[:len(part)-1], nil
		}
		long = append(long, part...)
		switch {
		case err == nil:
			return long[:len(long)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}
