package agent

import (
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/agent/config"
)

// What an agent does all the time, for each configuration: a task that is left out is missed here.
func TestTasks(t *testing.T) {
	for name, set := range map[string]func(*config.Config){
		"as it comes":  nil,
		"metrics":      func(c *config.Config) { c.Debug.Metrics = "127.0.0.1:0" },
		"upgrades":     func(c *config.Config) { c.Upgrade.Allow = true },
		"another MTU":  func(c *config.Config) { c.Tunnel.MTU = 1300 },
		"shields down": func(c *config.Config) { c.Shields.State = "down" },
	} {
		w := newWorld(t)
		w.set = set
		a, err := w.build()
		require.NoError(t, err, name)
		names := func(l []task) (out []string) {
			for _, x := range l {
				out = append(out, x.name)
			}
			return out
		}
		r := &run{Agent: a}
		require.Equal(t, []string{"debug", "tunnel", "hubs"}, names(r.tasks()), name)
		require.Equal(t, []string{"host", "firewall", "path MTUs", "netmap", "acknowledgements", "lost sessions", "paths", "keys", "hub list", "services", "flows", "facts", "inventory", "names", "upgrade", "session"}, names(r.upTasks()), name)
	}
}

func TestCleanUps(t *testing.T) {
	var undone []string
	r := &run{}
	for _, x := range []string{"socket", "metrics", "tunnel"} {
		r.after(x, func() { undone = append(undone, x) })
	}
	r.close()
	require.Equal(t, []string{"tunnel", "metrics", "socket"}, undone, "last in, first out")
}
