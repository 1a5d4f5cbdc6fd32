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

// Two nodes of a site announce its LAN, whose gateway goes on answering through the
// first. Draining that one during a transfer loses nothing in either direction. Not parallel: it counts
// what was lost.
func TestDrainLosesNothing(t *testing.T) {
	needRoot(t)
	l := lab.New(t)
	inet := l.Switch("inet")
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	lan := l.Switch("lan")
	const prefix, serverAddr = "192.168.7.0/24", "192.168.7.50"
	server := l.Host("server").Link("eth0", lan, serverAddr+"/24").Default("192.168.7.11")
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
		_, err := s.Join(step(t), NodeSpec{Name: fmt.Sprintf("g%d", i+1), Site: "dc", Host: h, TokenRoutes: []string{prefix}})
		require.NoError(t, err)
	}
	_, err = s.Join(step(t), NodeSpec{Name: "far", Site: "cloud", Host: far, TokenRoutes: []string{"10.3.1.0/24"}, Accept: []string{prefix, "10.0.0.0/8"}})
	require.NoError(t, err)
	require.NoError(t, s.WaitReady(step(t), "g1", "g2", "far"))
	require.NoError(t, Ping(step(t), pod, serverAddr))
	_, err = s.Serve(step(t), server)
	require.NoError(t, err)
	require.NoError(t, s.WaitPath(step(t), "far", "g1", protocol.PathDirect))

	number := func(h *lab.Host, awk, file string) int {
		n, err := strconv.Atoi(strings.TrimSpace(h.Sh("awk '" + awk + "' " + file)))
		require.NoError(t, err)
		return n
	}
	carried := func(h *lab.Host) int { return number(h, "/eth1:/{print $11}", "/proc/net/dev") } // packets sent into the LAN
	// lost is how many segments a host sent again, but for those that the other side
	// says it had: they were only late, as the new path overtakes the old one.
	lost := func(h *lab.Host) int {
		return number(h, `/^Tcp: [0-9]/{print $13}`, "/proc/net/snmp") -
			number(h, `/^TcpExt: [A-Z]/{n=split($0,a)} /^TcpExt: [0-9]/{for(i=1;i<=n;i++) if(a[i]=="TCPDSACKRecv") print $i}`, "/proc/net/netstat")
	}
	before, beforeServer := lost(pod), lost(server)
	p, err := pod.Start(lab.Program{Name: "bulk", Args: []string{s.Bin.Labtool, "bulk", serverAddr, "-pace", "4000000"}})
	require.NoError(t, err)
	require.NoError(t, p.WaitOutput(step(t), "connected"))
	require.NoError(t, lab.Wait(step(t), "the transfer under way through g1", func(context.Context) error {
		if carried(gates[0]) < 500 {
			return context.DeadlineExceeded
		}
		return nil
	}))
	out, err := s.CLI(step(t), "node", "drain", "g1", "-o", "json")
	require.NoError(t, err)
	var d api.Drain
	require.NoError(t, json.Unmarshal([]byte(out), &d))
	require.Len(t, d.Moved, 1)
	require.Equal(t, "g2", d.Moved[0].To)
	require.Empty(t, d.Waiting)
	require.True(t, p.Running(), p.Output())
	after := carried(gates[1])
	require.NoError(t, lab.Wait(step(t), "the transfer to go through g2", func(context.Context) error {
		if carried(gates[1]) < after+500 {
			return context.DeadlineExceeded
		}
		return nil
	}))
	require.NoError(t, p.Stop(step(t)), "the transfer: %s", p.Output())
	t.Logf("%s; segments lost: pod %d, server %d", strings.TrimSpace(p.Output()), lost(pod)-before, lost(server)-beforeServer)
	require.LessOrEqual(t, lost(pod), before, "segments lost")
	require.LessOrEqual(t, lost(server), beforeServer, "segments lost")

	// Now it may stop: nothing goes through it but the answers of a gateway that does
	// not know, and that is moved too.
	server.Sh("ip route replace default via 192.168.7.12")
	require.NoError(t, s.Node("g1").Proc.Stop(step(t)))
	require.NoError(t, PingOnce(step(t), pod, serverAddr))
	require.NoError(t, s.Node("g1").Start())
	require.NoError(t, s.WaitReady(step(t), "g1"))
	_, err = s.CLI(step(t), "node", "undrain", "g1")
	require.NoError(t, err)
	require.NoError(t, PingOnce(step(t), pod, serverAddr))
}
