package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/netns/lab"
	"causeway/protocol"
)

// operated is an operator's NATS cluster: three nats-server processes on hosts of their own,
// with TLS and JWT accounts.
type operated struct {
	t       *testing.T
	bin     string
	hosts   [3]*lab.Host
	addrs   [3]string
	procs   [3]*lab.Process
	ca      string // file
	account nkeys.KeyPair
}

func startOperated(t *testing.T, l *lab.Lab, inet, near *lab.Host) *operated {
	t.Helper()
	c := &operated{t: t}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	var err error
	c.bin, err = BuildNATS(within(t, 5*time.Minute), dir)
	require.NoError(t, err)
	c.ca = filepath.Join(near.Dir(), "nats-ca.pem")

	// Accounts, as nsc makes them.
	operator, err := nkeys.CreateOperator()
	require.NoError(t, err)
	c.account, err = nkeys.CreateAccount()
	require.NoError(t, err)
	system, err := nkeys.CreateAccount()
	require.NoError(t, err)
	public := func(k nkeys.KeyPair) string {
		p, err := k.PublicKey()
		require.NoError(t, err)
		return p
	}
	encode := func(c jwt.Claims) string {
		s, err := c.Encode(operator)
		require.NoError(t, err)
		return s
	}
	ours := jwt.NewAccountClaims(public(c.account))
	ours.Name = "causeway"
	ours.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	head := fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload { %s: %s, %s: %s }\n", encode(jwt.NewOperatorClaims(public(operator))), public(system),
		public(c.account), encode(ours), public(system), encode(jwt.NewAccountClaims(public(system))))

	// Certificates of a private CA.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nats ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	block := func(kind string, b []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})
	}
	require.NoError(t, os.WriteFile(c.ca, block("CERTIFICATE", der), 0o644))
	var routes []string
	for i := range c.hosts {
		c.addrs[i] = fmt.Sprintf("203.0.113.%d", 51+i)
		c.hosts[i] = l.Host(fmt.Sprintf("nats%d", i)).Link("eth0", inet, c.addrs[i]+"/24")
		routes = append(routes, "nats://"+c.addrs[i]+":6222")
	}
	for i, h := range c.hosts {
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(2 + i)), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.ParseIP(c.addrs[i])}}
		cert, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
		require.NoError(t, err)
		at := func(name string) string { return filepath.Join(h.Dir(), name) }
		require.NoError(t, os.WriteFile(at("cert.pem"), block("CERTIFICATE", cert), 0o644))
		require.NoError(t, os.WriteFile(at("key.pem"), block("PRIVATE KEY", secret), 0o600))
		require.NoError(t, os.WriteFile(at("nats.conf"), fmt.Appendf(nil, `%sserver_name: s%d
listen: "%s:4222"
tls { cert_file: %q, key_file: %q }
jetstream { store_dir: %q, sync_interval: always, max_file_store: 8GB, max_memory_store: 64MB }
cluster { name: operated, listen: "%s:6222", routes: [%s] }
`, head, i, c.addrs[i], at("cert.pem"), at("key.pem"), at("store"), c.addrs[i], strings.Join(routes, ", ")), 0o600))
		require.NoError(t, h.Settle(step(t)))
		c.start(i)
	}
	return c
}

func (c *operated) start(i int) {
	c.t.Helper()
	var err error
	c.procs[i], err = c.hosts[i].Start(lab.Program{Name: fmt.Sprintf("nats%d", i), Args: []string{c.bin, "-c", filepath.Join(c.hosts[i].Dir(), "nats.conf")}})
	require.NoError(c.t, err)
}

func (c *operated) url() string {
	var out []string
	for _, a := range c.addrs {
		out = append(out, "tls://"+a+":4222")
	}
	return strings.Join(out, ",")
}

// user makes credentials of the account, in a file that only its owner may read.
func (c *operated) user(path string, edit func(*jwt.UserClaims)) {
	c.t.Helper()
	kp, err := nkeys.CreateUser()
	require.NoError(c.t, err)
	pub, err := kp.PublicKey()
	require.NoError(c.t, err)
	claims := jwt.NewUserClaims(pub)
	edit(claims)
	token, err := claims.Encode(c.account)
	require.NoError(c.t, err)
	seed, err := kp.Seed()
	require.NoError(c.t, err)
	text, err := jwt.FormatUserConfig(token, seed)
	require.NoError(c.t, err)
	require.NoError(c.t, os.WriteFile(path, text, 0o600))
	require.NoError(c.t, os.Chown(path, int(lab.Nobody.UID), int(lab.Nobody.GID)))
}

func (c *operated) connect(creds string, from *lab.Host) *nats.Conn {
	c.t.Helper()
	var nc *nats.Conn
	require.NoError(c.t, lab.Wait(step(c.t), "the cluster", func(context.Context) (err error) {
		nc, err = nats.Connect(c.url(), nats.SetCustomDialer(hostDialer{from}), nats.UserCredentials(creds), nats.RootCAs(c.ca), nats.MaxReconnects(-1),
			nats.ReconnectWait(50*time.Millisecond), nats.IgnoreDiscoveredServers(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		return err
	}))
	c.t.Cleanup(nc.Close)
	return nc
}

// whole waits until every replica of the streams has all there is, and returns who leads the
// state log.
func (c *operated) whole(js jetstream.JetStream, names ...string) (leader int) {
	c.t.Helper()
	for _, name := range names {
		require.NoError(c.t, lab.Wait(step(c.t), "three replicas of "+name, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			s, err := js.Stream(ctx, name)
			if err != nil {
				return err
			}
			info := s.CachedInfo()
			current := 0
			for _, r := range info.Cluster.Replicas {
				if r.Current && !r.Offline {
					current++
				}
			}
			if info.Cluster.Leader == "" || current != 2 {
				return fmt.Errorf("leader %q, %d others have all", info.Cluster.Leader, current)
			}
			if name == state.StreamName {
				_, err = fmt.Sscanf(info.Cluster.Leader, "s%d", &leader)
			}
			return err
		}))
	}
	return leader
}

// A hub on an operator's cluster of three processes, with TLS and credentials. The one that leads
// the state log is killed and comes back, in a soak then another. Nothing that was
// acknowledged is lost; agents notice nothing: no session ends, no TCP connection
// between pods, no ping is lost. A reader whom the operator made follows throughout.
func TestAgentsOverAnOperatedCluster(t *testing.T) {
	needRoot(t)
	lab.Counts(t)
	t.Parallel()
	l, host, nodes := smallHosts(t, 2)
	c := startOperated(t, l, nodes[0].Inet, host)
	creds, reader := filepath.Join(host.Dir(), "hub.creds"), filepath.Join(host.Dir(), "reader.creds")
	c.user(creds, func(*jwt.UserClaims) {})
	// What docs/NATS.md gives such a reader.
	c.user(reader, func(u *jwt.UserClaims) {
		u.Sub.Allow = []string{protocol.SubjectInventoryAll, protocol.SubjectEventsAll, "$KV." + protocol.FactsBucket + ".>"}
		u.Pub.Deny = []string{">"}
	})
	js, err := jetstream.New(c.connect(creds, host))
	require.NoError(t, err)
	s := startSmall(t, l, host, nodes, "--nats-url", c.url(), "--nats-creds", creds, "--nats-ca", c.ca)
	follow := c.connect(reader, host)
	var heard atomic.Int64
	_, err = follow.Subscribe("$KV.causeway-inventory.>", func(*nats.Msg) { heard.Add(1) })
	require.NoError(t, err)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	streams := []string{state.StreamName, protocol.InventoryStream, protocol.EventStream, "KV_" + protocol.FactsBucket}
	leader := c.whole(js, streams...)
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	_, err = s.Serve(step(t), nodes[1].Pod.Host)
	require.NoError(t, err)
	held, err := s.Hold(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4)
	require.NoError(t, err)
	p := startPings(t, s, nodes[0].Pod, nodes[1].Pod)

	// Changes all the time; what was acknowledged counts.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var sites atomic.Int64
	var changes sync.WaitGroup
	changes.Go(func() {
		for i := int64(0); ctx.Err() == nil; i++ {
			_, err := s.CLI(ctx, "site", "create", fmt.Sprintf("c%04d", i))
			for err != nil && ctx.Err() == nil && !strings.Contains(err.Error(), "exists") {
				var r *lab.RunError // refused or in doubt: the same again
				if !errors.As(err, &r) {
					t.Error(err)
					return
				}
				_, err = s.CLI(ctx, "site", "create", fmt.Sprintf("c%04d", i))
			}
			if ctx.Err() == nil {
				sites.Store(i + 1)
			}
		}
	})
	progress := func(what string, link int) {
		t.Helper()
		begin, n, k := time.Now(), sites.Load(), heard.Load()
		nodes[0].Host.Sh(fmt.Sprintf("ip link add lan%d type bridge", link))
		var seen string
		defer func() { t.Logf("%s: after %s: %s", what, time.Since(begin).Round(10*time.Millisecond), seen) }()
		require.Eventually(t, func() bool {
			var inv api.Inventory
			if err := s.Ask(step(t), &inv, "inventory", "show", "n1"); err != nil {
				seen = err.Error()
				return false
			}
			has := slices.ContainsFunc(inv.Interfaces, func(i protocol.Interface) bool { return i.Name == fmt.Sprintf("lan%d", link) })
			seen = fmt.Sprintf("the new interface is told: %v; %d changes; %d facts for readers", has, sites.Load()-n, heard.Load()-k)
			return has && sites.Load() >= n+2 && heard.Load() > k
		}, stepTimeout, 50*time.Millisecond, what)
	}
	progress("at first", 1)
	for round := range rounds(2) {
		c.procs[leader].Kill()
		progress(fmt.Sprintf("without server %d", leader), 10*round+11)
		c.start(leader)
		next := c.whole(js, streams...)
		progress("with all again", 10*round+12)
		if next == leader {
			next = (leader + 1) % 3 // another server, whoever leads
		}
		leader = next
	}
	cancel()
	changes.Wait()
	sent, got := p.end()
	require.Equal(t, sent, got, "pings between pods")
	lines, gap, err := held.End(step(t))
	require.NoError(t, err)
	var events []api.Event
	require.NoError(t, s.Ask(step(t), &events, "events"))
	for _, e := range events {
		require.NotContains(t, []string{event.NodeDown, event.InventoryBad}, e.Kind, "%v", e)
	}
	for _, n := range nodes {
		require.Equal(t, 1, strings.Count(n.Proc.Output(), "control session with the hub"), n.Name)
	}
	var list []api.Site
	require.NoError(t, s.Ask(step(t), &list, "site", "list"))
	have := map[string]bool{}
	for _, site := range list {
		have[site.Name] = true
	}
	for i := range sites.Load() {
		require.True(t, have[fmt.Sprintf("c%04d", i)], "site %d of %d", i, sites.Load())
	}
	require.Error(t, c.publishes(follow), "a reader publishes nothing")
	t.Logf("%d changes acknowledged, none lost; %d pings, none lost; %d lines over one TCP connection, longest gap %.2f s", sites.Load(), sent, lines, gap)
}

// publishes returns why nc may not publish.
func (c *operated) publishes(nc *nats.Conn) error {
	require.NoError(c.t, nc.Publish("causeway.v1.event.node_up", []byte("{}")))
	require.NoError(c.t, nc.FlushTimeout(stepTimeout))
	return nc.LastError()
}
