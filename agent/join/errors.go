package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"

	"golang.org/x/sys/unix"

	"causeway/internal/retry"
)

// unreachable says in one line why addr was not reached and what to look at.
func unreachable(addr string, err error) error {
	_, port, _ := net.SplitHostPort(addr)
	what, todo := "", ""
	var dns *net.DNSError
	var rec tls.RecordHeaderError
	var status *retry.StatusError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &status) && status.Code == http.StatusProxyAuthRequired:
		what, todo = status.Error(), "write its user and password into the proxy's URL"
	case errors.As(err, &status) && retry.Status(status.Code):
		what, todo = status.Error(), "check that the hub runs and that the proxy reaches it"
	case errors.As(err, &status):
		what, todo = status.Error(), "let the proxy connect to "+addr
	case errors.As(err, &dns) && dns.IsNotFound:
		what, todo = fmt.Sprintf("the name %s does not resolve", dns.Name), "check the name and this host's DNS"
	case errors.As(err, &dns):
		what, todo = fmt.Sprintf("DNS does not answer for %s", dns.Name), "check this host's DNS"
	case errors.Is(err, unix.ECONNREFUSED):
		what, todo = "connection refused", "check that causeway-hub runs there and listens on TCP port "+port
	case isTimeout(err):
		what, todo = "no answer within 10s", "check that causeway-hub runs there and that TCP port "+port+" is open from this host"
	case errors.Is(err, unix.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		what, todo = "the connection was cut", "check that causeway-hub runs there, and what is between"
	case errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH):
		what, todo = "no route to it", "check this host's network"
	case errors.As(err, &rec):
		what, todo = "it does not speak TLS", "check the token's address and port"
	default:
		what, todo = clean(strip(err).Error()), "check the address, the proxy settings and that TCP port "+port+" is open from this host"
	}
	return &UnreachableError{addr, what + "; " + todo, err}
}

// UnreachableError says that no hub answered at the token's address.
type UnreachableError struct {
	Addr  string
	text  string
	cause error
}

// Error is one line: what, where, what to do.
func (e *UnreachableError) Error() string { return "cannot reach the hub at " + e.Addr + ": " + e.text }

// Unwrap is the cause.
func (e *UnreachableError) Unwrap() error { return e.cause }

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// strip takes off the method and URL that net/http puts before an error.
func strip(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return err
}
