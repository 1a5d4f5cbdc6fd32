package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
)

// watchPing is how often a watch in which nothing happens gives a sign of life.
const watchPing = 10 * time.Second

func (s *Server) registerInventory(a huma.API) {
	huma.Get(a, "/v1/inventory", func(context.Context, *struct{}) (*body[[]api.Inventory], error) {
		st := s.cfg.Store.State()
		out := []api.Inventory{}
		for _, n := range shownNodes(st) {
			if f, ok := s.cfg.Inventory.Get(n.Number); ok && n.Live() {
				out = append(out, api.Inventory{Node: n.Name, Site: n.Site, Number: n.Number, Received: f.Received, Inventory: f.Inventory})
			}
		}
		return answer(out, nil)
	})
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
		return answer(api.Inventory{Node: n.Name, Site: n.Site, Number: n.Number, Received: f.Received, Inventory: f.Inventory}, nil)
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
	c := http.NewResponseController(w)
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		writeProblem(w, huma.Error500InternalServerError("this connection cannot be watched over"))
		return
	}
	changes := s.cfg.Inventory.Watch(r.Context())
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	t := time.NewTicker(watchPing)
	defer t.Stop()
	send := func(format string, args ...any) bool {
		c.SetWriteDeadline(time.Now().Add(bodyTimeout))
		_, err := fmt.Fprintf(w, format, args...)
		return err == nil && c.Flush() == nil
	}
	for ok := send(": watching\n\n"); ok; {
		select {
		case v, more := <-changes:
			if !more {
				return // the hub stops, or the reader is too slow
			}
			if node != "" && v.Node != node {
				continue
			}
			b, err := json.Marshal(v)
			if err != nil {
				return
			}
			ok = send("event: inventory\ndata: %s\n\n", b)
		case <-t.C:
			ok = send(": nothing new\n\n")
		}
	}
}
