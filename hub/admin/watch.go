package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// Limits of watches.
const (
	watchPing  = 10 * time.Second // how often a watch in which nothing happens gives a sign of life
	maxWatches = 256
)

// watches are the lists that can be watched, by the last part of their path.
type watches struct {
	feeds   map[string]*feed
	objects map[string]*feed // of declared objects, by kind
	open    atomic.Int32
}

// listed is the list of a feed of what all returns, where that is not so much that less of it were worth finding.
func listed[T any](all func() []T, show func(T) watched) func(context.Context, map[string]bool) ([]watched, error) {
	return func(_ context.Context, groups map[string]bool) ([]watched, error) {
		l := all()
		out := make([]watched, 0, len(l))
		for _, v := range l {
			if w := show(v); groups == nil || groups[w.name] {
				out = append(out, w)
			}
		}
		return out, nil
	}
}

// registerWatches makes a feed of each list. A new one is one line here, one in api and its role in
// access; a kind of declared objects has one by itself. What wakes a feed is in sources.go.
func (s *Server) registerWatches(mux *routes) {
	nodes, routes := s.listOfNodes(watchedNode), s.listOfNodes(watchedRoutes)
	s.watches.objects = map[string]*feed{}
	s.watches.feeds = map[string]*feed{
		"sites":      {list: listed(s.sites, func(v api.Site) watched { return watched{name: v.Name, object: v} }), follow: s.whenSites},
		"tokens":     {list: listed(s.tokens, watchedToken), follow: s.whenTokens},
		"nodes":      {list: nodes.list, follow: nodes.follow},
		"routes":     {list: routes.list, follow: routes.follow},
		"inventory":  {list: s.watchedInventories, follow: s.whenInventory},
		"admins":     {list: listed(s.admins, watchedAdmin), follow: s.whenNamed(state.ThingAdmin)},
		"nats-users": {list: listed(s.natsUsers, func(v api.NATSUser) watched { return watched{name: v.Name, object: v} }), follow: s.whenNamed(state.ThingNATSUser)},
		"events":     {log: true, list: listed(s.newestEvents, watchedEvent), follow: s.whenEvents},
		"flows": {log: true, list: listed(s.newestFlows, func(v api.Flow) watched {
			return watched{name: strconv.FormatUint(v.Sequence, 10), object: v, shown: v.Sequence}
		}), follow: s.whenFlows},
		"service-events": {log: true, list: listed(s.cfg.Switches.News, watchedServiceEvent), follow: s.whenServiceEvents},
		"audit":          {log: true, list: s.auditTail(), follow: s.whenLog},
	}
	for _, kind := range state.ObjectKinds() {
		objects := func() []api.Object { return s.objects(kind) }
		s.watches.objects[kind] = &feed{list: listed(objects, func(v api.Object) watched { return watched{name: v.Name, object: v, shown: shownObject(v)} }), follow: s.whenObjects}
	}
	mux.HandleFunc("GET /v1/watch/objects/{kind}", func(w http.ResponseWriter, r *http.Request) {
		kind := r.PathValue("kind")
		f := s.watches.objects[kind]
		if f == nil {
			_, err := state.FindKind(kind)
			writeProblem(w, problem(err))
			return
		}
		s.watch(f, w, r)
	})
	for kind, f := range s.watches.feeds {
		mux.HandleFunc("GET /v1/watch/"+kind, func(w http.ResponseWriter, r *http.Request) { s.watch(f, w, r) })
	}
}

func (s *Server) newestEvents() []api.Event {
	l := s.cfg.Events.Newest(feedLogSize)
	slices.Reverse(l)
	return l
}

func watchedEvent(v api.Event) watched {
	return watched{name: strconv.FormatUint(v.Sequence, 10), object: v, shown: v.Sequence}
}

// auditTail reads only what is new of the log.
func (s *Server) auditTail() func(context.Context, map[string]bool) ([]watched, error) {
	var tail []watched
	var last uint64
	return func(ctx context.Context, _ map[string]bool) ([]watched, error) {
		seq := s.cfg.Store.State().Seq
		if seq < last {
			tail, last = nil, 0
		}
		if seq == last {
			return tail, nil
		}
		l, err := s.audit(ctx, 0, int(min(seq-last, feedLogSize)))
		if err != nil {
			return nil, err
		}
		slices.Reverse(l)
		for _, e := range l {
			if e.Sequence > last {
				tail = append(tail, watched{name: strconv.FormatUint(e.Sequence, 10), object: e, shown: e.Sequence})
			}
		}
		if len(l) > 0 {
			last = l[len(l)-1].Sequence
		}
		if over := len(tail) - feedLogSize; over > 0 {
			tail = slices.Clone(tail[over:])
		}
		return tail, nil
	}
}

// shownNode leaves out what never stands still.
func shownNode(n api.Node) any {
	paths := make([]protocol.PathStatus, len(n.Paths))
	for i, p := range n.Paths {
		paths[i] = fleet.Steady(p)
	}
	n.Paths = paths
	return n
}

// shownObject leaves out what never stands still.
func shownObject(o api.Object) any {
	o.Status = nil
	return o
}

// watch answers with server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html): 'reset', the whole
// list as changes 'present', 'synced', and then each change. The id of an event is a
// position: a watch that begins with it in Last-Event-ID goes on there, without the
// list, if the hub still knows what came since. A reader that is too slow is sent the
// list again; one that takes nothing for bodyTimeout is cut off.
func (s *Server) watch(f *feed, w http.ResponseWriter, r *http.Request) {
	limit := 50
	if q := r.URL.Query().Get("limit"); q != "" {
		var err error
		if limit, err = strconv.Atoi(q); err != nil || limit < 0 || limit > feedLogSize {
			writeProblem(w, huma.Error422UnprocessableEntity(fmt.Sprintf("limit is not a number from 0 to %d", feedLogSize)))
			return
		}
	}
	st, done := s.openStream(w)
	if st == nil {
		return
	}
	defer done()
	leave, err := f.join(r.Context())
	if err != nil {
		writeProblem(w, problem(err))
		return
	}
	defer leave()
	seq, resumed := f.resume(r.Header.Get("Last-Event-ID"))
	st.begin()
	if resumed && !st.event("synced", f.token(seq), struct{}{}) {
		return
	}
	ping := time.NewTicker(watchPing)
	defer ping.Stop()
	for synced := resumed; ; {
		if !synced {
			var list []api.Change
			if list, seq, err = f.present(limit); err != nil || !st.event("reset", "", struct{}{}) {
				return
			}
			for _, c := range list {
				if !st.event("change", "", c) {
					return
				}
			}
			if !st.event("synced", f.token(seq), struct{}{}) {
				return
			}
			synced = true
		}
		changes, more, err := f.since(seq)
		if errors.Is(err, errFeedBehind) {
			synced = false
			continue
		}
		for _, c := range changes {
			seq++
			if !st.event("change", f.token(seq), c) {
				return
			}
		}
		if !st.flush() {
			return
		}
		select {
		case <-more:
		case <-ping.C:
			if !st.comment("nothing new") {
				return
			}
		case <-r.Context().Done():
			return
		case <-s.ending:
			return
		}
	}
}

// stream writes server-sent events.
type stream struct {
	w http.ResponseWriter
	c *http.ResponseController
}

// openStream makes a stream of w, before anything is written, if there are not too
// many; done has to be called at its end. It answers itself where it returns nil.
func (s *Server) openStream(w http.ResponseWriter) (st *stream, done func()) {
	done = func() { s.watches.open.Add(-1) }
	if s.watches.open.Add(1) > maxWatches {
		done()
		writeProblem(w, huma.Error503ServiceUnavailable(fmt.Sprintf("%d watches are open at this hub already; end one of them", maxWatches)))
		return nil, nil
	}
	c := http.NewResponseController(w)
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		done()
		writeProblem(w, huma.Error500InternalServerError("this connection cannot be watched over"))
		return nil, nil
	}
	return &stream{w, c}, done
}

func (s *stream) begin() {
	s.w.Header().Set("Content-Type", "text/event-stream")
	s.w.Header().Set("Cache-Control", "no-store")
}

// event writes one event, which flush sends. An empty id is left out.
func (s *stream) event(kind, id string, v any) bool {
	b, err := json.Marshal(v)
	if err != nil {
		return false
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	return s.write("event: %s\n%sdata: %s\n\n", kind, id, b)
}

// comment sends a line that readers ignore.
func (s *stream) comment(text string) bool { return s.write(": %s\n\n", text) && s.flush() }

func (s *stream) write(format string, args ...any) bool {
	s.c.SetWriteDeadline(time.Now().Add(bodyTimeout))
	_, err := fmt.Fprintf(s.w, format, args...)
	return err == nil
}

func (s *stream) flush() bool {
	s.c.SetWriteDeadline(time.Now().Add(bodyTimeout))
	return s.c.Flush() == nil
}
