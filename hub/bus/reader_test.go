package bus

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

const patience = 20 * time.Second

// door is a Server that readers reach over TLS.
type door struct {
	t    *testing.T
	s    *Server
	addr string
	web  *httptest.Server // for its certificate

	mu      sync.Mutex
	users   map[string]string // names by public key
	changed chan struct{}
	refused int
}

func openDoor(t *testing.T, s *Server) *door {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	d := &door{t: t, s: s, addr: l.Addr().String(), web: httptest.NewTLSServer(nil), users: map[string]string{}, changed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.ServeReaders(ctx, l, Readers{TLS: &tls.Config{Certificates: d.web.TLS.Certificates},
			User: func(key string) (string, bool) {
				d.mu.Lock()
				defer d.mu.Unlock()
				name, ok := d.users[key]
				return name, ok
			},
			Changed: func() (<-chan struct{}, func()) { return d.changed, func() {} },
			Refused: func(string) { d.mu.Lock(); d.refused++; d.mu.Unlock() },
		})
	}()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done); d.web.Close() })
	return d
}

// key makes a key and its JWT, of nobody yet.
func (d *door) key() (kp nkeys.KeyPair, pub, token string) {
	d.t.Helper()
	kp, err := nkeys.CreateUser()
	require.NoError(d.t, err)
	pub, err = kp.PublicKey()
	require.NoError(d.t, err)
	account, err := nkeys.CreateAccount()
	require.NoError(d.t, err)
	token, err = jwt.NewUserClaims(pub).Encode(account)
	require.NoError(d.t, err)
	return kp, pub, token
}

// user makes a user and returns his key and his file of credentials.
func (d *door) user(name string) (pub, creds string) {
	d.t.Helper()
	kp, pub, token := d.key()
	d.mu.Lock()
	d.users[pub] = name
	d.mu.Unlock()
	seed, err := kp.Seed()
	require.NoError(d.t, err)
	b, err := jwt.FormatUserConfig(token, seed)
	require.NoError(d.t, err)
	creds = filepath.Join(d.t.TempDir(), "creds")
	require.NoError(d.t, os.WriteFile(creds, b, 0o600))
	return pub, creds
}

func (d *door) revoke(pub string) {
	d.mu.Lock()
	delete(d.users, pub)
	d.mu.Unlock()
	d.changed <- struct{}{}
}

func (d *door) dial(name, creds string, opts ...nats.Option) (*nats.Conn, error) {
	roots := x509.NewCertPool()
	roots.AddCert(d.web.Certificate())
	nc, err := nats.Connect("tls://"+d.addr, append([]nats.Option{nats.UserCredentials(creds), nats.Secure(&tls.Config{RootCAs: roots}),
		nats.CustomInboxPrefix(protocol.UserInboxPrefix(name)), nats.NoReconnect(), nats.Timeout(patience)}, opts...)...)
	if err == nil {
		d.t.Cleanup(nc.Close)
	}
	return nc, err
}

// reader connects as a new user.
func (d *door) reader(name string, opts ...nats.Option) *nats.Conn {
	d.t.Helper()
	_, creds := d.user(name)
	nc, err := d.dial(name, creds, opts...)
	require.NoError(d.t, err)
	return nc
}

// facts makes the bucket with one node's facts.
func facts(t *testing.T, s *Server) jetstream.KeyValue {
	t.Helper()
	nc, err := s.AgentsConn()
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: protocol.FactsBucket})
	require.NoError(t, err)
	_, err = kv.Put(t.Context(), protocol.FactsKey("idc", 7), []byte("facts of 7"))
	require.NoError(t, err)
	return kv
}

func TestReaderFollowsAndReads(t *testing.T) {
	s := start(t)
	inventory(t, s)
	kv := facts(t, s)
	d := openDoor(t, s)
	nc := d.reader("graf")
	require.Equal(t, int64(maxPayload), nc.MaxPayload())
	tlsState, err := nc.TLSConnectionState()
	require.NoError(t, err)
	require.True(t, tlsState.HandshakeComplete)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	bucket, err := js.KeyValue(t.Context(), protocol.FactsBucket)
	require.NoError(t, err)
	e, err := bucket.Get(t.Context(), protocol.FactsKey("idc", 7))
	require.NoError(t, err)
	require.Equal(t, "facts of 7", string(e.Value()))
	_, err = bucket.Get(t.Context(), protocol.FactsKey("idc", 8))
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)

	for _, c := range []struct{ pattern, subject string }{
		{protocol.SubjectInventoryAll, protocol.InventorySubject("idc", 7)},
		{protocol.SubjectEventsAll, protocol.EventSubject("node_up")},
		{"$KV.causeway-inventory.>", "$KV.causeway-inventory.idc.7"},
	} {
		sub, err := nc.SubscribeSync(c.pattern)
		require.NoError(t, err)
		require.NoError(t, nc.Flush())
		hub, err := s.AgentsConn()
		require.NoError(t, err)
		require.NoError(t, hub.Publish(c.subject, []byte("news")))
		require.NoError(t, hub.Flush())
		hub.Close()
		m, err := sub.NextMsg(patience)
		require.NoError(t, err, c.pattern)
		require.Equal(t, c.subject, m.Subject)
		require.NoError(t, sub.Unsubscribe())
	}
	// All present facts at once.
	_, err = kv.Put(t.Context(), protocol.FactsKey("idc", 8), []byte("facts of 8"))
	require.NoError(t, err)
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	require.NoError(t, err)
	require.NoError(t, nc.PublishRequest("$JS.API.DIRECT.GET.KV_causeway-inventory", inbox, []byte(`{"multi_last":["$KV.causeway-inventory.>"]}`)))
	var all []string
	for range 2 {
		m, err := sub.NextMsg(patience)
		require.NoError(t, err)
		all = append(all, m.Header.Get("Nats-Subject"))
	}
	require.Equal(t, []string{"$KV.causeway-inventory.idc.7", "$KV.causeway-inventory.idc.8"}, all)
}

// Each subject × publish and subscribe, for a reader: what docs/NATS.md says and no more.
func TestReaderMatrix(t *testing.T) {
	s := start(t)
	st := inventory(t, s)
	facts(t, s)
	d := openDoor(t, s)
	nc := d.reader("graf", nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	d.reader("graf-2")
	before, err := st.Info(t.Context())
	require.NoError(t, err)

	const facts, get = "$KV.causeway-inventory", "$JS.API.DIRECT.GET.KV_causeway-inventory"
	mayPublish := map[string]bool{get: true, get + "." + facts + ".idc.7": true, "$JS.API.STREAM.INFO.KV_causeway-inventory": true}
	maySubscribe := map[string]bool{"causeway.v1.inventory.>": true, "causeway.v1.inventory.*.>": true, "causeway.v1.inventory.idc.7.snapshot": true, "causeway.v1.inventory.idc.7.delta": true,
		"causeway.v1.inventory.idc.*.delta": true, "causeway.v1.event.>": true, "causeway.v1.event.*": true, "causeway.v1.event.node_up": true,
		facts + ".>": true, facts + ".*.*": true, facts + ".idc.7": true, "_INBOX.user.graf.>": true, "_INBOX.user.graf.x": true, "_INBOX.user.graf.*": true}
	subjects := append(append([]string(nil), hubSubjects...), wildcards...)
	for _, m := range []map[string]bool{mayPublish, maySubscribe} {
		for k := range m {
			subjects = append(subjects, k)
		}
	}
	subjects = distinct(append(subjects,
		"causeway.v1.ask.7", "causeway.v1.ask.70", "causeway.v1.ask.x.y", "causeway.v1.event", "causeway.v2.inventory.idc.7.snapshot",
		"_INBOX.7", "_INBOX.7.x", "_INBOX.7.>", "_INBOX.user", "_INBOX.user.x", "_INBOX.user.>", "_INBOX.user.*.>", "_INBOX.user.graf", "_INBOX.user.graf-2.x", "_INBOX.user.graf-2.>", "_INBOX.user.gra.x",
		facts, facts+"-2.idc.7", "$KV.other.idc.7", "$KV.*.idc.7", "$KV.*.>",
		"$JS.API.DIRECT.GET.KV_other", "$JS.API.DIRECT.GET.CAUSEWAY_INVENTORY.causeway.v1.inventory.idc.7.snapshot", "$JS.API.DIRECT.GET.CAUSEWAY_EVENTS", "$JS.API.DIRECT.GET.KV_causeway-inventory-2.x",
		"$JS.API.STREAM.MSG.GET.KV_causeway-inventory", "$JS.API.STREAM.PURGE.KV_causeway-inventory", "$JS.API.STREAM.DELETE.KV_causeway-inventory", "$JS.API.STREAM.UPDATE.KV_causeway-inventory",
		"$JS.API.STREAM.INFO.CAUSEWAY_INVENTORY", "$JS.API.STREAM.INFO.KV_other", "$JS.API.STREAM.SNAPSHOT.KV_causeway-inventory", "$JS.API.STREAM.RESTORE.KV_causeway-inventory",
		"$JS.API.CONSUMER.CREATE.KV_causeway-inventory", "$JS.API.CONSUMER.CREATE.KV_causeway-inventory.c", "$JS.API.CONSUMER.DURABLE.CREATE.KV_causeway-inventory.c", "$JS.API.CONSUMER.NAMES.KV_causeway-inventory",
		"$JS.API.CONSUMER.INFO.KV_causeway-inventory.c", "$JS.API.CONSUMER.MSG.NEXT.KV_causeway-inventory.c", "$JS.API.ACCOUNT.PURGE.x", "$JS.API.DIRECT.>", get+".>"))
	refused := func(op, subject string) bool {
		require.NoError(t, nc.FlushTimeout(patience))
		err := nc.LastError()
		return err != nil && strings.Contains(err.Error(), fmt.Sprintf("Permissions Violation for %s %q", op, subject))
	}
	var published, subscribed, no int
	for _, subject := range subjects {
		if !strings.ContainsAny(subject, "*>") {
			for _, m := range []*nats.Msg{{Subject: subject, Data: []byte("evil")}, {Subject: subject, Reply: nc.NewInbox(), Header: nats.Header{"Nats-Rollup": {"all"}}}} {
				require.NoError(t, nc.PublishMsg(m))
				require.Equal(t, !mayPublish[subject], refused("Publish to", subject), "publish to %s", subject)
			}
			published++
			if !mayPublish[subject] {
				no++
			}
		}
		for _, queue := range []string{"", "workers"} {
			sub, err := nc.QueueSubscribeSync(subject, queue)
			require.NoError(t, err)
			require.Equal(t, !maySubscribe[subject], refused("Subscription to", subject), "subscribe to %s as %q", subject, queue)
			sub.Unsubscribe()
		}
		subscribed++
		if !maySubscribe[subject] {
			no++
		}
	}
	after, err := st.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, before.State, after.State, "nothing was stored")
	t.Logf("%d subjects: %d published to, %d subscribed to, %d of these refused", len(subjects), published, subscribed, no)
}

// JetStream answers with its own rights: a reply subject that is not the reader's own ends the
// connection before the server sees it.
func TestReaderReplySubject(t *testing.T) {
	s := start(t)
	st := inventory(t, s)
	facts(t, s)
	d := openDoor(t, s)
	for _, reply := range []string{protocol.InventorySubject("idc", 7), "$JS.API.STREAM.DELETE.CAUSEWAY_INVENTORY", "causeway.v1.event.node_up", "_INBOX.7.x", "_INBOX.user.graf-2.x", "_INBOX.user.graf"} {
		nc := d.reader("graf")
		require.NoError(t, nc.PublishRequest("$JS.API.DIRECT.GET.KV_causeway-inventory.$KV.causeway-inventory.idc.7", reply, nil))
		require.Error(t, nc.FlushTimeout(patience), reply)
	}
	nc := d.reader("graf")
	require.NoError(t, nc.Publish("$JS.API.DIRECT.GET.KV_causeway-inventory", make([]byte, maxReaderRequest+1)))
	require.Error(t, nc.FlushTimeout(patience), "a request that is too long")
	info, err := st.Info(t.Context())
	require.NoError(t, err)
	require.Zero(t, info.State.Msgs)
}

// Whoever is revoked is cut off at once, and refused when he comes back.
func TestReaderRevoked(t *testing.T) {
	s := start(t)
	d := openDoor(t, s)
	pub, creds := d.user("graf")
	closed := make(chan struct{})
	nc, err := d.dial("graf", creds, nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	other := d.reader("other")
	begin := time.Now()
	d.revoke(pub)
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("the connection stays")
	}
	t.Logf("cut off %s after the revocation", time.Since(begin).Round(10*time.Microsecond))
	_, err = d.dial("graf", creds)
	require.ErrorIs(t, err, nats.ErrAuthorization)
	require.NoError(t, other.FlushTimeout(patience), "others stay")
	d.mu.Lock()
	defer d.mu.Unlock()
	require.Equal(t, 1, d.refused)
}

func TestReadersAreBounded(t *testing.T) {
	s := start(t)
	d := openDoor(t, s)
	_, creds := d.user("graf")
	for range maxReaderUser {
		_, err := d.dial("graf", creds)
		require.NoError(t, err)
	}
	_, err := d.dial("graf", creds)
	require.ErrorContains(t, err, "maximum connections exceeded")
	other := d.reader("other")
	// Strangers who say nothing never keep a reader out.
	for range 2 * maxUnknownSource {
		c, err := net.Dial("tcp", d.addr)
		require.NoError(t, err)
		defer c.Close()
	}
	d.reader("third")
	require.NoError(t, other.FlushTimeout(patience))
}

// Only the holder of a user's private key is that user, whatever else a CONNECT says.
func TestReaderCredentials(t *testing.T) {
	const nonce = "nonce"
	d := &door{t: t}
	kp, pub, token := d.key()
	_, otherPub, otherToken := d.key()
	sign := func(text string) string {
		sig, err := kp.Sign([]byte(text))
		require.NoError(t, err)
		return base64.RawURLEncoding.EncodeToString(sig)
	}
	user := func(key string) (string, bool) { return "graf", key == pub }
	for what, c := range map[string]struct {
		connect map[string]any
		ok      bool
	}{
		"jwt":                  {map[string]any{"jwt": token, "sig": sign(nonce)}, true},
		"nkey":                 {map[string]any{"nkey": pub, "sig": sign(nonce)}, true},
		"nothing":              {map[string]any{}, false},
		"no signature":         {map[string]any{"jwt": token}, false},
		"another nonce":        {map[string]any{"jwt": token, "sig": sign("once")}, false},
		"no base64":            {map[string]any{"jwt": token, "sig": "%"}, false},
		"unknown key":          {map[string]any{"jwt": otherToken, "sig": sign(nonce)}, false},
		"unknown nkey":         {map[string]any{"nkey": otherPub, "sig": sign(nonce)}, false},
		"jwt wins over nkey":   {map[string]any{"jwt": otherToken, "nkey": pub, "sig": sign(nonce)}, false},
		"no jwt":               {map[string]any{"jwt": "x.y.z", "sig": sign(nonce)}, false},
		"a node's credentials": {map[string]any{"auth_token": "x"}, false},
	} {
		b, err := json.Marshal(c.connect)
		require.NoError(t, err)
		r, err := authenticate([]byte("CONNECT "+string(b)+"\r\n"), nonce, user)
		require.Equal(t, c.ok, err == nil, what)
		if c.ok {
			require.Equal(t, "graf", r.name)
		}
	}
}

// Before its credentials a client sees that TLS is wanted, and a nonce of its own.
func TestReaderIsAskedForTLS(t *testing.T) {
	d := openDoor(t, start(t))
	seen := map[string]bool{}
	for range 3 {
		c, err := net.Dial("tcp", d.addr)
		require.NoError(t, err)
		c.SetDeadline(time.Now().Add(patience))
		line, err := bufio.NewReader(c).ReadString('\n')
		require.NoError(t, err)
		var info struct {
			TLS   bool   `json:"tls_required"`
			Nonce string `json:"nonce"`
			JS    bool   `json:"jetstream"`
		}
		require.NoError(t, json.Unmarshal([]byte(strings.TrimPrefix(line, "INFO ")), &info), line)
		require.True(t, info.TLS)
		require.True(t, info.JS)
		require.Len(t, info.Nonce, 22)
		seen[info.Nonce] = true
		_, err = c.Write([]byte("CONNECT {}\r\nPING\r\n")) // in the clear
		require.NoError(t, err)
		_, err = bufio.NewReader(c).ReadString('\n')
		require.Error(t, err)
		c.Close()
	}
	require.Len(t, seen, 3)
}

// A client is foreign code: whatever it sends first, it is nobody without a signature.
func FuzzReaderConnect(f *testing.F) {
	f.Add([]byte("CONNECT {\"jwt\":\"a.b.c\",\"sig\":\"AA\"}\r\n"))
	f.Add([]byte("connect {\"nkey\":\"UA\",\"sig\":\"\"}\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		_, err := authenticate(line, "nonce", func(string) (string, bool) { return "graf", true })
		require.Error(t, err)
	})
}

// Of those who do not read, the ones furthest behind go, at once, and no more than has to be.
func TestReadersTooFarBehind(t *testing.T) {
	a, b, c, d := &reader{name: "a"}, &reader{name: "b"}, &reader{name: "c"}, &reader{name: "d"}
	names := func(most int, l ...backlog) (out []string) {
		for _, x := range tooFar(l, most) {
			out = append(out, x.reader.name)
		}
		return out
	}
	require.Empty(t, names(10))
	require.Empty(t, names(10, backlog{a, 4}, backlog{b, 6}))
	require.Equal(t, []string{"b"}, names(10, backlog{a, 4}, backlog{b, 7}))
	require.Equal(t, []string{"a"}, names(10, backlog{a, 11}))
	require.Equal(t, []string{"c", "a"}, names(10, backlog{a, 8}, backlog{b, 2}, backlog{c, 9}, backlog{d, 7}))
}
