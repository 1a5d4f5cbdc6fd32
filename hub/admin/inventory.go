package admin

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/facts/inventory"
	"causeway/hub/state"
)

func toInventory(n state.Node, f inventory.Facts) api.Inventory {
	return api.Inventory{Node: n.Name, Site: n.Site, Number: n.Number, Received: f.Received, Inventory: f.Inventory}
}

func (s *Server) inventories() []api.Inventory {
	st := s.cfg.Store.State()
	out := []api.Inventory{}
	for _, n := range shownNodes(st) {
		if f, ok := s.cfg.Inventory.Get(n.Number); ok && n.Live() {
			out = append(out, toInventory(*n, f))
		}
	}
	return out
}

func (s *Server) registerInventory(a huma.API) {
	huma.Get(a, "/v1/inventory", func(context.Context, *struct{}) (*body[[]api.Inventory], error) { return answer(s.inventories(), nil) })
	huma.Get(a, "/v1/inventory/{name}", func(_ context.Context, in *named) (*body[api.Inventory], error) {
		st := s.cfg.Store.State()
		n, err := st.FindNode(in.Name)
		if err != nil {
			return nil, problem(err)
		}
		f, ok := s.cfg.Inventory.Get(n.Number)
		if !ok {
			return nil, huma.Error404NotFound("no inventory of node " + in.Name + " has arrived yet; it is sent when its agent is connected")
		}
		return answer(toInventory(n, f), nil)
	})
}

// watchInventory answers with server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html): api.InventoryChange
// as they come, of one node if the query names it.
func (s *Server) watchInventory(w http.ResponseWriter, r *http.Request) {
	node := r.URL.Query().Get("node")
	if node != "" {
		if _, err := s.cfg.Store.State().FindNode(node); err != nil {
			writeProblem(w, problem(err))
			return
		}
	}
	st, done := s.openStream(w)
	if st == nil {
		return
	}
	defer done()
	changes := s.cfg.Inventory.Watch(r.Context())
	st.begin()
	t := time.NewTicker(watchPing)
	defer t.Stop()
	for ok := st.comment("watching"); ok; {
		select {
		case v, more := <-changes:
			if !more {
				return // the hub stops, or the reader is too slow
			}
			if node != "" && v.Node != node {
				continue
			}
			ok = st.event("inventory", "", v) && st.flush()
		case <-t.C:
			ok = st.comment("nothing new")
		}
	}
}
