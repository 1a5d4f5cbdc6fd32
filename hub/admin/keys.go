package admin

import (
	"fmt"
	"time"

	"causeway/hub/state"
	"causeway/protocol"
)

// keysCondition tells of nodes whose key should have been rotated by now.
func keysCondition(st *state.State, now, since time.Time) protocol.Condition {
	c := protocol.Condition{Name: "keys", OK: true, Since: since}
	n := 0
	for _, node := range st.LiveNodes() {
		if why := st.KeyOverdue(node, now); why != "" {
			if n++; n == 1 {
				c.OK, c.Cause = false, "node "+node.Name+": "+why
			}
		}
	}
	if n > 1 {
		c.Cause += fmt.Sprintf("; and %d more nodes are overdue", n-1)
	}
	return c
}

// listCondition tells of a hub list that nears its end. It is signed anew at half
// of its time, so that something is wrong long before.
func listCondition(st *state.State, now, since time.Time) protocol.Condition {
	c := protocol.Condition{Name: "hub_list", OK: true, Since: since}
	l := st.Hubs
	if left := l.NotAfter.Sub(now); !l.NotAfter.IsZero() && left < l.NotAfter.Sub(l.NotBefore)/3 {
		c.OK, c.Cause = false, fmt.Sprintf("the hub list is valid until %s and was not signed anew; look at the hub's log", l.NotAfter.UTC().Format(time.RFC3339))
	}
	return c
}
