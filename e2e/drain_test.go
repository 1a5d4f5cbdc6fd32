package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// drainWorld are two nodes of a site that announce its LAN, whose gateway goes on
// answering through the first, and a pod far away.
type drainWorld struct {
	*System
	t           *testing.T
	gates       []*lab.Host
	pod, server *lab.Host
}

const drainPrefix, drainServer = "192.168.7.0/24", "192.168.7.50"

func newDrainWorld(t *testing.T) *drainWorld {
	needRoot(t)
	l := lab.New(t)
	inet := l.Switch("inet")
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	lan := l.Switch("lan")
	server := l.Host("server").Link("eth0", lan, drainServer+"/24").Default("192.168.7.11")
	var gates []*lab.Host
	for i := range 2 {
		h := l.Host(fmt.Sprintf("g%d", i+1)).Link("eth0", inet, fmt.Sprintf("203.0.113.%d/24", 21+i)).Link("eth1", lan, fmt.Sprintf("192.168.7.%d/24", 11+i))
		gates = append(gates, h)
	}
	far := l.Host("far").Link("eth0", inet, "203.0.113.31/24")
	pods := far.PodNet("pods0", "10.3.1.1/24")
	pod := pods.Pod("pod", "10.3.1.11/24")
	s, err := NewSystem(step(t), l, binaries(t), hub, HubAddr)
	require.NoError(t, err)
	for _, h := range append(gates, far, server) {
		require.NoError(t, h.Settle(step(t)))
	}
	require.NoError(t, s.CreateSite(step(t), "dc"))
	require.NoError(t, s.CreateSite(step(t), "cloud"))
	for i, h := range gates {
		name := fmt.Sprintf("g%d", i+1)
		_, err := s.Join(step(t), NodeSpec{Name: name, Site: "dc", Host: h, TokenRoutes: []string{drainPrefix}})
		require.NoError(t, err)
		require.NoError(t, s.WaitReady(step(t), name)) // of two that are there the first one carries the prefix
	}
	_, err = s.Join(step(t), NodeSpec{Name: "far", Site: "cloud", Host: far, TokenRoutes: []string{"10.3.1.0/24"}, Accept: []string{drainPrefix, "10.0.0.0/8"}})
	require.NoError(t, err)
	require.NoError(t, s.WaitReady(step(t), "g1", "g2", "far"))
	require.NoError(t, Ping(step(t), pod, drainServer))
	_, err = s.Serve(step(t), server)
	require.NoError(t, err)
	require.NoError(t, s.WaitPath(step(t), "far", "g1", protocol.PathDirect))
	return &drainWorld{s, t, gates, pod, server}
}

func (w *drainWorld) number(h *lab.Host, awk, file string) int {
	w.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(h.Sh("awk '" + awk + "' " + file)))
	require.NoError(w.t, err)
	return n
}

// carried is how many packets a gate sent into the LAN.
func (w *drainWorld) carried(h *lab.Host) int {
	return w.number(h, "/eth1:/{print $11}", "/proc/net/dev")
}

// sent is how many TCP segments a host sent so far, those sent again too.
func (w *drainWorld) sent(h *lab.Host) int {
	return w.number(h, `/^Tcp: [0-9]/{print $12+$13}`, "/proc/net/snmp")
}

// received is how many TCP segments came to a host so far, those counted that the kernel joined:
// IPv4 packets are counted so by their ECN bits, and nowhere else. Those of ICMP and UDP are taken off.
func (w *drainWorld) received(h *lab.Host) int {
	all := w.number(h, `/^IpExt: [A-Z]/{split($0,a)} /^IpExt: [0-9]/{for(i=1;i<=NF;i++) if(a[i]~/^In(NoECT|ECT1|ECT0|CE)Pkts$/) n+=$i; print n}`, "/proc/net/netstat")
	return all - w.number(h, `/^Icmp: [0-9]/{n+=$2} /^Udp: [0-9]/{n+=$2+$3+$4} END{print n}`, "/proc/net/snmp")
}

// losses are how many segments were lost so far of those to and from the server.
type losses struct{ to, from int }

// lost waits until no connection is left of pod and server, and nothing is on its way
// any more, and counts what was lost so far. Segments sent again say less: the new path
// overtakes the old one, and TCP takes for lost what is only late.
func (w *drainWorld) lost() losses {
	w.t.Helper()
	// The counters are read one after the other: they belong together only if they stand still.
	var last, now [4]int
	require.NoError(w.t, lab.Wait(step(w.t), "the last segment to arrive", func(context.Context) error {
		for _, h := range []*lab.Host{w.pod, w.server} {
			if open := strings.TrimSpace(h.Sh("ss -Htan state connected exclude time-wait")); open != "" {
				return fmt.Errorf("open: %s", open)
			}
		}
		last, now = now, [4]int{w.sent(w.pod), w.received(w.server), w.sent(w.server), w.received(w.pod)}
		if last != now {
			return fmt.Errorf("sent and received: %v, just before %v", now, last)
		}
		return nil
	}))
	return losses{now[0] - now[1], now[2] - now[3]}
}

// noneLost wants no more lost than before. What is more than was sent is no loss.
func (w *drainWorld) noneLost(before losses) {
	w.t.Helper()
	after := w.lost()
	w.t.Logf("lost before: %+v, after: %+v", before, after)
	require.LessOrEqual(w.t, after.to, before.to, "segments lost on the way to the server")
	require.LessOrEqual(w.t, after.from, before.from, "segments lost on the way back")
}

// bulk begins a transfer through a gate, as fast as it can if pace is 0.
func (w *drainWorld) bulk(gate, pace int) *lab.Process {
	w.t.Helper()
	before := w.carried(w.gates[gate])
	p, err := w.pod.Start(lab.Program{Name: "bulk", Args: []string{w.Bin.Labtool, "bulk", drainServer, "-pace", strconv.Itoa(pace)}})
	require.NoError(w.t, err)
	require.NoError(w.t, p.WaitOutput(step(w.t), "connected"))
	w.through(gate, before)
	return p
}

// through waits until a gate has carried 500 packets more than before.
func (w *drainWorld) through(gate, before int) {
	w.t.Helper()
	require.NoError(w.t, lab.Wait(step(w.t), fmt.Sprintf("the transfer to go through g%d", gate+1), func(context.Context) error {
		if w.carried(w.gates[gate]) < before+500 {
			return context.DeadlineExceeded
		}
		return nil
	}))
}

// drain drains a gate, and returns when the others have followed.
func (w *drainWorld) drain(from, to string) {
	w.t.Helper()
	out, err := w.CLI(step(w.t), "node", "drain", from, "-o", "json")
	require.NoError(w.t, err)
	var d api.Drain
	require.NoError(w.t, json.Unmarshal([]byte(out), &d))
	require.Len(w.t, d.Moved, 1)
	require.Equal(w.t, to, d.Moved[0].To)
	require.Empty(w.t, d.Waiting)
}

// Draining the one of two gates that carries a transfer loses nothing in either
// direction, at 32 Mbit/s. Not parallel: it counts what was lost.
func TestDrainLosesNothing(t *testing.T) {
	lab.Counts(t)
	s := newDrainWorld(t)
	pod, server := s.pod, s.server
	before := s.lost()
	p := s.bulk(0, 4000000)
	s.drain("g1", "g2")
	require.True(t, p.Running(), p.Output())
	s.through(1, s.carried(s.gates[1]))
	require.NoError(t, p.Stop(step(t)), "the transfer: %s", p.Output())
	t.Log(strings.TrimSpace(p.Output()))
	s.noneLost(before)

	// Now it may stop: nothing goes through it but the answers of a gateway that does
	// not know, and that is moved too.
	server.Sh("ip route replace default via 192.168.7.12")
	require.NoError(t, s.Node("g1").Proc.Stop(step(t)))
	require.NoError(t, PingOnce(step(t), pod, drainServer))
	require.NoError(t, s.Node("g1").Start())
	require.NoError(t, s.WaitReady(step(t), "g1"))
	_, err := s.CLI(step(t), "node", "undrain", "g1")
	require.NoError(t, err)
	require.NoError(t, PingOnce(step(t), pod, drainServer))

	// At full speed, to a gate that has started again, so that there is no session with it yet.
	before = s.lost()
	p = s.bulk(1, 0)
	carried := s.carried(s.gates[0])
	s.drain("g2", "g1")
	s.through(0, carried)
	require.NoError(t, p.Stop(step(t)), "the transfer: %s", p.Output())
	t.Log("full speed: " + strings.TrimSpace(p.Output()))
	s.noneLost(before)
}
