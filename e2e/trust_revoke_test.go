package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// goneWithin is how soon everybody has dropped a revoked node.
const goneWithin = 2 * time.Second

// Not parallel: a time limit.
func TestRevoked(t *testing.T) {
	s, nodes := newSmall(t, 3)
	for i := 1; i <= 3; i++ {
		joinSmall(t, s, nodes, i)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	_, err := s.Serve(step(t), nodes[1].Pod.Host)
	require.NoError(t, err)
	pod := nodes[0].Pod.Host
	for i := 1; i < 3; i++ {
		require.NoError(t, Ping(step(t), pod, nodes[i].Pod.V4))
	}
	hold, err := s.Hold(step(t), pod, nodes[1].Pod.V4) // in the middle of a transfer
	require.NoError(t, err)
	others := pingAll(t, nodes[0], nodes[2].Pod.V4)

	var r api.Revocation
	require.NoError(t, s.Ask(step(t), &r, "node", "revoke", "n2", "--yes", "--wait"))
	require.True(t, r.Done(), r)
	require.Len(t, r.Confirmed, 2)
	text := fmt.Sprintf("relay, control and NATS ended after %s", time.Duration(r.CutAfter).Round(time.Millisecond))
	require.LessOrEqual(t, time.Duration(r.CutAfter), goneWithin)
	for _, c := range r.Confirmed {
		text += fmt.Sprintf(", %s dropped it after %s", c.Node, time.Duration(c.After).Round(time.Millisecond))
		require.LessOrEqual(t, time.Duration(c.After), goneWithin)
	}
	// What was confirmed is so: no path either way, no peer, no session.
	require.Error(t, PingOnce(step(t), pod, nodes[1].Pod.V4))
	require.Error(t, PingOnce(step(t), nodes[1].Pod.Host, nodes[0].Pod.V4))
	out, err := nodes[0].Agent(step(t), "paths", "-o", "json")
	require.NoError(t, err)
	var paths []protocol.PathStatus
	require.NoError(t, json.Unmarshal([]byte(out), &paths))
	for _, p := range paths {
		require.NotEqual(t, "n2", p.Name)
	}
	require.NoError(t, Wait(t, func() error {
		out, err := nodes[1].Agent(step(t), "health")
		if !strings.Contains(out+fmt.Sprint(err), "revoked") {
			return errState("not heard: " + out)
		}
		return nil
	}), "the revoked node knows")
	lost := others()
	t.Log(text, "; pings between the others lost:", lost)
	require.Zero(t, lost)
	_ = hold // stands still, or broke

	// A node that is away is named.
	require.NoError(t, nodes[2].Proc.Stop(step(t)))
	require.NoError(t, Wait(t, func() error {
		l, err := s.Nodes(step(t))
		if err == nil && l["n3"].State != api.NodeUnreachable {
			err = errState(l["n3"].State)
		}
		return err
	}))
	_, err = s.CLI(step(t), "node", "revoke", "n1", "--yes", "--wait=1s")
	f := failed(t, err)
	require.Contains(t, f.Stderr, "not confirmed by: n3")
	require.Contains(t, f.Stdout, "it is not connected")
	// It is told when it comes back, and has confirmed then.
	require.NoError(t, nodes[2].Start())
	require.NoError(t, s.WaitReady(step(t), "n3"))
	out, err = nodes[2].Agent(step(t), "netmap", "-o", "json")
	require.NoError(t, err)
	require.NotContains(t, out, `"n1"`)
}

func pingProgram(addr string) lab.Program {
	return lab.Program{Name: "ping-" + strings.ReplaceAll(addr, ":", "-"), Args: []string{"ping", "-n", "-i", "0.05", addr}}
}

// pingAll pings from a node's pod 20 times a second until the returned function
// is called, which returns how many pings were lost.
func pingAll(t *testing.T, n *smallNode, addr string) func() int {
	t.Helper()
	p, err := n.Pod.Host.Start(pingProgram(addr))
	require.NoError(t, err)
	require.NoError(t, p.WaitOutput(step(t), "icmp_seq=2 "))
	return func() int {
		p.Signal(syscall.SIGINT)
		<-p.Done()
		m := regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`).FindStringSubmatch(p.Output())
		require.NotNil(t, m, p.Output())
		sent, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		got, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		if sent-got == 1 && !strings.Contains(p.Output(), fmt.Sprintf("icmp_seq=%d ", sent)) {
			return 0 // the last one was still on its way
		}
		return sent - got
	}
}
