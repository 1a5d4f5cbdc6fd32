package reconcile

import (
	"context"
	"slices"
	"time"

	"causeway/hub/fleet"
	"causeway/hub/notice"
	"causeway/hub/object"
	"causeway/hub/service"
	"causeway/hub/state"
	"causeway/protocol"
)

// services are who serves declared services. The loop alone uses it.
type services struct {
	table *service.Table
	told  *service.Told // nil: there never was a service
	state *state.State  // that was looked at last
	news  *notice.Reader[protocol.NodeNumber]
	due   time.Time // of the next look at containers
}

// services works out who serves what, if what is declared, a node or a container has changed. What a node that is away told last
// stays, and holds over a hub's start.
func (l *Loop) services(_ context.Context, t *turn) error {
	k, before := &l.serve, l.serve.told
	fresh := t.state != k.state
	if !fresh && (k.news == nil || t.now.Before(k.due)) {
		return nil
	}
	begun := time.Now()
	if fresh {
		if k.table == nil && len(t.state.ObjectsOf(object.ServiceKind)) > 0 {
			k.table = service.NewTable()
		}
		if k.table != nil {
			k.declare(t.state)
		}
	}
	if k.table != nil {
		k.look(l.cfg.Facts, t.state)
		k.told = k.table.Settle()
	}
	if k.state = t.state; k.told != before {
		t.acted = true
		l.pace.changed(t.now)
	}
	k.due = time.Now().Add(max(podsEvery, podsRest*time.Since(begun)))
	if fresh || t.acted {
		l.cfg.Fleet.SetServices(fleet.Services{Told: k.told, Sequence: t.state.Seq})
	}
	return nil
}

// declare takes over what a state declares, and its nodes.
func (k *services) declare(st *state.State) {
	if k.state == nil || k.state.Objects != st.Objects {
		objects := st.ObjectsOf(object.ServiceKind)
		for _, o := range objects {
			if k.table.Has(o.Name, o.Generation) {
				continue
			}
			if d, err := object.ServiceOf(o); err == nil { // else it is of a newer hub
				k.table.Put(d)
			}
		}
		if k.table.Len() > len(objects) {
			there := map[string]bool{}
			for _, o := range objects {
				there[o.Name] = true
			}
			for name := range k.table.Names() {
				if !there[name] {
					k.table.Remove(name)
				}
			}
		}
	}
	if k.state == nil || k.state.Nodes != st.Nodes || k.state.Routes.Map != st.Routes.Map || k.state.Realms() != st.Realms() || !slices.Equal(k.state.Overlay, st.Overlay) {
		k.table.SetWorld(object.ServiceWorld(st))
	}
}

// look reads the containers of nodes of which there is news, while a service asks for any.
func (k *services) look(facts Facts, st *state.State) {
	if facts == nil || !k.table.AsksContainers() {
		if k.news != nil {
			k.news.Leave()
			k.news = nil
			k.table.ForgetContainers()
		}
		return
	}
	keys, all := map[protocol.NodeNumber]bool{}, true
	if k.news == nil {
		k.news = facts.Notices(make(chan struct{}, 1)) // it is looked at by the time
	} else if keys, all = k.news.Take(); len(keys) == 0 && !all {
		return
	}
	for _, n := range st.LiveNodes() {
		if all || keys[n.Number] {
			f, _ := facts.Get(n.Number)
			k.table.SetContainers(n.Number, object.ContainersOf(f.Containers))
		}
	}
}
