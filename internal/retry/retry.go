// Package retry tells what passes by itself of a request that failed on its way to a hub,
// or at it, and how long to wait before the next try. It sends nothing itself.
package retry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"time"
)

// MaxAfter bounds a Retry-After: whoever sends it, a proxy as well, holds nobody up for longer.
const MaxAfter = 30 * time.Second

// StatusError is an HTTP answer that is no success: of the hub, or of what is before it.
type StatusError struct {
	Code  int
	After time.Duration // the answer's Retry-After, bounded; 0: none
	Proxy string        // host:port of the HTTP proxy that gave it; empty: whoever answers as the hub
}

// FromResponse makes an error of an answer.
func FromResponse(r *http.Response) *StatusError {
	return &StatusError{Code: r.StatusCode, After: After(r.Header, time.Now())}
}

// Error names the status, and never the far side's own text.
func (e *StatusError) Error() string {
	if e.Proxy != "" {
		return fmt.Sprintf("the proxy %s answers with HTTP status %d", e.Proxy, e.Code)
	}
	return fmt.Sprintf("HTTP status %d", e.Code)
}

// ProxyAnswer is for http.Transport.OnProxyConnectResponse: it keeps status and
// Retry-After of a proxy that does not connect.
func ProxyAnswer(_ context.Context, proxy *url.URL, _ *http.Request, r *http.Response) error {
	if r.StatusCode == http.StatusOK {
		return nil
	}
	e := FromResponse(r)
	e.Proxy = proxy.Host
	return e
}

// Status reports whether an answer of this status may be another one soon: too much to do,
// or whoever is behind a proxy or load balancer is away. A status that asks for something
// (a login at a captive portal, 511) stays until somebody does it.
func Status(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusNetworkAuthenticationRequired:
		return false
	}
	return code >= 500
}

// After reads a Retry-After, seconds or a date, between 0 and MaxAfter.
func After(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if text == "" {
		return 0
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return time.Duration(min(n, uint64(MaxAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), MaxAfter)
}

// Temporary reports whether a request that failed with err may succeed soon, unchanged. A
// name that does not exist, a certificate that is wrong, something that speaks no TLS and
// a caller who gave up are final; so is all that is not known to pass.
func Temporary(err error) bool {
	var status *StatusError
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &status):
		return Status(status.Code)
	case errors.As(err, &dns):
		return !dns.IsNotFound && (dns.IsTemporary || dns.IsTimeout)
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(x509.UnknownAuthorityError)),
		errors.As(err, new(x509.HostnameError)), errors.As(err, new(x509.CertificateInvalidError)),
		errors.As(err, new(tls.RecordHeaderError)), errors.As(err, new(tls.AlertError)):
		return false
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return true
	case errors.As(err, &timeout) && timeout.Timeout():
		return true
	}
	for _, e := range []syscall.Errno{syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE, syscall.ETIMEDOUT,
		syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Asked is how long err's answer asks to wait; 0 if it does not.
func Asked(err error) time.Duration {
	var s *StatusError
	if errors.As(err, &s) {
		return s.After
	}
	return 0
}

// Backoff is the pauses between the tries of one caller: from First on, doubled up to Most,
// each with jitter, so that callers that began together do not come together. It is
// for one goroutine.
type Backoff struct {
	First, Most time.Duration
	next        time.Duration
}

// Next is how long to wait now: between half of the pause and all of it, and if the hub
// asked for longer, that and as much on top.
func (b *Backoff) Next(asked time.Duration) time.Duration {
	p := min(max(b.next, b.First), b.Most)
	b.next = 2 * p
	jitter := p/2 + rand.N(p/2+1)
	return max(min(asked, MaxAfter)-p/2, 0) + jitter
}

// Reset begins anew, after a success.
func (b *Backoff) Reset() { b.next = 0 }
