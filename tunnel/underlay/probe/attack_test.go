package probe

import (
	"bytes"
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
						require.Contains(t, []Hop{{w.agents[m].addr, n}, {w.hub.addr, m}}, a.Route(m).Hop, "%d to %d", n, m)
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
					w.deliver(packet{w.now, src, to, d})
				}
			},
		})
		settle()
	})
}
