package service

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// Nothing comes out of the tunnel to a fenced backend once Fence has returned: what is open is reset with the next thing that it says, and
// none of that arrives. Whoever is beside the backend still reaches its own address, and a service of other ports is left alone.
func TestFence(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	w.serve("pl")
	w.set(services(64, "pl"))
	for _, v6 := range []bool{false, true} {
		to := backend("pl", v6).String()
		for _, round := range []string{"first", "after a start anew"} {
			var open []*flow
			for _, how := range []string{"talks", "asked"} {
				c, err := dial(w.a, "tcp", to)
				require.NoError(t, err)
				t.Cleanup(func() { c.Close() })
				_, _, err = answer(c)
				require.NoError(t, err)
				c.SetDeadline(time.Time{})
				open = append(open, &flow{what: how + " " + round, conn: c, done: make(chan struct{})})
			}
			if round != "first" { // the agent that did it is gone, and so is what it knew
				w.table = NewTable()
				w.set(services(64, "pl"))
			}
			w.on(func() error { return w.table.Fence(backends("pl"), nil) })
			require.True(t, w.table.Fenced())
			seen := sniff(t, w.pl, "eth0")
			for _, f := range open {
				f.goes()
			}
			for _, f := range open {
				select {
				case <-f.done:
					require.Error(t, f.err)
				case <-t.Context().Done():
				}
			}
			_, err := dial(w.a, "tcp", to)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
			_, _, err = ask(w.a, "udp", to)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
			_, _, err = ask(w.pc, "tcp", to)
			require.NoError(t, err, "beside it")
			require.Zero(t, payloads(seen(), ofA))

			// What is restored has it, too.
			w.n.Sh("nft delete table inet causeway-service")
			w.on(func() error {
				if _, err := w.table.Differs(); err != nil {
					return err
				}
				return w.table.setHost(*w.table.host)
			})
			_, err = dial(w.a, "tcp", to)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)

			w.on(func() error { return w.table.Fence(nil, nil) })
			name, _, err := ask(w.a, "tcp", to)
			require.NoError(t, err)
			require.Equal(t, "pl", name)
		}
	}
}

// Flows that left are at an end, and those of another service to the same backend go on.
func TestLeft(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	w.serve("a", "b")
	other := services(64, "a")
	for i := range other {
		other[i].Port += 10
	}
	for _, v6 := range []bool{false, true} {
		w.set(append(services(64, "a"), other...))
		vip := netip.MustParseAddr(vip4)
		if v6 {
			vip = netip.MustParseAddr(vip6)
		}
		leaves, too := w.open("pc", v6, "talks"), w.open("n", v6, "talks")
		idle, late := w.open("pc", v6, "idle"), w.open("lan", v6, "asked")
		c, err := dial(w.pc, "tcp", at(v6, 90))
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		w.set(append(services(64), other...))
		gone := []Left{{vip, tcp, 80, backend("a", v6).Addr()}, {vip, udp, 80, backend("a", v6).Addr()}}
		w.on(func() error { return w.table.Fence(nil, gone) })
		seen := sniff(t, w.a, "eth0")
		leaves.goes()
		too.goes()
		<-leaves.done
		<-too.done
		idle.goes()
		n := 0
		w.on(func() (err error) { n, err = w.table.End(t.Context(), gone); return err })
		require.GreaterOrEqual(t, n, 2, "those that were not reset yet, and such as conntrack has still")
		idle.reset(t, time.Now())
		// What has ended does not go on when nothing says so any more.
		w.on(func() error { return w.table.Fence(nil, nil) })
		late.goes()
		<-late.done
		require.Error(t, late.err)
		require.Zero(t, payloads(seen(), ofA))
		name, _, err := answer(c)
		require.NoError(t, err, "of another service")
		require.Equal(t, "a", name)
		_, _, err = ask(w.pc, "tcp", at(v6, 80))
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		// The next writer's own flows are no such ones.
		w.set(append(services(64, "b"), other...))
		w.on(func() error { return w.table.Fence(nil, []Left{{vip, tcp, 80, backend("a", v6).Addr()}}) })
		name, _, err = ask(w.pc, "tcp", at(v6, 80))
		require.NoError(t, err)
		require.Equal(t, "b", name)
	}
}

// payloads counts packets with a text.
func payloads(l []packet, text string) (n int) {
	for _, p := range l {
		if strings.Contains(string(p.payload), text) {
			n++
		}
	}
	return n
}
