package reconcile

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/facts/inventory"
	"causeway/hub/notice"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// told are facts that a test sets.
type told struct {
	notice.Board[protocol.NodeNumber]
	mu    sync.Mutex // facts, where a loop reads them
	facts map[protocol.NodeNumber]inventory.Facts
	asked int
}

func (f *told) Get(n protocol.NodeNumber) (inventory.Facts, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	x, ok := f.facts[n]
	return x, ok
}

func (f *told) Notices(wake chan<- struct{}) *notice.Reader[protocol.NodeNumber] { return f.Join(wake) }

func (f *told) tells(n protocol.NodeNumber, containers map[string]protocol.Container) {
	x := inventory.Facts{Number: n}
	x.Containers = containers
	f.mu.Lock()
	f.facts[n] = x
	f.mu.Unlock()
	f.Mark(n)
}

func running(a string, labels map[string]string) protocol.Container {
	return protocol.Container{State: protocol.ContainerRunning, Addresses: []netip.Addr{netip.MustParseAddr(a)}, Labels: labels}
}

// Pods are read while rules ask for them, and only what rules see of them counts as a change, a few times a second at most.
func TestPods(t *testing.T) {
	st := statetest.Cluster(t, 1).State
	n := st.LiveNodes()[0].Number
	f := &told{facts: map[protocol.NodeNumber]inventory.Facts{}}
	web := map[string]string{"app": "web"}
	f.tells(n, map[string]protocol.Container{"b": running("10.1.0.2", web), "a": running("10.1.0.1", nil), "gone": {State: protocol.ContainerExited, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.3")}}, "host": {State: protocol.ContainerRunning}})
	var p pods
	now := time.Now()
	require.False(t, p.look(f, now), "nobody asks")
	require.Empty(t, p.list(f, st, false))
	require.Zero(t, f.asked)
	l := p.list(f, st, true)
	require.Len(t, l, 2)
	require.Equal(t, []string{"10.1.0.1", "10.1.0.2"}, []string{l[0].Addrs[0].String(), l[1].Addrs[0].String()})
	require.Equal(t, web, l[1].Labels)

	require.False(t, p.look(f, now))
	f.tells(n, map[string]protocol.Container{"b": running("10.1.0.2", web), "a": running("10.1.0.1", nil)})
	require.False(t, p.look(f, now.Add(podsEvery)), "what changed is nothing that rules see")
	f.tells(n, map[string]protocol.Container{"b": running("10.1.0.2", nil)})
	require.False(t, p.look(f, now.Add(podsEvery+time.Millisecond)), "too soon")
	require.True(t, p.look(f, now.Add(2*podsEvery)))
	require.Len(t, p.list(f, st, true), 1)
	p.compiled(time.Second)
	f.MarkAll()
	f.tells(n, nil)
	require.False(t, p.look(f, time.Now().Add(podsRest*time.Second-100*time.Millisecond)), "after a compilation that took long")
	require.True(t, p.look(f, time.Now().Add(podsRest*time.Second)))
	require.Empty(t, p.list(f, st, true))

	// A node that is away, whose facts are kept, keeps its pods; one that is none any more has none.
	f.tells(n, map[string]protocol.Container{"a": running("10.1.0.1", web)})
	require.True(t, p.look(f, time.Now().Add(time.Minute)))
	require.Len(t, p.list(f, st, true), 1)
	require.Empty(t, p.list(f, &state.State{}, true))
	require.Empty(t, p.list(f, st, false))
	require.False(t, f.Any(), "nobody reads where no rule asks")
}
