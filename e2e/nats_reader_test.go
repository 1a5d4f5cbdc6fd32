package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

const containersNATS = "10.222.0.0/24"

// hostDialer connects from a host of the lab.
type hostDialer struct{ *lab.Host }

func (d hostDialer) Dial(network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	return d.DialContext(ctx, network, addr)
}

func (d hostDialer) DialContext(ctx context.Context, network, addr string) (c net.Conn, err error) {
	derr := d.Do(func() error { c, err = (&net.Dialer{}).DialContext(ctx, network, addr); return err })
	return c, derr
}

// Programs elsewhere follow nodes and containers over NATS, with the nats command line and with
// nats.go, and read present facts; they change nothing and hear nothing else. A revocation
// ends both while they listen.
func TestReadersFollowOverNATS(t *testing.T) {
	needRoot(t)
	t.Parallel()
	tool, err := BuildNATSCLI(within(t, 5*time.Minute), t.TempDir())
	require.NoError(t, err)
	l := lab.New(t)
	inet := l.Switch("inet")
	host := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	desk := l.Host("desk").Link("eth0", inet, "203.0.113.30/24")
	n1 := l.Host("n1").Link("eth0", inet, "203.0.113.21/24")
	s, err := NewSystem(step(t), l, binaries(t), host, HubAddr, "--listen-nats", ":4222")
	require.NoError(t, err)
	require.NoError(t, desk.Settle(step(t)))
	require.NoError(t, n1.Settle(step(t)))
	require.NoError(t, s.CreateSite(step(t), "s1"))
	p := n1.Podman(containersNATS)
	require.NoError(t, p.Image(step(t), "tool"))
	socket, err := p.Serve(step(t))
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p.Run(ctx, "rm", "-f", "-a", "-t", "0")
	})

	// Two users: one for the command line, one for a program.
	dir := t.TempDir()
	creds := func(name string) string { return filepath.Join(dir, name+".creds") }
	ca := filepath.Join(dir, "ca.pem")
	for _, name := range []string{"shell", "program"} {
		_, err := s.CLI(step(t), "nats", "user", "create", name, "--role", "reader", "--file", creds(name), "--ca-file", ca)
		require.NoError(t, err)
	}
	fi, err := os.Stat(creds("shell"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
	command := func(args ...string) []string {
		return append([]string{"env", "HOME=" + dir, "XDG_CONFIG_HOME=" + dir, tool, "--server", "tls://" + HubAddr + ":4222", "--creds", creds("shell"), "--tlsca", ca,
			"--inbox-prefix", "_INBOX.user.shell"}, args...)
	}
	cli := func(args ...string) (string, error) {
		return desk.Run(step(t), command(append([]string{"--timeout", "10s"}, args...)...)...)
	}
	follow, err := desk.Start(lab.Program{Name: "nats-sub", Args: command("sub", "causeway.v1.event.>", "causeway.v1.inventory.>")})
	require.NoError(t, err)
	require.NoError(t, follow.WaitOutput(step(t), "causeway.v1.inventory.>"))

	closed := make(chan struct{})
	nc, err := nats.Connect("tls://"+HubAddr+":4222", nats.SetCustomDialer(hostDialer{desk}), nats.UserCredentials(creds("program")), nats.RootCAs(ca), nats.Timeout(stepTimeout),
		nats.CustomInboxPrefix("_INBOX.user.program"), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ClosedHandler(func(*nats.Conn) { close(closed) }),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	require.NoError(t, err)
	defer nc.Close()
	await := make(map[string]chan *nats.Msg)
	for _, subject := range []string{"causeway.v1.event.>", "causeway.v1.inventory.>", "$KV.causeway-inventory.>"} {
		await[subject] = make(chan *nats.Msg, 1000)
		_, err := nc.ChanSubscribe(subject, await[subject])
		require.NoError(t, err)
	}
	require.NoError(t, nc.Flush())
	until := func(subject string, good func(*nats.Msg) bool) {
		t.Helper()
		for limit := time.After(stepTimeout); ; {
			select {
			case m := <-await[subject]:
				if good(m) {
					return
				}
			case <-limit:
				t.Fatalf("nothing of the kind on %s", subject)
			}
		}
	}

	_, err = s.Join(step(t), NodeSpec{Name: "n1", Site: "s1", Host: n1, TokenRoutes: []string{containersNATS}, Podman: socket})
	require.NoError(t, err)
	require.NoError(t, s.WaitReady(step(t), "n1"))
	require.NoError(t, follow.WaitOutput(step(t), "causeway.v1.event.node_up"))
	require.NoError(t, follow.WaitOutput(step(t), ".snapshot"))
	until("causeway.v1.event.>", func(m *nats.Msg) bool {
		var e api.Event
		return json.Unmarshal(m.Data, &e) == nil && m.Subject == "causeway.v1.event.node_up" && e.Node == "n1"
	})
	until("causeway.v1.inventory.>", func(m *nats.Msg) bool { return strings.HasSuffix(m.Subject, ".snapshot") })

	_, err = p.Run(step(t), "run", "-d", "--name", "web", "tool", "/bin/sleep", "600")
	require.NoError(t, err)
	addr, err := p.Address(step(t), "web")
	require.NoError(t, err)
	require.NoError(t, follow.WaitOutput(step(t), addr))
	until("causeway.v1.inventory.>", func(m *nats.Msg) bool {
		return strings.HasSuffix(m.Subject, ".delta") && strings.Contains(string(m.Data), addr)
	})
	var node api.Node
	require.NoError(t, s.Ask(step(t), &node, "node", "show", "n1"))
	key := protocol.FactsKey("s1", node.Number)
	until("$KV.causeway-inventory.>", func(m *nats.Msg) bool {
		return m.Subject == "$KV.causeway-inventory."+key && strings.Contains(string(m.Data), addr)
	})

	// Present facts, both ways, are what the operator sees.
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	bucket, err := js.KeyValue(step(t), protocol.FactsBucket)
	require.NoError(t, err)
	e, err := bucket.Get(step(t), key)
	require.NoError(t, err)
	out, err := cli("kv", "get", protocol.FactsBucket, key, "--raw")
	require.NoError(t, err)
	all, err := desk.Run(step(t), command("req", "$JS.API.DIRECT.GET.KV_causeway-inventory", `{"multi_last":["$KV.causeway-inventory.>"]}`, "--replies", "0", "--timeout", "2s")...)
	require.NoError(t, err)
	require.Contains(t, all, addr)
	for _, b := range []string{string(e.Value()), out} {
		var inv api.Inventory
		require.NoError(t, json.Unmarshal([]byte(b), &inv), b)
		require.Equal(t, "n1", inv.Node)
		require.Contains(t, b, addr)
	}

	// And nothing else.
	var wg sync.WaitGroup
	for _, args := range [][]string{
		{"pub", protocol.InventorySubject("s1", node.Number), "{}"}, {"pub", "causeway.v1.event.node_up", "{}"}, {"pub", protocol.AskSubject(node.Number), "x"},
		{"sub", "causeway.v1.ask.>", "--count", "1"}, {"sub", "causeway.state.>", "--count", "1"}, {"sub", "_INBOX.>", "--count", "1"},
	} {
		wg.Go(func() {
			_, err := cli(args...)
			var r *lab.RunError
			if !errors.As(err, &r) || !strings.Contains(r.Stderr, "Permissions Violation") {
				t.Errorf("%v: %v", args, err)
			}
		})
	}
	wg.Wait()
	var facts api.Inventory
	require.NoError(t, s.Ask(step(t), &facts, "inventory", "show", "n1"))
	require.Len(t, facts.Containers, 1, "the facts are the node's still")

	// Revoked, both are cut off while they listen, and refused when they come back.
	for _, name := range []string{"shell", "program"} {
		begin := time.Now()
		_, err = s.CLI(step(t), "nats", "user", "revoke", name, "--yes")
		require.NoError(t, err)
		if name == "program" {
			select {
			case <-closed: // after it came back and was refused, twice
			case <-time.After(stepTimeout):
				t.Fatal("the connection of a revoked user stays")
			}
			require.ErrorIs(t, nc.LastError(), nats.ErrAuthorization)
			t.Logf("cut off and refused twice %s after 'nats user revoke' began", time.Since(begin).Round(time.Millisecond))
		}
	}
	require.NoError(t, lab.Wait(step(t), "the end of nats sub", func(context.Context) error {
		if follow.Running() && !strings.Contains(follow.Output(), "Disconnected") {
			return context.DeadlineExceeded
		}
		return nil
	}))
	_, err = cli("sub", "causeway.v1.event.>", "--count", "1")
	require.Contains(t, failed(t, err).Stderr, "Authorization Violation")

	// No private key was ever on the hub's host but in the files.
	text, err := os.ReadFile(creds("program"))
	require.NoError(t, err)
	seed := strings.Split(string(text[strings.Index(string(text), "NKEY SEED-----"):]), "\n")[1]
	require.NoError(t, filepath.WalkDir(filepath.Dir(s.Hub.Dir), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		require.NotContains(t, string(b), seed, path)
		return err
	}))
	require.NotContains(t, s.Hub.Proc.Output(), seed)
}
