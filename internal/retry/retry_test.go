package retry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTemporary(t *testing.T) {
	wrap := func(err error) error { return &url.Error{Op: "Get", URL: "https://hub", Err: err} }
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"busy":                       {&StatusError{Code: 429}, true},
		"gateway":                    {fmt.Errorf("x: %w", &StatusError{Code: 502}), true},
		"away":                       {&StatusError{Code: 503}, true},
		"gateway's time":             {&StatusError{Code: 504}, true},
		"origin down, of a CDN":      {&StatusError{Code: 521}, true},
		"portal":                     {&StatusError{Code: 511}, false},
		"portal's redirect":          {&StatusError{Code: 302}, false},
		"proxy's login":              {&StatusError{Code: 407, Proxy: "p:1"}, false},
		"not here":                   {&StatusError{Code: 404}, false},
		"refused":                    {wrap(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}), true},
		"reset":                      {wrap(&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}), true},
		"cut":                        {wrap(io.EOF), true},
		"cut in the answer":          {io.ErrUnexpectedEOF, true},
		"no route yet":               {wrap(syscall.ENETUNREACH), true},
		"time out":                   {wrap(context.DeadlineExceeded), true},
		"given up":                   {wrap(context.Canceled), false},
		"no such name":               {wrap(&net.DNSError{Err: "no such host", IsNotFound: true}), false},
		"name server fails":          {wrap(&net.DNSError{Err: "server misbehaving", IsTemporary: true}), true},
		"name server does not speak": {wrap(&net.DNSError{Err: "i/o timeout", IsTimeout: true}), true},
		"no TLS":                     {wrap(tls.RecordHeaderError{Msg: "x"}), false},
		"wrong certificate":          {wrap(&tls.CertificateVerificationError{Err: errors.New("x")}), false},
		"alert":                      {wrap(&net.OpError{Op: "remote error", Err: tls.AlertError(40)}), false},
		"not allowed":                {wrap(syscall.EPERM), false},
		"unknown":                    {errors.New("x"), false},
		"none":                       {nil, false},
	} {
		require.Equal(t, c.want, Temporary(c.err), name)
	}
}

func TestAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "0": 0, "-1": 0, "x": 0, "3600": MaxAfter, "18446744073709551615": MaxAfter, "99999999999999999999": 0,
		now.Add(7 * time.Second).Format(http.TimeFormat): 7 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):      0,
		now.Add(time.Hour).Format(http.TimeFormat):       MaxAfter,
	} {
		require.Equal(t, want, After(http.Header{"Retry-After": {text}}, now), "%q", text)
	}
	require.Equal(t, 2*time.Second, Asked(fmt.Errorf("x: %w", &StatusError{Code: 429, After: 2 * time.Second})))
}

// Pauses double up to a bound, differ from caller to caller, and are never shorter than
// what the hub asks for.
func TestBackoff(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 50 {
		b := Backoff{First: time.Second, Most: 4 * time.Second}
		for _, p := range []time.Duration{1, 2, 4, 4} {
			got := b.Next(0)
			require.GreaterOrEqual(t, got, p*time.Second/2)
			require.LessOrEqual(t, got, p*time.Second)
			seen[got] = true
		}
		b.Reset()
		got := b.Next(10 * time.Second)
		require.GreaterOrEqual(t, got, 10*time.Second)
		require.LessOrEqual(t, got, 11*time.Second)
		require.LessOrEqual(t, b.Next(time.Hour), MaxAfter+time.Second)
	}
	require.Greater(t, len(seen), 100)
}

// A proxy's answer to CONNECT keeps its status through net/http.
func TestProxyAnswer(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "2")
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer proxy.Close()
	u, err := url.Parse(proxy.URL)
	require.NoError(t, err)
	c := http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(u), OnProxyConnectResponse: ProxyAnswer}}
	_, err = c.Get("https://hub.invalid/")
	require.True(t, Temporary(err))
	require.Equal(t, 2*time.Second, Asked(err))
	require.ErrorContains(t, err, "the proxy "+u.Host+" answers with HTTP status 502")
}
