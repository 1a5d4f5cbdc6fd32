package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

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
		_, err := s.Join(step(t), NodeSpec{Name: fmt.Sprintf("g%d", i+1), Site: "dc", Host: h, TokenRoutes: []string{drainPrefix}})
		require.NoError(t, err)
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

// lost is how many segments a host sent again, but for those that the other side
// says it had: they were only late, as the new path overtakes the old one.
func (w *drainWorld) lost(h *lab.Host) int {
	return w.number(h, `/^Tcp: [0-9]/{print $13}`, "/proc/net/snmp") -
		w.number(h, `/^TcpExt: [A-Z]/{n=split($0,a)} /^TcpExt: [0-9]/{for(i=1;i<=n;i++) if(a[i]=="TCPDSACKRecv") print $i}`, "/proc/net/netstat")
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
	s := newDrainWorld(t)
	pod, server, lost := s.pod, s.server, s.lost
	before, beforeServer := lost(pod), lost(server)
	p := s.bulk(0, 4000000)
	s.drain("g1", "g2")
	require.True(t, p.Running(), p.Output())
	s.through(1, s.carried(s.gates[1]))
	require.NoError(t, p.Stop(step(t)), "the transfer: %s", p.Output())
	t.Logf("%s; segments lost: pod %d, server %d", strings.TrimSpace(p.Output()), lost(pod)-before, lost(server)-beforeServer)
	require.LessOrEqual(t, lost(pod), before, "segments lost")
	require.LessOrEqual(t, lost(server), beforeServer, "segments lost")

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

	if !soak() {
		return
	}
	// At full speed, to a gate that has started again, so that there is no session with it
	// yet. Such a transfer loses segments at any time, looking for its rate; a drain should add
	// none to those of the same time before. It still may: 0 to 33 were seen, and 1139. Why is
	// open (ARCHITECTURE.md), and so this part is the soak's.
	const window, noise = 2 * time.Second, 100
	p = s.bulk(1, 0)
	first := lost(pod)
	steady(t, window)
	quiet := lost(pod) - first
	first, carried := lost(pod), s.carried(s.gates[0])
	s.drain("g2", "g1")
	steady(t, window)
	moved := lost(pod) - first
	t.Logf("full speed: segments lost in %s: %d before the drain, %d with it; g1 carried %d packets then", window, quiet, moved, s.carried(s.gates[0])-carried)
	require.NoError(t, p.Stop(step(t)), "the transfer: %s", p.Output())
	require.LessOrEqual(t, moved, quiet+noise)
}
