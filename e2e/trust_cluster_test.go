package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/join"
	"causeway/hub/join/jointest"
	"causeway/netns/lab"
	"causeway/protocol"
)

// Two hubs on one external NATS: of 200 hosts that redeem a token at once, half
// of them at each hub, exactly one wins, and both hubs say the same.
func TestTwoHubsOneLog(t *testing.T) {
	needRoot(t)
	t.Parallel()
	bin := binaries(t)
	nats, err := BuildNATS(within(t, 3*time.Minute), bin.Dir)
	require.NoError(t, err)
	l := lab.New(t)
	host := l.Host("hub").Link("eth0", l.Switch("inet"), HubAddr+"/24")
	conf := filepath.Join(host.Dir(), "nats.conf")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, "listen: 127.0.0.1:4222\njetstream { store_dir: %q, sync_interval: always }\n", filepath.Join(host.Dir(), "nats")), 0o644))
	_, err = host.Start(lab.Program{Name: "nats", Args: []string{nats, "-c", conf}})
	require.NoError(t, err)
	require.NoError(t, lab.Wait(step(t), "nats", func(context.Context) error {
		return host.Do(func() error {
			c, err := net.DialTimeout("tcp", "127.0.0.1:4222", time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
	}))
	one, err := NewSystem(step(t), l, bin, host, HubAddr, "--nats-url", "nats://127.0.0.1:4222", "--snapshot-every", "10")
	require.NoError(t, err)
	// The second hub gets the cluster key and makes the rest itself.
	dir := filepath.Join(host.Dir(), "hub2")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	key, err := os.ReadFile(filepath.Join(one.Hub.Dir, join.ClusterKeyFile))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, join.ClusterKeyFile), key, 0o600))
	for _, f := range []string{dir, filepath.Join(dir, join.ClusterKeyFile)} {
		require.NoError(t, os.Chown(f, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	}
	two := &System{Lab: l, Bin: bin, nodes: map[string]*Node{}, Hub: &Hub{Host: host, Dir: dir, Public: HubAddr, bin: bin.Hub,
		Socket: filepath.Join(filepath.Dir(one.Hub.Socket), "admin2.sock"),
		Args:   []string{"--nats-url", "nats://127.0.0.1:4222", "--snapshot-every", "10", "--listen-udp", ":51821", "--listen-https", ":444"}}}
	require.NoError(t, two.StartHub(step(t)))
	require.NoError(t, one.CreateSite(step(t), "s1"))

	tokens := 3
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		tokens = 100
	}
	const hosts = 200
	clients := make([]*http.Client, hosts)
	for i := range clients {
		clients[i] = jointest.Client(func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(i), 1)}}
			derr := host.Do(func() error {
				c, err = d.DialContext(ctx, network, addr)
				return err
			})
			return c, errors.Join(derr)
		})
		defer clients[i].CloseIdleConnections()
	}
	var won, refused, again atomic.Int64
	begin := time.Now()
	for k := range tokens {
		text, err := []*System{one, two}[k%2].Token(step(t), "s1")
		require.NoError(t, err)
		tok, err := protocol.ParseToken(text)
		require.NoError(t, err)
		list, err := jointest.HubList(clients[0], protocol.Token{Pin: tok.Pin, Addr: "127.0.0.1:443"})
		require.NoError(t, err)
		require.Len(t, list.Hubs, 2)
		var wins atomic.Int64
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range hosts {
			wg.Go(func() {
				wg, err := protocol.NewWireGuardPrivateKey()
				if err != nil {
					t.Error(err)
					return
				}
				id, err := protocol.NewIdentityPrivateKey()
				if err != nil {
					t.Error(err)
					return
				}
				at := tok
				at.Addr = []string{"127.0.0.1:443", "127.0.0.1:444"}[i%2]
				req := protocol.JoinRequest{Version: protocol.Version, TokenID: tok.ID, Secret: tok.Secret[:], Name: fmt.Sprintf("t%d-h%d", k, i), IdentityKey: id.Public()}
				<-start
				for {
					ans, err := jointest.Redeem(clients[i], at, list.Hubs[i%2].WireGuardKey, wg, req)
					var busy jointest.StatusError
					switch {
					case errors.As(err, &busy) && busy == http.StatusTooManyRequests, errors.Is(err, io.EOF), err == nil && ans.Refused != nil && ans.Refused.Code == protocol.RefusedBusy:
						again.Add(1)
						time.Sleep(100 * time.Millisecond)
						continue
					case err != nil:
						t.Error(err)
					case ans.Refused == nil:
						wins.Add(1)
					case ans.Refused.Code == protocol.RefusedToken:
						refused.Add(1)
					default:
						t.Error(ans.Refused)
					}
					return
				}
			})
		}
		close(start)
		wg.Wait()
		require.Equal(t, int64(1), wins.Load(), "winners of token %d", k)
		won.Add(wins.Load())
	}
	t.Logf("%d tokens, each redeemed by %d hosts at once at two hubs: %d winners, %d refused, %d asked again, in %.1f s",
		tokens, hosts, won.Load(), refused.Load(), again.Load(), time.Since(begin).Seconds())
	require.Equal(t, int64(tokens*(hosts-1)), refused.Load())
	for _, s := range []*System{one, two} {
		require.NoError(t, lab.Wait(step(t), "both hubs to know every node", func(ctx context.Context) error {
			nodes, err := s.Nodes(ctx)
			if err == nil && len(nodes) != tokens {
				err = fmt.Errorf("%d nodes", len(nodes))
			}
			return err
		}))
		var list []api.Token
		require.NoError(t, s.Ask(step(t), &list, "token", "list"))
		for _, k := range list {
			require.Equal(t, "used", k.State)
		}
	}
}
