package policy

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
)

func TestMeaning(t *testing.T) {
	in := bank()
	c := compile(t, in, nil)
	m, err := c.Rule("registry")
	require.NoError(t, err)
	require.Equal(t, "main/registry", m.Name)
	require.Equal(t, "2027-01-31", m.LastDay())
	require.Equal(t, Meant{Classes: 1, Segments: []string{"prod"}, Nodes: []string{"db-1"}, Prefixes: m.To.Prefixes}, m.To)
	require.Len(t, m.To.Prefixes, 2)
	require.Empty(t, m.Why)
	_, err = c.Rule("main/none")
	require.EqualError(t, err, `there is no rule "main/none"; see 'causeway policy show'`)

	// A wall that a rule does not open.
	in.Policies[0].Rules = slices.Clone(in.Policies[0].Rules)
	in.Policies[0].Rules[1].Across = nil
	m, err = compile(t, in, nil).Rule("main/registry")
	require.NoError(t, err)
	require.Contains(t, m.Why, "a wall is between them")

	a, err := c.End("10.1.1.7", "db-1")
	require.NoError(t, err)
	b, err := c.End("10.2.1.2", "10.1.1.7")
	require.NoError(t, err)
	require.Equal(t, []string{"web-1"}, a.Nodes)
	require.Equal(t, pfx("10.2.1.2/32"), b.Prefix)
	require.Equal(t, []Allow{{ports("tcp/5432"), "main/web-to-db"}, {ports("icmp"), "main/web-to-db"}}, c.Opened(a, b))
	require.Empty(t, c.Opened(b, a))
	six, err := c.End("db-1", "fd63::2")
	require.NoError(t, err)
	require.True(t, six.Prefix.Addr().Is6())
	_, err = c.End("eu/*", "db-1")
	require.ErrorContains(t, err, "may be many")
}

// What is stored goes on when a node that it names is gone: it is told, and keeps nothing else from being declared.
func TestStale(t *testing.T) {
	in := bank()
	in.Policies[0].Generation = 7
	in.Policies[0].Tests = []api.PolicyTest{{From: "lab-1", To: "db-1", Port: "tcp/443", Want: "open", By: "registry"}, {From: "lab-1", To: "web-1", Port: "tcp/443", Want: "open"}}
	in.Nodes = slices.DeleteFunc(in.Nodes, func(n Node) bool { return n.Name == "db-1" })
	c := compile(t, in, nil)
	m, err := c.Rule("registry")
	require.NoError(t, err)
	require.Equal(t, "to: node db-1 is gone", m.Why)
	require.NoError(t, c.Met(8))
	require.ErrorContains(t, c.Met(7), "rule main/web-to-db: to: ")
	require.Len(t, c.Failing(), 2)
	require.ErrorContains(t, c.Test(in.Policies[0].Tests[:1], false), `"db-1" is no address`)
	require.NoError(t, c.Test(in.Policies[0].Tests[:1], true))
	require.ErrorContains(t, c.Test(in.Policies[0].Tests, true), "wanted open, and it is closed")

	// A segment that another transaction makes wrong is that one's fault.
	in = bank()
	in.Policies[0].Generation, in.Segments[0].Generation = 7, 9
	in.Segments[0].Sites = []string{"nowhere"}
	require.ErrorContains(t, compile(t, in, nil).Met(9), "rule main/registry: from: segment dev")
}
