package hub

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a hub does all the time, for each configuration: a task that is left out is missed here.
func TestTasks(t *testing.T) {
	always := []string{"state", "archives", "disk", "sessions", "reconcile", "hub list", "inventory", "incidents", "flows", "switches", "events", "tunnel"}
	const readers = "services for readers" // whom several hubs would tell what each knows alone
	doors := []string{"control", "bulk", "packages", "control", "bulk", "packages", "https", "admin socket"}
	for name, c := range map[string]struct {
		cfg          Config
		tasks, doors []string
	}{
		"as it comes":   {Config{}, []string{readers}, nil},
		"metrics":       {Config{ListenMetrics: "127.0.0.1:9465"}, []string{readers, "metrics"}, nil},
		"external NATS": {Config{NATSURL: "tls://nats.example.org:4222"}, []string{"external NATS", "inventory to external NATS", "flows to external NATS", "what waits at other hubs"}, nil},
		"remote admins": {Config{ListenAdmin: ":7443"}, []string{readers}, []string{"admin"}},
		"users of NATS": {Config{ListenNATS: ":4222"}, []string{readers}, []string{"NATS users"}},
		"all there is":  {Config{NATSURL: "tls://a:1", ListenAdmin: ":7443", ListenMetrics: ":9465"}, []string{"external NATS", "inventory to external NATS", "flows to external NATS", "what waits at other hubs", "metrics"}, []string{"admin"}},
	} {
		h, err := New(c.cfg)
		require.NoError(t, err, name)
		r := &run{Hub: h, outside: h.cfg.NATSURL != "", overlay: []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd63:7761:7900::1")}}
		names := func(l []task) (out []string) {
			for _, x := range l {
				out = append(out, x.name)
			}
			return out
		}
		require.Equal(t, append(append([]string{}, always...), c.tasks...), names(r.tasks()), name)
		require.Equal(t, append(append([]string{}, doors...), c.doors...), names(r.doors()), name)
	}
}

func TestCleanUps(t *testing.T) {
	var undone []string
	r := &run{}
	for _, x := range []string{"lock", "socket", "NATS"} {
		r.after(x, func() { undone = append(undone, x) })
	}
	r.close()
	require.Equal(t, []string{"NATS", "socket", "lock"}, undone, "last in, first out")
}
