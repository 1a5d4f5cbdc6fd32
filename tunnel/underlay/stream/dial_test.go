package stream

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// proxy is an HTTP proxy that knows CONNECT and wants a password.
func proxy(t *testing.T, user, password string, allow bool) *url.URL {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, ok := parseProxyAuth(r)
		switch {
		case r.Method != http.MethodConnect:
			http.Error(w, "no", http.StatusMethodNotAllowed)
		case !ok || u != user || p != password:
			http.Error(w, "who are you", http.StatusProxyAuthRequired)
		case !allow:
			http.Error(w, "no", http.StatusForbidden)
		default:
			out, err := net.Dial("tcp", r.Host)
			if err != nil {
				http.Error(w, "unreachable", http.StatusBadGateway)
				return
			}
			defer out.Close()
			in, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer in.Close()
			fmt.Fprint(in, "HTTP/1.1 200 OK\r\n\r\n")
			go func() { io.Copy(out, rw); out.Close() }()
			io.Copy(in, out)
		}
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	u.User = url.UserPassword(user, password)
	return u
}

func parseProxyAuth(r *http.Request) (user, password string, ok bool) {
	r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
	return r.BasicAuth()
}

func by(u *url.URL) func(*url.URL) (*url.URL, error) {
	return func(*url.URL) (*url.URL, error) { return u, nil }
}

func TestThroughProxy(t *testing.T) {
	h := newHub(t)
	const secret = "p4ssw0rd"
	a, _ := dial(t, h, Dialer{Proxy: by(proxy(t, "me", secret, true))})
	require.NoError(t, a.Send(transport(1000, 1000), 1000))
	eventually(t, "arrived", func() bool { return h.received() == 1000 })

	wrong := proxy(t, "me", secret, true)
	wrong.User = url.UserPassword("me", secret+"x")
	gone := *wrong
	gone.Host = "127.0.0.1:1"
	for what, c := range map[string]struct {
		proxy   func(*url.URL) (*url.URL, error)
		want    string
		refused bool
	}{
		"wrong password": {by(wrong), "wants a user and password", true},
		"not allowed":    {by(proxy(t, "me", secret, false)), "does not allow CONNECT", true},
		"not there":      {by(&gone), "connection refused", false},
		"bad setting":    {func(*url.URL) (*url.URL, error) { return url.Parse(fmt.Sprintf("http://me:%s@%%", secret)) }, "is no URL", true},
	} {
		_, err := Dialer{Proxy: c.proxy}.Dial(t.Context(), h.addr, protocol.StreamAddr(1))
		require.ErrorContains(t, err, c.want, what)
		if c.refused {
			require.ErrorIs(t, err, ErrRefused, what)
		} else {
			require.NotErrorIs(t, err, ErrRefused, what)
		}
		require.NotContains(t, err.Error(), secret, what)
		require.NotContains(t, err.Error(), "\n", what)
	}
}

func TestNotAHub(t *testing.T) {
	other := httptest.NewTLSServer(http.NotFoundHandler())
	defer other.Close()
	_, err := Dialer{}.Dial(t.Context(), other.Listener.Addr().String(), protocol.StreamAddr(1))
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "404")

	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	_, err = Dialer{}.Dial(t.Context(), plain.Listener.Addr().String(), protocol.StreamAddr(1))
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "does not speak TLS")

	echo := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Sec-WebSocket-Accept", acceptKey(r.Header.Get("Sec-WebSocket-Key")))
		w.WriteHeader(http.StatusSwitchingProtocols)
	}))
	defer echo.Close()
	_, err = Dialer{}.Dial(t.Context(), echo.Listener.Addr().String(), protocol.StreamAddr(1))
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "not a hub's")
}

// The vector of RFC 6455, section 1.3.
func TestAcceptKey(t *testing.T) {
	require.Equal(t, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", acceptKey("dGhlIHNhbXBsZSBub25jZQ=="))
}

func TestWhatIsNoRequestForAStream(t *testing.T) {
	h := newHub(t)
	for _, drop := range []string{"Connection", "Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol"} {
		c, err := tls.Dial("tcp", h.addr, &tls.Config{InsecureSkipVerify: true})
		require.NoError(t, err)
		for l := range strings.SplitSeq("GET "+protocol.PathStreams+" HTTP/1.1|Host: hub|Connection: keep-alive, Upgrade|Upgrade: WebSocket|"+
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==|Sec-WebSocket-Protocol: x, "+protocol.StreamProtocol, "|") {
			if !strings.HasPrefix(l, drop+":") {
				fmt.Fprint(c, l, "\r\n")
			}
		}
		fmt.Fprint(c, "\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusUpgradeRequired, resp.StatusCode, drop)
		resp.Body.Close()
		c.Close()
	}
	require.Equal(t, 4, h.counted(RefusedMalformed))
	require.Zero(t, h.Open())
}
