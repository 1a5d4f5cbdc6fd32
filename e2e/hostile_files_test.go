package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// A hub with a limit of 1024 files, and strangers' idle connections on all its ports, from
// many addresses, more than it has descriptors: joins, changes and what is written to disk go
// on, and it says nothing of a broken disk.
func TestHostileDescriptors(t *testing.T) {
	t.Parallel()
	const limit, addrs, each = 1024, 40, 60
	l, hub, nodes := smallHosts(t, 2)
	s, err := PrepareSystem(l, binaries(t), hub, HubAddr, "--listen-nats", ":4222", "--listen-admin", ":7443", "--listen-metrics", ":9090")
	require.NoError(t, err)
	limited(s, limit)
	require.NoError(t, s.StartHub(step(t)))
	for i := range nodes {
		require.NoError(t, nodes[i].Host.Settle(step(t)))
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("s%d", i+1)))
	}
	joinSmall(t, s, nodes, 1)
	require.NoError(t, s.WaitReady(step(t), "n1"))
	stranger := l.Host("stranger").Link("eth0", nodes[0].Inet, "203.0.113.100/24")
	for i := 1; i < addrs; i++ {
		stranger.Addr("eth0", fmt.Sprintf("203.0.113.%d/24", 100+i))
	}
	require.NoError(t, stranger.Settle(step(t)))

	// They come again as they are closed, and say nothing.
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	defer stop()
	for i := range addrs {
		for j := range each {
			port := []string{"443", "443", "4222", "7443", "9090"}[j%5]
			wg.Go(func() {
				for ctx.Err() == nil {
					var c net.Conn
					err := stranger.Do(func() (err error) {
						d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(fmt.Sprintf("203.0.113.%d", 100+i))}}
						c, err = d.DialContext(ctx, "tcp4", HubAddr+":"+port)
						return err
					})
					if err == nil {
						end := context.AfterFunc(ctx, func() { c.Close() })
						c.Read(make([]byte, 4096)) // an INFO, or the end
						c.Read(make([]byte, 4096))
						end()
						c.Close()
					}
					select {
					case <-ctx.Done():
					case <-time.After(time.Second):
					}
				}
			})
		}
	}
	pid := s.Hub.Proc.PID()
	require.NoError(t, lab.Wait(step(t), "the hub's descriptors to be few", func(context.Context) error {
		if n := fds(t, pid); n < limit/2 {
			return fmt.Errorf("%d open", n)
		}
		return nil
	}))
	most := 0
	begin := time.Now()
	for i := range repeat(3, 100) {
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("during-%d", i)))
		n, err := s.Prepare(NodeSpec{Name: fmt.Sprintf("join-%d", i), Site: "s2", Host: nodes[1].Host})
		require.NoError(t, err)
		token, err := s.Token(step(t), "s2")
		require.NoError(t, err)
		_, err = n.Redeem(step(t), token)
		require.NoError(t, err)
		most = max(most, fds(t, pid))
	}
	took := time.Since(begin)
	joinSmall(t, s, nodes, 2) // a whole agent, with its session and its facts
	require.NoError(t, s.WaitReady(step(t), "n2"))
	most = max(most, fds(t, pid))
	stop()
	require.True(t, s.Hub.Proc.Running())
	for _, bad := range []string{"repair its disk", "no change is taken", "too many open files"} {
		require.NotContains(t, s.Hub.Proc.Output(), bad)
	}
	require.Less(t, most, limit-limit/8)
	t.Logf("%d idle connections wanted: %d of %d descriptors open at most; %d sites and joins in %.1f s", addrs*each, most, limit, repeat(3, 100), took.Seconds())
}

// A hub that has too few descriptors to work at all says so, and what to do, in one line.
func TestTooFewDescriptors(t *testing.T) {
	t.Parallel()
	l, hub, _ := smallHosts(t, 0)
	s, err := PrepareSystem(l, binaries(t), hub, HubAddr)
	require.NoError(t, err)
	limited(s, 64)
	err = s.StartHub(step(t))
	require.ErrorContains(t, err, "the limit of open files is 64, a hub needs 256 at least")
	out := strings.TrimSpace(s.Hub.Proc.Output())
	require.Contains(t, out[strings.LastIndex(out, "\n")+1:], "ulimit -n 65536", "it is the last line")
	require.NoDirExists(t, s.Hub.Dir, "nothing was made")
	s.Hub.Limit = ""
	require.NoError(t, s.StartHub(step(t)))
}

// limited has the hub of s started with a limit of open files.
func limited(s *System, n int) { s.Hub.Limit = fmt.Sprintf("nofile=%d", n) }
