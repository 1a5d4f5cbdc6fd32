package admin

import (
	"context"
	"maps"
	"slices"
	"time"

	"causeway/hub/api"
	"causeway/hub/notice"
	"causeway/hub/object"
	"causeway/hub/state"
	"causeway/protocol"
)

// part is a source's share of one board of notices.
type part interface {
	// take adds the groups in which something may have changed since it was asked last; all: anywhere.
	take(add func(group string)) (all bool)
	leave()
}

// parts are a source.
type parts []part

func (l parts) take() (groups map[string]bool, all bool) {
	groups = map[string]bool{}
	add := func(group string) {
		if group != "" { // what it was about is not there any more, or not yet
			groups[group] = true
		}
	}
	for _, p := range l {
		if p.take(add) {
			all = true
		}
	}
	return groups, all
}

func (l parts) leave() {
	for _, p := range l {
		p.leave()
	}
}

// read is what a reader tells. groups adds those that a key is about; all: it may be about any.
type read[K comparable] struct {
	*notice.Reader[K]
	groups func(key K, add func(group string)) (all bool)
}

func (r read[K]) take(add func(group string)) bool {
	keys, all := r.Take()
	for k := range keys {
		if r.groups(k, add) {
			all = true
		}
	}
	return all
}

func (r read[K]) leave() { r.Leave() }

// anything is the groups of what may be about any.
func anything[K comparable](K, func(string)) bool { return true }

// addNamed adds a site, admin, NATS user or declared object.
func addNamed(t state.Thing, add func(string)) {
	switch k := t.Key.(type) {
	case string:
		add(k)
	case state.ObjectKey:
		add(k.Name)
	}
}

func (s *Server) whenNamed(kind string) func(chan<- struct{}) source {
	return func(wake chan<- struct{}) source {
		return parts{read[state.Thing]{s.cfg.Store.Notices(wake), func(t state.Thing, add func(string)) bool {
			if t.Kind == kind {
				addNamed(t, add)
			}
			return false
		}}}
	}
}

// whenSites tells of sites, which show how many nodes they have.
func (s *Server) whenSites(wake chan<- struct{}) source {
	return parts{read[state.Thing]{s.cfg.Store.Notices(wake), func(t state.Thing, add func(string)) bool {
		switch t.Kind {
		case state.ThingSite:
			addNamed(t, add)
		case state.ThingNode:
			add(s.cfg.Store.State().Nodes.Get(t.Key.(protocol.NodeNumber)).Site)
		}
		return false
	}}}
}

// whenTokens tells of tokens, which show the names of nodes.
func (s *Server) whenTokens(wake chan<- struct{}) source {
	return parts{read[state.Thing]{s.cfg.Store.Notices(wake), func(t state.Thing, add func(string)) bool {
		if t.Kind == state.ThingToken {
			add(t.Key.(protocol.TokenID).String())
		}
		return t.Kind == state.ThingName
	}}}
}

func (s *Server) whenLog(wake chan<- struct{}) source {
	return parts{read[state.Thing]{s.cfg.Store.Notices(wake), anything[state.Thing]}}
}

func (s *Server) whenEvents(wake chan<- struct{}) source {
	return parts{read[uint64]{s.cfg.Events.Notices(wake), anything[uint64]}}
}

func (s *Server) whenFlows(wake chan<- struct{}) source {
	return parts{read[uint64]{s.cfg.Flows.Notices(wake), anything[uint64]}}
}

// whenObjects tells of declared objects, which show who has them.
func (s *Server) whenObjects(wake chan<- struct{}) source {
	return parts{
		read[state.Thing]{s.cfg.Store.Notices(wake), anything[state.Thing]},
		read[protocol.NodeNumber]{s.cfg.Fleet.Notices(wake), anything[protocol.NodeNumber]},
	}
}

// ofNode adds the node that a thing is about, by its name. A node that has another name shows in others, too.
func ofNode(st *state.State, t state.Thing, add func(string)) (all bool) {
	switch k := t.Key.(type) {
	case protocol.NodeNumber:
		add(st.Nodes.Get(k).Name)
	case state.RouteKey:
		add(st.Nodes.Get(k.Node).Name)
	case state.Renamed:
		return true
	}
	return false
}

// whenInventory tells of nodes whose facts changed.
func (s *Server) whenInventory(wake chan<- struct{}) source {
	return parts{
		read[state.Thing]{s.cfg.Store.Notices(wake), func(t state.Thing, add func(string)) bool { return ofNode(s.cfg.Store.State(), t, add) }},
		read[protocol.NodeNumber]{s.cfg.Inventory.Notices(wake), func(n protocol.NodeNumber, add func(string)) bool {
			add(s.cfg.Store.State().Nodes.Get(n).Name)
			return false
		}},
	}
}

func (s *Server) watchedInventories(_ context.Context, groups map[string]bool) (out []watched, err error) {
	st := s.cfg.Store.State()
	put := func(n state.Node) {
		if f, ok := s.cfg.Inventory.Get(n.Number); ok && n.Live() {
			out = append(out, watched{name: n.Name, object: toInventory(n, f)})
		}
	}
	if groups == nil {
		for _, n := range shownNodes(st) {
			put(*n)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		if n, ok := st.NodeByName(name); ok {
			put(n)
		}
	}
	return out, nil
}

// listOfNodes is the list of a feed that shows something of each node, and is looked at anew by node. Its feed's lock guards it.
type listOfNodes struct {
	s    *Server
	show func(view, state.Node, []state.Route) []watched

	last *state.State    // that was shown
	open map[string]bool // nodes with routes that wait: why they do is in the claims of others
}

func (s *Server) listOfNodes(show func(view, state.Node, []state.Route) []watched) *listOfNodes {
	return &listOfNodes{s: s, show: show, open: map[string]bool{}}
}

// list implements feed.list; groups are nodes' names.
func (l *listOfNodes) list(_ context.Context, groups map[string]bool) (out []watched, err error) {
	w := l.s.now()
	l.last = w.st
	if groups != nil {
		for _, name := range slices.Sorted(maps.Keys(groups)) {
			delete(l.open, name)
			if n, ok := w.st.NodeByName(name); ok {
				out = append(out, l.of(w, n, w.st.NodeRoutes(n.Number))...)
			}
		}
		return out, nil
	}
	clear(l.open)
	routes := w.allRoutes()
	for _, n := range shownNodes(w.st) {
		out = append(out, l.of(w, *n, routes[n.Number])...)
	}
	return out, nil
}

func (l *listOfNodes) of(w view, n state.Node, routes []state.Route) []watched {
	for _, r := range routes {
		if r.State == protocol.RoutePending {
			l.open[n.Name] = true
		}
	}
	return l.show(w, n, routes)
}

// follow implements feed.follow.
func (l *listOfNodes) follow(wake chan<- struct{}) source {
	s := l.s
	node := func(n protocol.NodeNumber, add func(string)) bool {
		add(s.cfg.Fleet.State().Nodes.Get(n).Name)
		return false
	}
	return parts{
		read[state.Thing]{s.cfg.Store.Notices(wake), func(t state.Thing, add func(string)) bool {
			return ofNode(s.cfg.Fleet.State(), t, add) || t.Kind == object.SegmentKind || t.Kind == object.PolicyKind // segments of all
		}},
		read[protocol.NodeNumber]{s.cfg.Fleet.Notices(wake), node},
		read[protocol.NodeNumber]{s.cfg.Inventory.Drops(wake), node},
		l,
	}
}

// take adds what waits, if there are other routes than when the list was made.
func (l *listOfNodes) take(add func(group string)) bool {
	if l.last != nil && len(l.open) > 0 && !l.s.cfg.Fleet.State().SameRoutes(l.last) {
		for name := range l.open {
			add(name)
		}
	}
	return false
}

func (l *listOfNodes) leave() {}

func watchedNode(w view, n state.Node, routes []state.Route) []watched {
	v := w.node(n, routes)
	return []watched{{name: v.Name, object: v, shown: shownNode(v)}}
}

func watchedRoutes(w view, n state.Node, routes []state.Route) (out []watched) {
	if !n.Live() || len(routes) == 0 {
		return nil
	}
	is := w.s.cfg.Fleet.Is(n)
	for _, r := range routes {
		out = append(out, watched{name: n.Name + " " + r.Prefix.String(), group: n.Name, object: w.route(n, is, r)})
	}
	return out
}

func watchedToken(v api.Token) watched {
	w := watched{name: v.ID, object: v}
	if v.State == string(state.TokenOpen) {
		w.until = v.Expires
	}
	return w
}

func watchedAdmin(v api.Admin) watched {
	w := watched{name: v.Name, object: v}
	if v.State == string(state.AdminActive) {
		w.until = v.Expires.Add(time.Millisecond)
	}
	return w
}
