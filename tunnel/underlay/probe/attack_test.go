package probe

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/protocol"
)

// The attacker sees every datagram, may lose any, and sends any datagram it has
// seen, changed or not, from any source address to any address. It may reflect
// what it is sent to whoever sent it. What it does not do here is forward
// both ways, live, between two that try to reach each other through its own
// addresses: whoever does that is a path, like any NAT.
//
// Whatever it does:
//   - an address is bound only to the node that was at it;
//   - traffic goes only where its addressee was;
//   - no path is taken for wider than it is (what is too large for the path
//     the attacker cannot get across either);
//   - no old boot id comes back (checked in simAgent.took), and nobody is told
//     of more restarts than there were;
//   - once it stops, everybody is reachable within seconds.
func TestAttacker(t *testing.T) {
	evil := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.66:1"), netip.MustParseAddrPort("203.0.113.66:2")}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 3)
		restarts := map[protocol.NodeNumber]int{}
		fresh := byte(100)
		loss := 0
		w.limit = always(1472)
		w.lost = func(packet) bool { return loss > 0 && int(w.rand()%100) < loss }
		w.pass(time.Second)

		isEvil := func(a netip.AddrPort) bool { return slices.Contains(evil, a) }
		everywhere := func() []netip.AddrPort {
			l := append([]netip.AddrPort{w.hub.addr}, evil...)
			for _, n := range w.numbers() {
				l = append(append(l, w.agents[n].addr), w.agents[n].was...)
			}
			return l
		}
		anyAgent := func(t *rapid.T) *simAgent { return w.agents[rapid.SampledFrom(w.numbers()).Draw(t, "node")] }
		settle := func() {
			loss = 0
			for _, n := range w.numbers() {
				for _, m := range w.numbers() {
					if m != n {
						w.agents[n].busy[m] = true
						w.agents[n].candidates(m, w.agents[m].addr)
					}
				}
				w.agents[n].next = w.now
			}
			w.pass(8 * time.Second)
			for _, n := range w.numbers() {
				a := w.agents[n]
				require.True(t, a.HubAlive(w.now, simHubNumber), "node %d at the hub", n)
				require.Equal(t, a.addr, w.hub.Bound(n)[0], "node %d", n)
				for _, m := range w.numbers() {
					if m != n {
						// A path that failed lately is on trial.
						require.Contains(t, []Hop{{Addr: w.agents[m].addr, Number: n}, {Addr: w.hub.addr, Number: m}}, a.Route(m).Hop.bare(), "%d to %d", n, m)
					}
				}
			}
		}

		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				for _, n := range w.numbers() {
					a := w.agents[n]
					for _, b := range w.hub.Bound(n) {
						require.True(t, b == a.addr || slices.Contains(a.was, b), "%s is bound to %d", b, n)
					}
					for _, m := range w.numbers() {
						if m == n {
							continue
						}
						require.LessOrEqual(t, a.Route(m).Size, 1472)
						if r := a.Route(m); r.Kind == protocol.PathDirect {
							for _, h := range r.Live {
								o := w.agents[m]
								require.True(t, h.Addr == w.hub.addr || h.Addr == o.addr || slices.Contains(o.was, h.Addr), "%d sends to %s for %d", n, h.Addr, m)
							}
						}
						require.LessOrEqual(t, len(a.boots[m]), 1+restarts[m])
					}
				}
			},
			"time": func(t *rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond)
			},
			"traffic": func(t *rapid.T) {
				a, b := anyAgent(t), anyAgent(t)
				if a != b {
					a.busy[b.number] = true
					if rapid.Bool().Draw(t, "candidate") {
						a.candidates(b.number, b.addr, evil[0])
					}
					a.next = w.now
				}
			},
			"loss": func(t *rapid.T) { loss = rapid.SampledFrom([]int{0, 20, 100}).Draw(t, "loss") },
			"restart": func(t *rapid.T) {
				a := anyAgent(t)
				restarts[a.number]++
				a.start()
			},
			"restart hub": func(t *rapid.T) { w.startHub() },
			"new mapping": func(t *rapid.T) {
				a := anyAgent(t)
				fresh++
				a.was = append(a.was, a.addr)
				a.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, fresh}), 5000)
			},
			"inject": func(t *rapid.T) {
				if len(w.log) == 0 {
					return
				}
				// Mostly of what was said lately: the rest is refused for its age.
				from := 0
				if rapid.Bool().Draw(t, "recent") {
					from = max(0, len(w.log)-40)
				}
				for range rapid.IntRange(1, 8).Draw(t, "copies") {
					p := w.log[rapid.IntRange(from, len(w.log)-1).Draw(t, "packet")]
					d := bytes.Clone(p.data)
					src := rapid.SampledFrom(everywhere()).Draw(t, "src")
					to := rapid.SampledFrom(everywhere()).Draw(t, "to")
					if isEvil(p.to) { // only back to where it came from
						src, to = p.to, p.from
					}
					switch rapid.IntRange(0, 4).Draw(t, "change") {
					case 0:
						d[rapid.IntRange(0, len(d)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
					case 1:
						protocol.SetMessageNumber(d, rapid.SampledFrom(append(w.numbers(), 0, 1, 999)).Draw(t, "number"))
					case 2:
						d = d[:rapid.IntRange(0, len(d)).Draw(t, "cut")]
					}
					if len(d) <= 1472 {
						w.deliver(packet{w.now, src, to, d})
					}
				}
			},
		})
		settle()
	})
}

// Without losing anything the attacker changes no size and moves no path,
// whatever it repeats, reflects, reorders and changes.
func TestAttackerChangesNoSize(t *testing.T) {
	evil := netip.MustParseAddrPort("203.0.113.66:1")
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 2)
		w.limit = always(1472)
		a, b := w.agent(10), w.agent(11)
		a.candidates(11, b.addr)
		b.candidates(10, a.addr)
		a.busy[11], b.busy[10] = true, true
		w.pass(5 * time.Second)
		a.sizes, b.sizes = nil, nil
		places := []netip.AddrPort{a.addr, b.addr, w.hub.addr, evil}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				for _, x := range []*simAgent{a, b} {
					r := x.Route(21 - x.number)
					require.Equal(t, direct, r.Kind)
					require.Equal(t, 1472, r.Size)
					require.Empty(t, x.sizes)
				}
			},
			"time": func(t *rapid.T) {
				w.pass(time.Duration(rapid.IntRange(1, 2000).Draw(t, "ms")) * time.Millisecond)
			},
			"inject": func(t *rapid.T) {
				for range rapid.IntRange(1, 8).Draw(t, "copies") {
					p := w.log[rapid.IntRange(max(0, len(w.log)-60), len(w.log)-1).Draw(t, "packet")]
					d := bytes.Clone(p.data)
					src, to := rapid.SampledFrom(places).Draw(t, "src"), rapid.SampledFrom(places).Draw(t, "to")
					switch rapid.IntRange(0, 3).Draw(t, "change") {
					case 0:
						d[rapid.IntRange(0, len(d)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
					case 1: // another length, named or not
						d = append(d[:protocol.ProbeSize], make([]byte, rapid.IntRange(0, 1472-protocol.ProbeSize).Draw(t, "padding"))...)
						if rapid.Bool().Draw(t, "named") {
							binary.BigEndian.PutUint16(d[22:], uint16(len(d)-protocol.ProbeSize))
						}
					case 2:
						src, to = p.from, p.to
					}
					if len(d) <= 1472 {
						w.deliver(packet{w.now, src, to, d})
					}
				}
			},
		})
	})
}
