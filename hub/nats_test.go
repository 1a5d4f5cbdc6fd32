package hub

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// A user who is made over the API follows what agents tell, with TLS that the hub's CA vouches
// for; a restart keeps him, a revocation ends his connection, and the audit shows both.
func TestNATSUsers(t *testing.T) {
	listen := func(c *Config) { c.ListenNATS = "127.0.0.1:0" }
	dir := t.TempDir()
	w, err := tryStart(t, dir, listen)
	require.NoError(t, err)
	w.site("a")
	key, err := nkeys.CreateUser()
	require.NoError(t, err)
	pub, err := key.PublicKey()
	require.NoError(t, err)
	var made api.NATSUserCreated
	w.must("POST", "/v1/nats/users", api.NATSUserSpec{Name: "graf", Role: "reader", Key: pub}, &made)
	code, detail := w.call("POST", "/v1/nats/users", api.NATSUserSpec{Name: "graf", Role: "reader", Key: pub}, nil)
	require.Equal(t, 409, code, detail)
	code, detail = w.call("POST", "/v1/nats/users", api.NATSUserSpec{Name: "other", Role: "reader", Key: pub[:20]}, nil)
	require.Equal(t, 422, code, detail)

	closed := make(chan struct{}, 1)
	connect := func(made api.NATSUserCreated, key nkeys.KeyPair) (*nats.Conn, error) {
		roots := x509.NewCertPool()
		require.True(t, roots.AppendCertsFromPEM([]byte(made.CA)))
		return nats.Connect("tls://"+made.Address, nats.Nkey(pub, key.Sign), nats.Secure(&tls.Config{RootCAs: roots}), nats.CustomInboxPrefix(made.InboxPrefix),
			nats.NoReconnect(), nats.Timeout(patience), nats.ClosedHandler(func(*nats.Conn) { closed <- struct{}{} }))
	}
	nc, err := connect(made, key)
	require.NoError(t, err)
	defer nc.Close()
	news, err := nc.SubscribeSync(protocol.SubjectEventsAll)
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	w.dial(joined(t, w, "one", api.TokenSpec{Site: "a"}), nil).until("a netmap", func(protocol.Netmap) bool { return true })
	for subject := ""; subject != "causeway.v1.event.node_up"; { // its state is news, too
		m, err := news.NextMsg(patience)
		require.NoError(t, err)
		subject = m.Subject
	}

	// A hub that begins anew has the user; its port, which a test leaves to the system, is another.
	w.stop()
	<-closed
	if w, err = tryStart(t, dir, listen); err != nil {
		t.Fatal(err)
	}
	stranger, err := nkeys.CreateUser()
	require.NoError(t, err)
	other, err := stranger.PublicKey()
	require.NoError(t, err)
	var second api.NATSUserCreated
	w.must("POST", "/v1/nats/users", api.NATSUserSpec{Name: "second", Role: "reader", Key: other}, &second)
	require.Equal(t, made.CA, second.CA)
	made.Address = second.Address
	nc, err = connect(made, key)
	require.NoError(t, err)
	defer nc.Close()
	_, err = connect(made, stranger)
	require.ErrorIs(t, err, nats.ErrAuthorization, "the key of another")

	begin := time.Now()
	w.must("DELETE", "/v1/nats/users/graf", nil, nil)
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("the connection of a revoked user stays")
	}
	t.Logf("cut off %s after the revocation was asked for", time.Since(begin).Round(time.Millisecond))
	_, err = connect(made, key)
	require.ErrorIs(t, err, nats.ErrAuthorization)
	var users []api.NATSUser
	w.must("GET", "/v1/nats/users", nil, &users)
	require.Equal(t, []string{"graf revoked", "second active"}, []string{users[0].Name + " " + users[0].State, users[1].Name + " " + users[1].State})
	var audit []api.AuditEntry
	w.must("GET", "/v1/audit?limit=1", nil, &audit)
	require.Equal(t, "nats user revoke graf", audit[0].Why)
	require.Equal(t, []api.Difference{{Object: "NATS user graf", Field: "Revoked", Before: "", After: "true"}}, audit[0].Differences)
}

func TestNATSUsersNeedAListener(t *testing.T) {
	w := start(t, t.TempDir())
	code, detail := w.call("POST", "/v1/nats/users", api.NATSUserSpec{Name: "graf", Role: "reader", Key: "U"}, nil)
	require.Equal(t, 409, code)
	require.Contains(t, detail, "--listen-nats")
	for _, cfg := range []Config{{ListenNATS: "4222"}, {ListenNATS: "hub:4222"}, {ListenNATS: ":4222", NATSURL: "nats://127.0.0.1:1"}} {
		_, err := New(cfg)
		require.ErrorContains(t, err, "listen-nats")
		require.NotContains(t, err.Error(), "\n")
	}
}
