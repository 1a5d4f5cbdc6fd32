package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/identity"
	"causeway/protocol"
)

// What root of a member has the hub log, in sessions of his own, fills no disk and pushes out
// nobody else's lines.
func TestHostileSessions(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	bad := nodes[1]
	id, err := identity.Peek(bad.StateDir)
	require.NoError(t, err)

	a := &attacker{t: t, n: bad.Node}
	lines := func() int { return strings.Count(s.Hub.Proc.Output(), `"message":"node reports an error"`) }
	m, err := protocol.NewMessage(protocol.KindError, protocol.Error{Code: "x", Message: strings.Repeat("x", 400)})
	require.NoError(t, err)
	sent := 0
	for begin := time.Now(); sent < 250 && time.Since(begin) < stepTimeout; {
		if a.m == nil || protocol.WriteFrame(a.control, m, protocol.MaxToHub) != nil {
			if err := a.hello(id, nil); err != nil { // its agent takes the session back
				t.Log(err)
			}
			continue
		}
		sent++
	}
	require.NoError(t, a.hello(id, nil)) // so all before was read
	require.Less(t, lines(), 80, "of %d", sent)
	t.Logf("%d lines of %d errors", lines(), sent)
}
