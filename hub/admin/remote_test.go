package admin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
)

const patience = 20 * time.Second

// remoteHub is a Server with a real state, on a TCP port.
type remoteHub struct {
	*Server
	t    *testing.T
	addr string
	*cutter
}

// cutter is a listener whose connections a test breaks.
type cutter struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

// Accept remembers the connection.
func (c *cutter) Accept() (net.Conn, error) {
	nc, err := c.Listener.Accept()
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, nc)
		c.mu.Unlock()
	}
	return nc, err
}

// cut breaks all connections.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, nc := range c.conns {
		nc.Close()
	}
	c.conns = nil
}

// startRemote serves; handler, if not nil, takes the place of the API behind its guard.
func startRemote(t *testing.T, handler http.Handler) *remoteHub {
	t.Helper()
	ca, err := OpenCA(filepath.Join(t.TempDir(), CAFile))
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	s := New(Config{Number: 1, Store: statetest.Open(t), Events: &event.Log{}, CA: ca, PublicHost: "127.0.0.1", AdminPort: port, Log: zerolog.Nop()})
	if handler != nil {
		s.handler = guard(s.routes.ServeMux, s.cfg.PublicHost, handler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cut := &cutter{Listener: l}
	go func() { done <- s.ServeRemote(ctx, cut) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	return &remoteHub{s, t, l.Addr().String(), cut}
}

func newCSR(t testing.TB) (csr string, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "root"}}, k)
	require.NoError(t, err)
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd})
}

// admin makes an admin as the API does.
func (h *remoteHub) admin(name string, role Role) api.Context {
	h.t.Helper()
	csr, key := newCSR(h.t)
	made, err := h.createAdmin(as(Admin)(httpGet()).Context(), api.AdminSpec{Name: name, Role: role.String(), CSR: csr})
	require.NoError(h.t, err)
	c, err := api.NewContext(made, key)
	require.NoError(h.t, err)
	require.Equal(h.t, name, c.Admin, "the certificate has the name that the hub gave, not the request's")
	return c
}

func httpGet() *http.Request {
	r, _ := http.NewRequest(http.MethodGet, "http://hub/", nil)
	return r
}

func (h *remoteHub) revoke(name string) {
	h.t.Helper()
	_, err := h.cfg.Store.Update(context.Background(), "test", "admin revoke "+name, func(d *state.Draft) error { return d.Add(state.AdminRevoked{Name: name}) })
	require.NoError(h.t, err)
}

// pairOf reads the certificate and key of a context as another TLS client does.
func pairOf(t testing.TB, c api.Context) *tls.Certificate {
	t.Helper()
	p, err := tls.X509KeyPair(c.Secret(), c.Secret())
	require.NoError(t, err)
	return &p
}

// client speaks HTTP with the hub, showing cert (nil: none).
func (h *remoteHub) client(cert *tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(h.cfg.CA.cert)
	conf := &tls.Config{RootCAs: pool, ServerName: api.HubName}
	if cert != nil {
		// Whatever CAs the hub says that it wants.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	var d net.Dialer
	tr := &http.Transport{TLSClientConfig: conf, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "tcp", h.addr) }}
	h.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// Every route × everybody who may knock from elsewhere, over real connections: what
// a caller may not reaches no handler. A route that is missing in the table of roles
// fails TestEveryRouteHasARole.
func TestBoundary(t *testing.T) {
	var reached atomic.Int32
	h := startRemote(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	other := startRemote(t, nil)

	viewer, operator, admin := h.admin("vic", Viewer), h.admin("olga", Operator), h.admin("adam", Admin)
	revoked := h.admin("rita", Admin)
	h.revoke("rita")
	foreign := other.admin("adam", Admin) // the same name, another hub's certificate

	// From the right CA, but in nobody's name: a stolen CA key alone opens nothing.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	now := time.Now()
	der, err := h.cfg.CA.issue("adam", key.Public(), now, now.Add(time.Hour))
	require.NoError(t, err)
	unnamed := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	// Named by the state of a cluster of hubs, as another hub's.
	der, err = h.cfg.CA.issue("elsewhere", key.Public(), now, now.Add(time.Hour))
	require.NoError(t, err)
	ofHub2 := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	sum2 := sha256.Sum256(der)
	der, err = h.cfg.CA.issue("late", key.Public(), now.Add(-2*time.Hour), now.Add(-time.Minute))
	require.NoError(t, err)
	expired := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	sumLate := sha256.Sum256(der)
	_, err = h.cfg.Store.Update(context.Background(), "test", "test", func(d *state.Draft) error {
		return errors.Join(d.Add(state.AdminCreated{Name: "elsewhere", Role: "admin", Hub: 2, Cert: sum2[:], Expires: now.Add(time.Hour)}),
			d.Add(state.AdminCreated{Name: "late", Role: "admin", Hub: 1, Cert: sumLate[:], Expires: now.Add(time.Hour)}))
	})
	require.NoError(t, err)
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "adam"}, NotAfter: now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err = sign(tmpl, nil, key.Public(), key)
	require.NoError(t, err)
	own := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	server, err := h.cfg.CA.serverCert("")
	require.NoError(t, err)

	type caller struct {
		what   string
		client *http.Client
		edit   func(*http.Request)
		want   func(need Role) int // 0: no HTTP at all
	}
	fixed := func(n int) func(Role) int { return func(Role) int { return n } }
	by := func(have Role) func(Role) int { return func(need Role) int { return status(have, need) } }
	none := func(*http.Request) {}
	whole := h.client(pairOf(t, admin))
	callers := []caller{
		{"no credential", h.client(nil), none, fixed(0)},
		{"viewer", h.client(pairOf(t, viewer)), none, by(Viewer)},
		{"operator", h.client(pairOf(t, operator)), none, by(Operator)},
		{"admin", whole, none, by(Admin)},
		{"another hub's certificate", h.client(pairOf(t, foreign)), none, fixed(0)},
		{"revoked", h.client(pairOf(t, revoked)), none, fixed(0)},
		{"expired", h.client(expired), none, fixed(0)},
		{"self-made", h.client(own), none, fixed(0)},
		{"issued, but not in the state", h.client(unnamed), none, fixed(0)},
		{"issued for another hub of the cluster", h.client(ofHub2), none, fixed(0)},
		{"the hub's own server certificate", h.client(&server), none, fixed(0)},
		{"public name", whole, func(r *http.Request) { r.Host = h.addr }, by(Admin)},
		{"foreign host", whole, func(r *http.Request) { r.Host = "evil.example" }, fixed(http.StatusMisdirectedRequest)},
		{"foreign origin", whole, func(r *http.Request) { r.Header.Set("Origin", "https://hub") }, fixed(http.StatusForbidden)},
		{"browser", whole, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "none") }, fixed(http.StatusForbidden)},
	}
	cases, refused, silent := 0, 0, 0
	for _, pattern := range slices.Sorted(slices.Values(h.routes.patterns)) {
		need, ok := access[pattern]
		require.True(t, ok, "%s has no role", pattern)
		method, path, _ := strings.Cut(pattern, " ")
		path = strings.NewReplacer("{name}", "x", "{id}", "x", "{path...}", "v1/status").Replace(path)
		for _, c := range callers {
			r, err := http.NewRequest(method, "https://hub"+path, nil)
			require.NoError(t, err)
			c.edit(r)
			before := reached.Load()
			res, err := c.client.Do(r)
			got := 0
			if err == nil {
				got = res.StatusCode
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			require.Equal(t, c.want(need), got, "%s by %s: %v", pattern, c.what, err)
			require.Equal(t, got == http.StatusOK, reached.Load() > before, "%s by %s", pattern, c.what)
			cases++
			if got != http.StatusOK {
				refused++
			}
			if got == 0 {
				silent++
			}
		}
	}
	t.Logf("%d routes × %d callers = %d requests: %d refused as they have to be, %d of those before any HTTP", len(h.routes.patterns), len(callers), cases, refused, silent)

	// No plain HTTP, no older TLS.
	_, err = http.Get("http://" + h.addr + "/v1/status")
	require.Error(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(h.cfg.CA.cert)
	_, err = tls.Dial("tcp", h.addr, &tls.Config{RootCAs: pool, ServerName: api.HubName, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*pairOf(t, admin)}})
	require.ErrorContains(t, err, "protocol version")
	http.DefaultClient.CloseIdleConnections()
}

// A context's client says in one line why it is refused, each reason apart; the hub
// notes it. A revocation ends connections that are open, and what waits in them.
func TestRefusalsInOneLine(t *testing.T) {
	held := make(chan struct{})
	h := startRemote(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/status" {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, "{}")
			return
		}
		close(held)
		<-r.Context().Done()
	}))
	other := startRemote(t, nil)
	dial := func(c api.Context) *api.Client {
		client, err := api.NewClient(api.ClientConfig{Context: &c})
		require.NoError(t, err)
		t.Cleanup(client.Close)
		return client
	}
	says := func(c api.Context, want string) {
		t.Helper()
		for range 20 { // the alert must not lose a race
			client := dial(c)
			_, err := client.Status(t.Context())
			client.Close()
			require.EqualError(t, err, want)
		}
	}
	swapHub := func(c api.Context, addr string) api.Context {
		out, err := api.ParseContext(bytes.Replace(c.Secret(), []byte(c.Hub), []byte(addr), 1))
		require.NoError(t, err)
		return out
	}
	good := h.admin("adam", Admin)
	_, err := dial(good).Status(t.Context())
	require.NoError(t, err)
	says(swapHub(good, other.addr), "whoever answers at "+other.addr+" is not the hub that this context was made for; nothing was sent")

	// An attacker knows the hub's CA, which is no secret, and brings his own certificate.
	csr, key := newCSR(t)
	made, err := other.createAdmin(as(Admin)(httpGet()).Context(), api.AdminSpec{Name: "adam", Role: "admin", CSR: csr})
	require.NoError(t, err)
	p, err := tls.X509KeyPair([]byte(made.Certificate), key)
	require.NoError(t, err)
	_, err = h.client(&p).Get("https://hub/v1/status")
	require.ErrorContains(t, err, "unknown certificate authority")

	gone := h.admin("rita", Viewer)
	client := dial(gone)
	_, err = client.Status(t.Context())
	require.NoError(t, err)
	ended := make(chan time.Time, 1)
	go func() {
		client.Events(context.Background(), 1) // waits until it is cut
		ended <- time.Now()
	}()
	<-held
	start := time.Now()
	h.revoke("rita")
	select {
	case at := <-ended:
		t.Logf("a revocation ended an open request after %s", at.Sub(start).Round(time.Microsecond))
		require.Less(t, at.Sub(start), 2*time.Second)
	case <-time.After(patience):
		t.Fatal("the revoked admin's request goes on")
	}
	says(gone, "the hub at "+h.addr+" refuses admin rita: the certificate was revoked; have another made there with 'causeway admin create'")
	require.Contains(t, h.cfg.Events.Newest(1)[0].Kind, event.AdminRefused)
	require.LessOrEqual(t, h.cfg.Events.Count(event.AdminRefused), uint64(12), "strangers fill no log")

	// One whose certificate ends while its connection is open.
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ends := time.Now().Add(2 * time.Second).Truncate(time.Second)
	der, err := h.cfg.CA.issue("tim", k.Public(), time.Now(), ends)
	require.NoError(t, err)
	sum := sha256.Sum256(der)
	_, err = h.cfg.Store.Update(context.Background(), "test", "test", func(d *state.Draft) error {
		return d.Add(state.AdminCreated{Name: "tim", Role: "viewer", Hub: 1, Cert: sum[:], Expires: ends})
	})
	require.NoError(t, err)
	tim := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
	pool := x509.NewCertPool()
	pool.AddCert(h.cfg.CA.cert)
	conn, err := tls.Dial("tcp", h.addr, &tls.Config{RootCAs: pool, ServerName: api.HubName, Certificates: []tls.Certificate{*tim}})
	require.NoError(t, err)
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
	require.False(t, errors.Is(err, context.DeadlineExceeded) || time.Now().Before(ends), err)
	require.Less(t, time.Since(ends), 2*time.Second)
	_, err = h.client(tim).Get("https://hub/v1/status")
	require.ErrorContains(t, err, "expired certificate")
}
