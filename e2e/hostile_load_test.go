package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// rss is what a process holds of memory, in MB.
func rss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kb, err := strconv.Atoi(f[1])
			require.NoError(t, err)
			return kb >> 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// fds is how many descriptors a process has open.
func fds(t *testing.T, pid int) int {
	t.Helper()
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	return len(d)
}

// Thousands of connections that say little or nothing, from twenty addresses, and
// bodies that claim 4 GiB or nest deeply: a join goes through in a second, and the
// hub's memory stays where it was. Not parallel: a time limit.
func TestHostileConnections(t *testing.T) {
	const conns, addrs, joinWithin, moreMemory = 5000, 20, time.Second, 256
	s, nodes := newSmall(t, 2)
	attacker := s.Lab.Host("attacker").Link("eth0", nodes[0].Inet, "203.0.113.100/24")
	for i := 1; i < addrs; i++ {
		attacker.Addr("eth0", fmt.Sprintf("203.0.113.%d/24", 100+i))
	}
	require.NoError(t, attacker.Settle(step(t)))
	pid := s.Hub.Proc.PID()
	before, fdsBefore := rss(t, pid), fds(t, pid)
	hub := netip.MustParseAddrPort(HubAddr + ":443")
	dial := func(i int) (c net.Conn, err error) {
		err = attacker.Do(func() error {
			d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(fmt.Sprintf("203.0.113.%d", 100+i%addrs))}}
			c, err = d.Dial("tcp4", hub.String())
			return err
		})
		return c, err
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	worst, joins := time.Duration(0), 0
	join := func() {
		joins++
		n, err := s.Prepare(NodeSpec{Name: fmt.Sprintf("join-%d", joins), Site: "s1", Host: nodes[0].Host})
		require.NoError(t, err)
		token, err := s.Token(step(t), "s1")
		require.NoError(t, err)
		start := time.Now()
		_, err = n.Redeem(step(t), token)
		require.NoError(t, err)
		took := time.Since(start)
		worst = max(worst, took)
		require.LessOrEqual(t, took, joinWithin, "a join amid %d connections", len(open))
	}
	for i := range conns {
		c, err := dial(i)
		require.NoError(t, err)
		open = append(open, c)
		switch i % 3 { // nothing; the beginning of a handshake; a record that claims much
		case 1:
			c.Write([]byte{22, 3, 1, 2, 0, 1})
		case 2:
			c.Write([]byte{22, 3, 1, 0xff, 0xff})
		}
		if i%1000 == 999 {
			join()
		}
	}
	during := rss(t, pid)

	// Behind TLS: a length of 4 GiB, and JSON that nests as deeply as fits.
	post := func(i int, length int64, body io.Reader) (int, error) {
		c, err := dial(i)
		if err != nil {
			return 0, err
		}
		tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		defer tc.Close()
		tc.SetDeadline(time.Now().Add(15 * time.Second))
		r, err := http.NewRequest(http.MethodPost, "https://hub"+protocol.PathJoin, body)
		require.NoError(t, err)
		r.ContentLength = length
		tr := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return tc, nil }, DisableKeepAlives: true}
		res, err := tr.RoundTrip(r)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		return res.StatusCode, nil
	}
	endless := io.LimitReader(zeros{}, 4<<30)
	code, err := post(0, 4<<30, endless)
	require.True(t, err != nil || code == http.StatusBadRequest, "%d %v", code, err)
	deep := bytes.Repeat([]byte("["), 1<<20)
	code, err = post(1, int64(len(deep)), bytes.NewReader(deep))
	require.True(t, err != nil || code == http.StatusBadRequest, "%d %v", code, err)
	join()
	after := rss(t, pid)
	require.Less(t, after, before+moreMemory)
	for _, c := range open {
		c.Close()
	}
	open = nil
	err = lab.Wait(step(t), "the hub's descriptors to be closed", func(context.Context) error {
		if n := fds(t, pid); n > fdsBefore+8 {
			return fmt.Errorf("%d, %d before", n, fdsBefore)
		}
		return nil
	})
	require.NoError(t, err)
	t.Logf("%d slow connections: %d joins took %.2f s at most; the hub held %d MB before, %d during, %d after", conns, joins, worst.Seconds(), before, during, after)
}

// An agent that starts again and again leaves nothing at the hub, nor does a hub
// that does at an agent.
func TestReconnectsLeaveNothing(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	hub := s.Hub.Proc.PID()
	n := repeat(15, 1000)
	reconnect := func() {
		nodes[0].Proc.Kill()
		require.NoError(t, nodes[0].Start())
		require.NoError(t, s.WaitReady(step(t), "n1"))
	}
	reconnect()
	before, memory, threads := fds(t, hub), rss(t, hub), fds(t, nodes[1].Proc.PID())
	for range n {
		reconnect()
	}
	err := lab.Wait(step(t), "descriptors to be as before", func(context.Context) error {
		if h, a := fds(t, hub), fds(t, nodes[1].Proc.PID()); h > before+2 || a > threads+2 {
			return fmt.Errorf("hub %d, %d before; agent %d, %d before", h, before, a, threads)
		}
		return nil
	})
	require.NoError(t, err)
	t.Logf("%d reconnects: the hub has %d descriptors, %d before; %d MB, %d before", n, fds(t, hub), before, rss(t, hub), memory)
}
