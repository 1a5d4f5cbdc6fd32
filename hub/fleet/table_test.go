package fleet

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/liveness"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// world is a table over a state that the test decides on.
type world struct {
	*Table
	st     *state.Draft
	events *event.Log
}

// newWorld has nodes 2 to nodes+1 of site a, n2 and so on, whose agents ran.
func newWorld(t *testing.T, nodes int) *world {
	w := &world{st: statetest.Cluster(t, nodes), events: &event.Log{}}
	w.Table = New(Config{Number: 1, State: func() *state.State { return w.st.State }, Proven: func(protocol.NodeNumber) time.Time { return time.Time{} }, Events: w.events, Log: zerolog.Nop()})
	return w
}

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/LIMITS.md")
	require.NoError(t, err)
	for _, want := range []string{
		fmt.Sprintf("| %d at once, %d anew and one a second |", MaxConnsNode, connBurst),
		fmt.Sprintf("| %d at once, one in %d s |", helloBurst, HelloEvery/time.Second),
		fmt.Sprintf("| %d at once, one in %d s | left out", voiceBurst, voiceEvery/time.Second),
		fmt.Sprintf("| what a status says of backends | each node | %d, %d bytes of a cause |", protocol.MaxServiceReadiness, protocol.MaxReadinessCause),
	} {
		require.Contains(t, string(b), want)
	}
}

// A session stands for its node until another takes its place, which none may that proves less.
func TestSessionsTakeEachOthersPlace(t *testing.T) {
	w := newWorld(t, 1)
	first, second, stranger := NewSession(2, true), NewSession(2, true), NewSession(2, false)
	old, ok := w.Up(first, protocol.Hello{AgentVersion: "1"})
	require.True(t, ok)
	require.Nil(t, old)
	require.True(t, w.ProvenNow(2))
	_, ok = w.Up(stranger, protocol.Hello{})
	require.False(t, ok, "a session that proved itself is up")
	old, ok = w.Up(second, protocol.Hello{AgentVersion: "2"})
	require.True(t, ok)
	require.Same(t, first, old)

	w.Status(first, protocol.Status{Conditions: []protocol.Condition{{Name: "x"}}})
	w.Acked(first, protocol.NetmapAck{Errors: []string{"x"}})
	w.WantsToLeave(first)
	require.False(t, w.Gone(first, true))
	x := w.Snapshot().Node(2)
	require.Same(t, second, x.Session)
	require.Equal(t, "2", x.Hello.AgentVersion)
	require.Empty(t, x.Errors)
	require.Empty(t, x.Status.Conditions)
	require.True(t, x.Left.Since.IsZero())

	require.True(t, w.Gone(second, true))
	x = w.Snapshot().Node(2)
	require.Nil(t, x.Session)
	require.True(t, x.Goodbye)
	require.False(t, x.Up.IsZero())
	back, of := w.Came(w.st.State)
	require.Equal(t, []int{1, 1}, []int{back, of})
	_, ok = w.Up(stranger, protocol.Hello{})
	require.True(t, ok)
}

// A snapshot is of its moment.
func TestSnapshotStands(t *testing.T) {
	w := newWorld(t, 2)
	w.Remember(Memory{Nodes: map[protocol.NodeNumber]Remembered{2: {Online: true}, 3: {}}})
	ses := NewSession(2, true)
	w.Up(ses, protocol.Hello{})
	before := w.Snapshot()
	w.Status(ses, protocol.Status{Candidates: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}})
	w.Up(NewSession(3, true), protocol.Hello{})
	require.Equal(t, 1, before.Nodes.Len())
	require.Empty(t, before.Node(2).Status.Candidates)
	require.Equal(t, 2, before.Before.Len())
	after := w.Snapshot()
	require.Equal(t, 2, after.Nodes.Len())
	require.Equal(t, 1, after.Before.Len(), "node 2 has reported")
	select {
	case <-w.Touched():
	default:
		t.Fatal("a node that is reached elsewhere changes netmaps")
	}
}

// Netmaps that are new wake sessions, and from then on a session owes one.
func TestNetmapsAreOwed(t *testing.T) {
	w := newWorld(t, 2)
	ses := NewSession(2, true)
	w.Up(ses, protocol.Hello{})
	first := plan.Compute(w.st.State, nil, nil, nil, nil)
	w.SetNetmaps(first, map[protocol.NodeNumber]plan.Live{2: {Online: true}}, time.Now())
	<-ses.Awake()
	w.Holds(ses, first)
	require.Zero(t, w.Standings(w.st.State)[2].Behind)
	again := plan.Compute(w.st.State, nil, nil, nil, first)
	w.SetNetmaps(again, nil, time.Now().Add(-time.Minute))
	<-ses.Awake()
	require.GreaterOrEqual(t, w.Standings(w.st.State)[2].Behind, time.Minute)
	require.Same(t, first, w.Snapshot().Node(2).Held)
}

// What the next run is to know is told once for each news, and read as it was written.
func TestMemory(t *testing.T) {
	w := newWorld(t, 2)
	_, news := w.Unsaved()
	require.False(t, news)
	at := netip.MustParseAddrPort("192.0.2.1:1")
	w.SetNetmaps(&plan.Netmaps{Owners: map[netip.Prefix][]protocol.NodeNumber{netip.MustParsePrefix("10.1.1.0/24"): {2}}}, map[protocol.NodeNumber]plan.Live{2: {Online: true, Candidates: []netip.AddrPort{at}}}, time.Now())
	m, news := w.Unsaved()
	require.True(t, news)
	_, news = w.Unsaved()
	require.False(t, news)
	path := t.TempDir() + "/live.json"
	none, err := LoadMemory(path)
	require.NoError(t, err)
	require.Empty(t, none.Nodes)
	require.NoError(t, m.Save(path))
	again, err := LoadMemory(path)
	require.NoError(t, err)
	require.Equal(t, map[protocol.NodeNumber]Remembered{2: {true, []netip.AddrPort{at}, false}}, again.Nodes)
	next := newWorld(t, 2)
	next.Remember(again)
	require.Equal(t, []protocol.NodeNumber{2}, next.Snapshot().Earlier.Owners[netip.MustParsePrefix("10.1.1.0/24")])
	next.Missed()
	require.EqualValues(t, 1, next.events.Count(event.NodeUnreachable))
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	_, err = LoadMemory(path)
	require.Error(t, err)
}

// A node that is gone is dismissed once, and forgotten when it has been told.
func TestDismiss(t *testing.T) {
	w := newWorld(t, 2)
	ses := NewSession(2, true)
	w.Up(ses, protocol.Hello{})
	w.Drop(2)
	require.Equal(t, 1, w.Snapshot().Nodes.Len(), "it has a session")
	done, ok := w.Dismiss(ses)
	require.True(t, ok)
	_, ok = w.Dismiss(ses)
	require.False(t, ok)
	w.Gone(ses, true)
	w.Drop(2)
	require.True(t, w.Snapshot().Node(2).Leaving, "the tunnel keeps it until it was told")
	done()
	require.Zero(t, w.Snapshot().Nodes.Len())
	<-w.Departed()

	mine := NewSession(3, true)
	w.Up(mine, protocol.Hello{})
	w.Leaving(mine)
	_, ok = w.Dismiss(mine)
	require.False(t, ok, "it leaves by its own wish")
	w.Left(mine, false)
	require.False(t, w.Snapshot().Node(3).Leaving)
	w.Leaving(mine)
	w.Left(mine, true)
	require.Zero(t, w.Snapshot().Nodes.Len())
}

// Who confirms that a node is gone is followed from the revocation on.
func TestRevokedIsFollowed(t *testing.T) {
	w := newWorld(t, 3)
	old := plan.Compute(w.st.State, nil, nil, nil, nil)
	ses, late := NewSession(2, true), NewSession(3, true)
	w.Up(ses, protocol.Hello{})
	w.Up(late, protocol.Hello{})
	w.Holds(ses, old)
	w.Holds(late, old)
	w.st.Now = time.Now()
	require.NoError(t, state.Remove(w.st, 4, state.GoneRevoked))
	_, ok := w.Revoked(4)
	require.False(t, ok)
	w.NoteRevoked(w.st.State)
	w.Holds(ses, plan.Compute(w.st.State, nil, nil, nil, old))
	w.Acked(late, protocol.NetmapAck{Errors: []string{"nftables"}})
	w.Holds(late, plan.Compute(w.st.State, nil, nil, nil, old))
	w.Cut(func(protocol.NodeNumber) bool { return true })
	r, ok := w.Revoked(4)
	require.True(t, ok)
	require.True(t, r.Cut.IsZero())
	require.Len(t, r.Confirmed, 1, "node 3 may not have applied it")
	require.Contains(t, r.Confirmed, protocol.NodeNumber(2))
	w.Acked(late, protocol.NetmapAck{})
	r, _ = w.Revoked(4)
	require.Len(t, r.Confirmed, 2, "its host could do it later")
	w.Cut(func(n protocol.NodeNumber) bool { return n != 4 })
	r, _ = w.Revoked(4)
	require.False(t, r.Cut.IsZero())
}

// A host with an earlier state of a node is why the node is unreachable, and an event tells of it once.
func TestStraysAreShown(t *testing.T) {
	w := newWorld(t, 1)
	n := w.st.Nodes.Get(2)
	n.Statement = &protocol.SignedNodeStatement{NodeStatement: protocol.NodeStatement{Epoch: 2}}
	w.mu.Lock()
	w.node(n.Number).machine = liveness.New(time.Now().Add(-time.Minute))
	w.mu.Unlock()
	require.Equal(t, api.NodeUnreachable, w.Info(n).State)
	before := w.Info(n).Reasons
	from := netip.MustParseAddr("192.0.2.7")
	for range 3 {
		w.NoteStray(n, protocol.NodeAsk{Number: n.Number, Epoch: 1}, from)
	}
	require.NotEqual(t, before, w.Info(n).Reasons)
	require.Contains(t, w.Info(n).Reasons[0], "a host at 192.0.2.7 has this node's identity with key epoch 1")
	require.Equal(t, w.Info(n).Reasons, w.Snapshot().Info(n).Reasons)
	require.Len(t, w.Strays(), 1)
	require.Equal(t, uint64(1), w.events.Count("node_set_back"))

	w.mu.Lock()
	x := w.strays.Get(n.Number)
	x.At = time.Now().Add(-strayFor)
	w.strays.Set(n.Number, x)
	w.mu.Unlock()
	require.Empty(t, w.Strays(), "it asks no more")
	require.Equal(t, before, w.Info(n).Reasons)
	for i := range protocol.NodeNumber(2 * maxStrays) {
		w.NoteStray(state.Node{Number: i + 10, Name: "x"}, protocol.NodeAsk{}, from)
	}
	require.Equal(t, maxStrays, w.strays.Len())
}

// A host that was told to join anew under its old name, and did, is no stray any more; one that goes
// on asking is another.
func TestStraysThatJoinedAnew(t *testing.T) {
	w := newWorld(t, 1)
	n := w.st.Nodes.Get(2)
	ask := func() { w.NoteStray(n, protocol.NodeAsk{Number: n.Number, Epoch: 1}, netip.MustParseAddr("192.0.2.7")) }
	ask()
	n.Gone = state.GoneRevoked
	w.st.Nodes.Set(2, n)
	require.Len(t, w.Strays(), 1, "nobody has joined")
	secret := protocol.TokenSecret{9}
	hash := secret.Hash()
	w.st.Now = time.Now()
	require.NoError(t, w.st.Add(state.TokenCreated{ID: protocol.TokenID{9}, Hash: hash[:], Site: n.Site, Expires: w.st.Now.Add(time.Hour), Replace: n.Name}))
	w.st.Nodes.Set(2, state.Node{Number: 2, Name: n.Name, Site: n.Site})
	require.NoError(t, state.Redeem(w.st, state.RedeemRequest{Token: protocol.TokenID{9}, Secret: secret, WireGuardKey: protocol.WireGuardPublicKey{9}, IdentityKey: protocol.IdentityPublicKey{9}, Name: n.Name, Replace: true}))
	require.Empty(t, w.Strays())
	ask()
	require.Len(t, w.Strays(), 1)
}
