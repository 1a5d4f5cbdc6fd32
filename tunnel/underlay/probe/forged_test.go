package probe

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// Whatever a probe's bytes are changed to, it is neither answered nor believed.
// The relay may change the number; then numbers do not agree.
func TestChangedProbesDoNothing(t *testing.T) {
	w, a, b := directPair(t)
	w.pass(time.Second)
	w.lost = func(packet) bool { return true }
	for _, x := range []*simAgent{a, b} {
		x.Hold(w.now, 21-x.number, w.hub.addr, true) // something to gain
		x.next = w.now
	}
	from := len(w.log)
	w.pass(1100 * time.Millisecond) // questions of every kind, never delivered
	kinds := map[protocol.ProbeKind]bool{}
	try := func(p packet) (answer []packet) {
		m, err := protocol.ParseProbe(p.data)
		require.NoError(t, err)
		kinds[m.Kind] = true
		for i := range protocol.ProbeSize {
			d := bytes.Clone(p.data)
			d[i] ^= 0x40
			before := len(w.log)
			var r Reason
			if p.to == w.hub.addr {
				if protocol.MessageNumber(d) != 0 { // for somebody else, or to be relayed
					continue
				}
				var out Output
				r = w.hub.Receive(w.now, p.from, netip.Addr{}, d, &out)
				require.Empty(t, out.Sends)
				require.False(t, out.Changed)
			} else {
				x := a
				if p.to == b.addr {
					x = b
				}
				var out Output
				r = x.Receive(w.now, p.from, d, &out)
				require.Equal(t, Output{}, out)
			}
			require.NotEqual(t, OK, r, "%s, byte %d", m.Kind, i)
			require.Len(t, w.log, before)
		}
		before := len(w.log)
		require.Equal(t, OK, w.deliver(p), "%s unchanged", m.Kind)
		return w.log[before:]
	}
	todo := append([]packet(nil), w.log[from:]...)
	for n := 0; len(todo) > 0 && n < 40; n++ {
		p := todo[0]
		todo = todo[1:]
		if protocol.MessageNumber(p.data) != 0 && p.to == w.hub.addr {
			continue // the relay's
		}
		for _, q := range try(p) {
			if m, _ := protocol.ParseProbe(q.data); len(todo) < 40 && m.Kind != protocol.ProbeQuestion {
				todo = append([]packet{q}, todo...)
			}
		}
	}
	for k := protocol.ProbeQuestion; k <= protocol.ProbeAcknowledge; k++ {
		require.True(t, kinds[k], "%s was not tried", k)
	}
	require.Empty(t, a.restarted)
	require.Empty(t, w.hub.restarted)
}

// An answer of the old run that comes after the new run's proof changes nothing.
func TestLateAnswerOfTheOldRun(t *testing.T) {
	w, a, b := directPair(t)
	var late []packet
	w.lost = func(p packet) bool {
		m, err := protocol.ParseProbe(p.data)
		if err == nil && m.Kind == protocol.ProbeAnswer && m.From == 11 && p.to == a.addr {
			late = append(late, p)
			return true
		}
		return false
	}
	w.pass(700 * time.Millisecond)
	require.NotEmpty(t, late)
	w.lost = nil
	b.start()
	w.pass(time.Second)
	require.Equal(t, []protocol.NodeNumber{11}, a.restarted)
	for _, p := range late {
		require.Equal(t, Replayed, w.deliver(p))
	}
	require.Equal(t, []protocol.NodeNumber{11}, a.restarted)

	// The same where the older question is still open: it was asked before, so
	// its answer may be older than the restart.
	var (
		p   proof
		out Output
	)
	require.True(t, p.proven(1, protocol.BootID{1}, 5, &out))
	require.True(t, p.proven(1, protocol.BootID{2}, 8, &out))
	require.False(t, p.proven(1, protocol.BootID{1}, 7, &out))
	require.True(t, p.proven(1, protocol.BootID{2}, 7, &out))
	require.True(t, p.proven(1, protocol.BootID{3}, 9, &out))
	require.Equal(t, []protocol.NodeNumber{1, 1}, out.Restarted)
}

func TestUnnamingAnAddressNeedsAnother(t *testing.T) {
	w, p := newProver(t)
	p.bind(at(1))
	p.bind(at(2))
	c := p.challenge(at(2), 0) // a confirmation that names nothing
	r, _ := p.confirm(at(2), c)
	require.Equal(t, OK, r)
	require.Equal(t, []netip.AddrPort{at(2), at(1)}, w.hub.Bound(10))
}
