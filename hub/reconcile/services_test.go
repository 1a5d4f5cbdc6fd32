package reconcile

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/facts/inventory"
	"causeway/hub/state"
	"causeway/protocol"
)

// A container that starts is in the netmaps of clients within a second, without a transaction; containers are read while a service
// selects any.
func TestServicesFollowContainers(t *testing.T) {
	f := &told{facts: map[protocol.NodeNumber]inventory.Facts{}}
	w := newWorld(t, 2, func(c *Config) { c.Facts = f })
	w.update("route", func(d *state.Draft) error {
		return state.AnnounceRoutes(d, 2, []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")})
	})
	at := netip.MustParseAddr("10.1.1.5")
	defer w.run()()
	w.eventually(func() bool { return w.fleet.Netmaps() != nil }, "netmaps")

	item := func() (i protocol.ServiceItem, ok bool) {
		m, _ := w.fleet.Netmaps().For(3)
		if len(m.Items) == 0 {
			return i, false
		}
		require.NoError(t, json.Unmarshal(m.Items[0].Body, &i))
		require.NoError(t, i.Check())
		return i, true
	}
	put := func(spec string) {
		w.update("declare", func(d *state.Draft) error {
			return state.PutObject(d, protocol.ItemService, "web", json.RawMessage(spec))
		})
	}
	put(`{"ports":[{"port":80}],"backends":[{"selector":{"app":"web"}}]}`)
	w.eventually(func() bool { _, ok := item(); return ok }, "the service")
	require.True(t, f.Any(), "containers are read")
	i, _ := item()
	require.Empty(t, i.Endpoints)
	seq := w.store.State().Seq
	s, err := w.fleet.ServicesAt(t.Context(), seq)
	require.NoError(t, err)
	require.Len(t, s.Of("web").Findings, 2)

	begun := time.Now()
	f.tells(2, map[string]protocol.Container{"a": running(at.String(), map[string]string{"app": "web"})})
	w.eventually(func() bool { i, _ := item(); return len(i.Endpoints) == 1 }, "the container")
	t.Logf("%s after the word", time.Since(begun).Round(time.Millisecond))
	i, _ = item()
	require.Equal(t, at, i.Endpoints[0].Addr)
	require.Equal(t, seq, w.store.State().Seq, "no transaction")

	put(`{"ports":[{"port":80}],"backends":[{"node":"n2"}]}`)
	w.eventually(func() bool { i, _ := item(); return len(i.Endpoints) == 1 && i.Endpoints[0].Name == "n2" }, "the node")
	w.eventually(func() bool { return !f.Any() }, "nobody asks for containers any more")

	w.update("delete", func(d *state.Draft) error { return d.Add(state.ObjectDeleted{Kind: protocol.ItemService, Name: "web"}) })
	w.eventually(func() bool { _, ok := item(); return !ok }, "it is gone")
}
