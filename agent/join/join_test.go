package join

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flynn/noise"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/agent/identity"
	"causeway/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hub is the hub's side of a join with real keys, TLS and Noise; what it
// answers is up to the test.
type hub struct {
	t       *testing.T
	srv     *httptest.Server
	cluster protocol.ClusterPrivateKey
	key     protocol.WireGuardPrivateKey
	token   protocol.Token // as it is given to join
	made    protocol.Token // as the hub made it

	edit   func(*protocol.HubList)       // the list that is served
	fresh  func(*protocol.HubListAnswer) // the answer to a question with a nonce; nil: a hub of before
	answer func(*protocol.JoinAnswer)    // the answer that is sent
	post   func(w http.ResponseWriter) (ended bool)

	mu       sync.Mutex
	requests []protocol.JoinRequest
	keys     []protocol.WireGuardPublicKey
}

func newHub(t *testing.T) *hub {
	h := &hub{t: t}
	var err error
	h.cluster, err = protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	h.key, err = protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+protocol.PathHubList, func(w http.ResponseWriter, r *http.Request) {
		var n protocol.ListNonce
		signed := h.list(h.edit)
		a := protocol.HubListAnswer{SignedHubList: signed}
		if n.UnmarshalText([]byte(r.URL.Query().Get(protocol.NonceParameter))) == nil && h.fresh != nil {
			l, err := signed.Open(h.cluster.Public().Pin())
			if err == nil {
				a.Fresh = signed.Fresh(h.cluster, l.Serial, n, time.Now())
			}
			h.fresh(&a)
		}
		json.NewEncoder(w).Encode(a)
	})
	mux.HandleFunc("POST "+protocol.PathJoin, h.join)
	h.srv = httptest.NewTLSServer(mux)
	t.Cleanup(h.srv.Close)
	h.token, err = protocol.NewToken(h.cluster.Public().Pin(), h.srv.Listener.Addr().String())
	require.NoError(t, err)
	h.made = h.token
	return h
}

func (h *hub) list(edit func(*protocol.HubList)) protocol.SignedHubList {
	l := protocol.HubList{Version: 1, Serial: 1, NotBefore: time.Now().Add(-time.Hour), Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6},
		Hubs: []protocol.Hub{{Number: 1, WireGuardKey: h.key.Public(), UDP: []string{"192.0.2.1:51820"}, HTTPS: []string{h.srv.Listener.Addr().String()}}}}
	if edit != nil {
		edit(&l)
	}
	s, err := l.Sign(h.cluster)
	require.NoError(h.t, err)
	return s
}

func (h *hub) join(w http.ResponseWriter, r *http.Request) {
	pub := h.key.Public()
	hs, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s), Random: rand.Reader,
		Pattern: noise.HandshakeIK, Prologue: []byte(protocol.JoinPrologue), StaticKeypair: noise.DHKey{Private: h.key[:], Public: pub[:]},
	})
	if err != nil {
		panic(err)
	}
	b, _ := io.ReadAll(r.Body)
	plain, _, _, err := hs.ReadMessage(nil, b)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var req protocol.JoinRequest
	if err := json.Unmarshal(plain, &req); err != nil {
		panic(err)
	}
	h.mu.Lock()
	h.requests = append(h.requests, req)
	h.keys = append(h.keys, protocol.WireGuardPublicKey(hs.PeerStatic()))
	h.mu.Unlock()
	if h.post != nil && h.post(w) {
		return
	}
	l := h.list(nil)
	a := protocol.JoinAnswer{Version: 1, Number: 9, Name: req.Name, Site: "idc-sh", HubList: &l,
		Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.9"), netip.MustParseAddr("fd63:7761:7900::9")}}
	if req.TokenID == h.made.ID && string(req.Secret) != string(h.made.Secret[:]) {
		a = protocol.JoinAnswer{Version: 1, Refused: &protocol.Refusal{Code: protocol.RefusedToken, Message: "the token is not valid"}}
	}
	if h.answer != nil {
		h.answer(&a)
	}
	out, _ := json.Marshal(a)
	msg, _, _, err := hs.WriteMessage(nil, out)
	if err != nil {
		panic(err)
	}
	w.Write(msg)
}

func store(t *testing.T) *identity.Store {
	s, err := identity.Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func files(t *testing.T, s *identity.Store) (out []string) {
	e, err := os.ReadDir(s.Dir())
	require.NoError(t, err)
	for _, f := range e {
		out = append(out, f.Name())
	}
	return out
}

func noProxy(*http.Request) (*url.URL, error) { return nil, nil }

func TestJoin(t *testing.T) {
	h, s := newHub(t), store(t)
	h.answer = func(a *protocol.JoinAnswer) { a.Routes = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")} }
	id, err := Join(context.Background(), s, Config{Token: h.token, Name: "web-1", Version: "test", Proxy: noProxy})
	require.NoError(t, err)
	require.Equal(t, protocol.NodeNumber(9), id.Number)
	require.Equal(t, "web-1", id.Name)
	require.True(t, id.MadeDir)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}, id.Granted)
	got, err := s.Identity()
	require.NoError(t, err)
	require.Equal(t, id.WireGuardKey.Public(), got.WireGuardKey.Public())
	require.Equal(t, id.Granted, got.Granted)
	require.True(t, got.Shields, "new hosts have them up")
	require.Equal(t, []string{"identity.json", "identity.json.copy"}, files(t, s))
	require.Equal(t, []protocol.WireGuardPublicKey{id.WireGuardKey.Public()}, h.keys)
	require.Equal(t, id.IdentityKey.Public(), h.requests[0].IdentityKey)

	// A second join is refused here, before the hub hears of it.
	_, err = Join(context.Background(), s, Config{Token: h.token, Name: "web-1", Proxy: noProxy})
	require.ErrorIs(t, err, ErrAlreadyJoined)
	require.Len(t, h.requests, 1)

	// With Replace it takes the identity's place, with new keys. What is held closed is the
	// host's, and stays.
	require.NoError(t, s.SaveNetmap(identity.StoredNetmap{}))
	require.NoError(t, os.WriteFile(s.HeldFile(), nil, 0o600))
	h.answer = nil // an older hub does not tell the token's routes
	id2, err := Join(context.Background(), s, Config{Token: h.token, Name: "web-1", Replace: true, Proxy: noProxy})
	require.NoError(t, err)
	require.NotEqual(t, id.WireGuardKey, id2.WireGuardKey)
	require.True(t, h.requests[1].Replace)
	require.Nil(t, id2.Granted)
	require.Equal(t, []string{"held.json", "identity.json", "identity.json.copy"}, files(t, s))
}

// The answer to the first request is lost: the retry with the same token uses
// the same keys, so that the hub can tell it from a second redeemer.
func TestRetryUsesSameKey(t *testing.T) {
	h, s := newHub(t), store(t)
	h.post = func(w http.ResponseWriter) bool {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		c.Close()
		return true
	}
	_, err := Join(context.Background(), s, Config{Token: h.token, Name: "n", Proxy: noProxy})
	var u *UnreachableError
	require.ErrorAs(t, err, &u)
	require.Equal(t, []string{"pending.json"}, files(t, s))
	b, err := os.ReadFile(filepath.Join(s.Dir(), "pending.json"))
	require.NoError(t, err)
	secret := strings.Split(h.token.Text(), ".")[2]
	require.NotContains(t, string(b), secret)

	h.post = nil
	_, err = Join(context.Background(), s, Config{Token: h.token, Name: "n", Proxy: noProxy})
	require.NoError(t, err)
	// net/http itself may repeat a request on a connection that it reused.
	require.GreaterOrEqual(t, len(h.keys), 2)
	for _, k := range h.keys {
		require.Equal(t, h.keys[0], k)
	}

	// Another token gets other keys.
	other, err := protocol.NewToken(h.token.Pin, h.token.Addr)
	require.NoError(t, err)
	s2 := store(t)
	require.NoError(t, s2.SavePending(identity.Pending{TokenID: h.token.ID, WireGuardKey: h.key}))
	h.token = other
	id, err := Join(context.Background(), s2, Config{Token: other, Name: "n", Proxy: noProxy})
	require.NoError(t, err)
	require.NotEqual(t, h.key, id.WireGuardKey)
}

func TestPinIsCheckedBeforeTheSecretLeaves(t *testing.T) {
	h, s := newHub(t), store(t)
	other, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	h.token.Pin = other.Public().Pin()
	_, err = Join(context.Background(), s, Config{Token: h.token, Name: "n", Proxy: noProxy})
	require.ErrorIs(t, err, protocol.ErrPinMismatch)
	require.ErrorContains(t, err, "is not the hub that made the token")
	require.Empty(t, h.requests)
	require.Empty(t, files(t, s))
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(h *hub)
		want   string
		keeps  bool // pending stays for a retry
	}{
		{"wrong secret", func(h *hub) { h.token.Secret[0] ^= 1 }, "the hub refused to join this host: the token is not valid; 'causeway audit' on the hub has the reason", false},
		{"dirty text", func(h *hub) {
			h.answer = func(a *protocol.JoinAnswer) {
				*a = protocol.JoinAnswer{Refused: &protocol.Refusal{Code: protocol.RefusedToken, Message: "name n\x1b[31m is\ntaken."}}
			}
		}, "name n [31m is taken; 'causeway audit'", false},
		{"busy", func(h *hub) {
			h.answer = func(a *protocol.JoinAnswer) {
				*a = protocol.JoinAnswer{Refused: &protocol.Refusal{Code: protocol.RefusedBusy}}
			}
		}, "try again with the same token", true},
		{"hub key rotated", func(h *hub) { h.key[5] ^= 1 }, "could not read", true},
		{"503", func(h *hub) {
			h.post = func(w http.ResponseWriter) bool { w.WriteHeader(503); return true }
		}, "is away or busy", true},
		{"garbage", func(h *hub) {
			h.post = func(w http.ResponseWriter) bool { w.Write(make([]byte, 100)); return true }
		}, "is not from the listed hub 1", true},
		{"endless", func(h *hub) {
			h.post = func(w http.ResponseWriter) bool { w.Write(make([]byte, 100000)); return true }
		}, "too long", true},
		{"other overlay", func(h *hub) {
			h.answer = func(a *protocol.JoinAnswer) { a.Overlay = []netip.Addr{netip.MustParseAddr("198.18.0.10")} }
		}, "overlay range 198.18.0.0/15 is not that of this node's own address", true},
		{"another range as overlay", func(h *hub) {
			l := h.list(func(l *protocol.HubList) { l.Overlay = append(l.Overlay, netip.MustParsePrefix("10.0.0.0/8")) })
			h.answer = func(a *protocol.JoinAnswer) {
				a.HubList, a.Overlay = &l, append(a.Overlay, netip.MustParseAddr("10.0.0.9"))
			}
		}, "overlay range 10.0.0.0/8 is the second one", true},
		{"number of the hub", func(h *hub) {
			h.answer = func(a *protocol.JoinAnswer) { a.Number = 1 }
		}, "is a hub's", true},
		{"number out of range", func(h *hub) {
			h.answer = func(a *protocol.JoinAnswer) { a.Number = 1 << 24 }
		}, "no node number", true},
		{"bad route", func(h *hub) {
			h.answer = func(a *protocol.JoinAnswer) { a.Routes = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")} }
		}, "a route is no prefix", true},
		{"very many routes", func(h *hub) {
			h.answer = func(a *protocol.JoinAnswer) { a.Routes = make([]netip.Prefix, protocol.MaxNodeRoutes+1) }
		}, "it has 257 routes", true},
		{"bad site", func(h *hub) {
			h.answer = func(a *protocol.JoinAnswer) { a.Site = "../x" }
		}, "no DNS label", true},
		{"no list", func(h *hub) {
			h.answer = func(a *protocol.JoinAnswer) { a.HubList = nil }
		}, "no hub list", true},
		{"expired list", func(h *hub) {
			h.edit = func(l *protocol.HubList) { l.NotAfter = time.Now().Add(-time.Minute) }
		}, "check this host's clock", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, s := newHub(t), store(t)
			list := h.list(nil) // as signed before the change
			if c.name == "hub key rotated" {
				h.edit = func(l *protocol.HubList) { _ = json.Unmarshal(list.Payload, l) }
			}
			c.change(h)
			_, err := Join(context.Background(), s, Config{Token: h.token, Name: "n", Proxy: noProxy})
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
			require.NotContains(t, err.Error(), "\x1b")
			want := []string(nil)
			if c.keeps {
				want = []string{"pending.json"}
			}
			require.Equal(t, want, files(t, s))
		})
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed := l.Addr().String()
	l.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	noHub := httptest.NewTLSServer(http.NotFoundHandler())
	defer noHub.Close()
	text := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("hello")) }))
	defer text.Close()
	moved := httptest.NewTLSServer(http.RedirectHandler("https://127.0.0.1:1/", http.StatusFound))
	defer moved.Close()
	for _, c := range []struct{ name, addr, want string }{
		{"refused", closed, "connection refused; check that causeway-hub runs there"},
		{"no TLS", plain.Listener.Addr().String(), "cannot reach the hub at"},
		{"no hub", noHub.Listener.Addr().String(), "no Causeway hub is there"},
		{"no JSON", text.Listener.Addr().String(), "no Causeway hub is there"},
		{"redirect", moved.Listener.Addr().String(), "HTTP status 302"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok, err := protocol.NewToken(protocol.Pin{}, c.addr)
			require.NoError(t, err)
			s := store(t)
			_, err = Join(context.Background(), s, Config{Token: tok, Name: "n", Proxy: noProxy})
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, c.addr)
			require.NotContains(t, err.Error(), "\n")
			require.Empty(t, files(t, s))
		})
	}
}

// A CONNECT proxy is used where one is set.
func TestProxy(t *testing.T) {
	h, s := newHub(t), store(t)
	var wg sync.WaitGroup
	used := make(chan string, 8)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		used <- r.Method + " " + r.Host
		up, err := net.Dial("tcp", h.srv.Listener.Addr().String())
		if err != nil {
			panic(err)
		}
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(c, "HTTP/1.1 200 ok\r\n\r\n")
		wg.Add(2)
		go func() { defer wg.Done(); io.Copy(up, c); up.Close() }()
		go func() { defer wg.Done(); io.Copy(c, up); c.Close() }()
	}))
	defer proxy.Close()
	u, err := url.Parse(proxy.URL)
	require.NoError(t, err)
	h.token.Addr = "hub.invalid:443"
	_, err = Join(context.Background(), s, Config{Token: h.token, Name: "n", Proxy: http.ProxyURL(u)})
	require.NoError(t, err)
	require.Equal(t, "CONNECT hub.invalid:443", <-used)
	h.srv.CloseClientConnections()
	wg.Wait()
}

func TestProxyPasswordIsNotShown(t *testing.T) {
	h, s := newHub(t), store(t)
	_, err := Join(context.Background(), s, Config{Token: h.token, Name: "n", Proxy: func(*http.Request) (*url.URL, error) {
		return nil, errors.New(`invalid proxy address "http://me:pass%word@proxy:3128"`) // net/http's own words
	}})
	require.ErrorContains(t, err, "the proxy setting (HTTPS_PROXY) is no URL")
	require.NotContains(t, err.Error(), "pass")
}

func TestDefaultName(t *testing.T) {
	for in, want := range map[string]string{
		"web-1.example.com": "web-1", "WEB_1": "web-1", "-x-": "x", "": "", "...": "", "_": "", "böse": "b-se", strings.Repeat("a", 80): strings.Repeat("a", 63),
	} {
		require.Equal(t, want, DefaultName(in), "%q", in)
	}
}

// The secret of a token that requires a list shown to be the newest leaves the host for no
// other one: whoever has an old hub key and the list that names it learns nothing.
func TestNewestListRequired(t *testing.T) {
	good := func(*protocol.HubListAnswer) {}
	for name, c := range map[string]struct {
		least uint64 // 0: the token requires nothing
		fresh func(*protocol.HubListAnswer)
		want  string // "": it joins
	}{
		"hub and token of before":        {0, nil, ""},
		"token of before":                {0, good, ""},
		"newest":                         {1, good, ""},
		"not shown":                      {1, nil, "the answer says nothing of it"},
		"older than the token":           {2, good, "list 1 was shown, and the hub had list 2"},
		"shown to another":               {1, func(a *protocol.HubListAnswer) { a.Fresh.Nonce[0] ^= 1 }, "one to another question"},
		"shown by nobody":                {1, func(a *protocol.HubListAnswer) { a.Fresh.Signature[0] ^= 1 }, "bad signature"},
		"shown by nobody, not required":  {0, func(a *protocol.HubListAnswer) { a.Fresh.Signature[0] ^= 1 }, "bad signature"},
		"another list is the newest one": {1, func(a *protocol.HubListAnswer) { a.Fresh.Serial = 3 }, "it is list 3, and list 1 was shown"},
	} {
		t.Run(name, func(t *testing.T) {
			h, s := newHub(t), store(t)
			if h.fresh = c.fresh; c.least > 0 {
				h.token.Require(c.least)
				h.made = h.token
			}
			id, err := Join(t.Context(), s, Config{Token: h.token, Name: "n1"})
			if c.want == "" {
				require.NoError(t, err)
				require.Equal(t, c.fresh != nil, !id.HubListConfirmed.IsZero())
				stored, err := s.Identity()
				require.NoError(t, err)
				require.True(t, id.HubListConfirmed.Equal(stored.HubListConfirmed))
				return
			}
			require.ErrorIs(t, err, protocol.ErrNotFresh)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "nothing secret was sent")
			require.NotContains(t, err.Error(), "\n")
			require.Empty(t, h.requests)
			_, pending := s.Pending()
			require.False(t, pending)
		})
	}
}
