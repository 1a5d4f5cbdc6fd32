package agent

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A task that is left out is missed here.
func TestTasks(t *testing.T) {
	var names []string
	for _, x := range new(Agent).tasks() {
		names = append(names, x.name)
	}
	require.Equal(t, []string{"host", "firewall", "netmap", "acknowledgements", "session", "tunnel", "facts", "inventory", "path MTUs", "keys", "hub list", "upgrade"}, names)
}
