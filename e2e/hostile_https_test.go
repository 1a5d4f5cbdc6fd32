package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// A flood of requests from 240 addresses, each of them within its own rate, for hub lists and
// joins: a host that joins, by an address of the same network, does so within seconds.
func TestHostileHTTPS(t *testing.T) {
	t.Parallel()
	const addrs, within = 240, 5 * time.Second
	s, nodes := newSmall(t, 2)
	attacker := s.Lab.Host("attacker").Link("eth0", nodes[0].Inet, "198.51.100.249/24")
	_, err := s.Hub.Host.Run(step(t), "ip", "addr", "add", "198.51.100.254/24", "dev", "eth0")
	require.NoError(t, err)
	for i := 1; i <= addrs; i++ {
		attacker.Addr("eth0", fmt.Sprintf("198.51.100.%d/24", i))
	}
	// The host that joins has an address of that network, too.
	_, err = nodes[1].Host.Run(step(t), "ip", "addr", "add", "198.51.100.250/24", "dev", "eth0")
	require.NoError(t, err)
	_, err = nodes[1].Host.Run(step(t), "ip", "route", "add", HubAddr, "via", "198.51.100.254", "src", "198.51.100.250")
	require.NoError(t, err)
	require.NoError(t, attacker.Settle(step(t)))

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	defer stop()
	var answered, refused atomic.Int64
	for i := 1; i <= addrs; i++ {
		wg.Go(func() {
			c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
				DialContext: func(ctx context.Context, network, _ string) (c net.Conn, err error) {
					derr := attacker.Do(func() error {
						d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(fmt.Sprintf("198.51.100.%d", i))}}
						c, err = d.DialContext(ctx, "tcp4", "198.51.100.254:443")
						return err
					})
					return c, derr
				}}}
			defer c.CloseIdleConnections()
			pace := time.NewTicker(time.Second / 8) // the limit of one source is 10
			defer pace.Stop()
			for n := 0; ; n++ {
				method, path := http.MethodGet, protocol.PathHubList
				if n%4 == 3 {
					method, path = http.MethodPost, protocol.PathJoin
				}
				r, err := http.NewRequestWithContext(ctx, method, "https://198.51.100.254"+path, nil)
				if err != nil {
					return
				}
				if res, err := c.Do(r); err == nil {
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if answered.Add(1); res.StatusCode == http.StatusTooManyRequests {
						refused.Add(1)
					}
				}
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
				}
			}
		})
	}
	require.NoError(t, Wait(t, func() error {
		if refused.Load() < 2000 {
			return fmt.Errorf("%d refused", refused.Load())
		}
		return nil
	}))
	worst := time.Duration(0)
	for i := range 4 {
		n, err := s.Prepare(NodeSpec{Name: fmt.Sprintf("join-%d", i), Site: "s2", Host: nodes[1].Host})
		require.NoError(t, err)
		token, err := s.Token(step(t), "s2")
		require.NoError(t, err)
		start := time.Now()
		_, err = n.Redeem(step(t), token)
		require.NoError(t, err)
		worst = max(worst, time.Since(start))
	}
	stop()
	t.Logf("%d requests of %d addresses, %d of them refused; 4 joins took %.2f s at most", answered.Load(), addrs, refused.Load(), worst.Seconds())
	require.LessOrEqual(t, worst, within)
}
