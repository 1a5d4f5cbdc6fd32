package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// HubName is the name under which a hub serves the API, whatever its address: in the
// Host header, and from elsewhere in its certificate.
const HubName = "hub"

// MaxContext bounds the text of a Context.
const MaxContext = 64 << 10

const contextBlock = "CAUSEWAY CONTEXT"

// Context is how an admin reaches one hub from elsewhere than its host. Its text is
// one file of PEM blocks, which other TLS clients can read as well:
//
//	CAUSEWAY CONTEXT  headers Hub (host:port) and Role, no content
//	CERTIFICATE       the admin's
//	CERTIFICATE       the hub's CA
//	PRIVATE KEY       the admin's, PKCS #8
type Context struct {
	Hub     string
	Admin   string
	Role    string // when it was made; the hub knows
	Created time.Time
	Expires time.Time

	pair tls.Certificate
	ca   *x509.Certificate
	text []byte
}

// NewContext makes a context of the hub's answer and the key, in PEM.
func NewContext(a AdminCreated, key []byte) (Context, error) {
	b := pem.EncodeToMemory(&pem.Block{Type: contextBlock, Headers: map[string]string{"Hub": a.Address, "Role": a.Role}})
	for _, part := range []string{a.Certificate, a.CA, string(key)} {
		b = append(b, part...)
	}
	return ParseContext(b)
}

// ParseContext reads a context's text. What comes before its first block is ignored.
// It never quotes what is in it.
func ParseContext(b []byte) (c Context, err error) {
	bad := func(why string) (Context, error) {
		return Context{}, fmt.Errorf("no context of a hub: %s; have 'causeway admin create' make one", why)
	}
	if len(b) > MaxContext {
		return bad(fmt.Sprintf("it is longer than %d bytes", MaxContext))
	}
	var certs, keys [][]byte
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case contextBlock:
			if c.Hub != "" {
				return bad("it names two hubs")
			}
			c.Hub, c.Role = block.Headers["Hub"], oneLine(block.Headers["Role"])
		case "CERTIFICATE":
			certs = append(certs, block.Bytes)
		case "PRIVATE KEY":
			keys = append(keys, pem.EncodeToMemory(block))
		}
	}
	host, port, err := net.SplitHostPort(c.Hub)
	if err != nil || host == "" || port == "" || oneLine(c.Hub) != c.Hub || strings.ContainsAny(c.Hub, " /@?#") {
		return bad("it names no hub")
	}
	if len(certs) != 2 || len(keys) != 1 {
		return bad("it needs two certificates and one private key")
	}
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[0]})
	if c.pair, err = tls.X509KeyPair(leaf, keys[0]); err != nil {
		return bad("its key is not the one of its certificate")
	}
	if c.ca, err = x509.ParseCertificate(certs[1]); err != nil || !c.ca.IsCA || c.pair.Leaf.CheckSignatureFrom(c.ca) != nil {
		return bad("its certificate is not from its CA")
	}
	c.Admin, c.Created, c.Expires = oneLine(c.pair.Leaf.Subject.CommonName), c.pair.Leaf.NotBefore, c.pair.Leaf.NotAfter
	c.text = bytes.Clone(b)
	return c, nil
}

// Secret is the context's text, private key included.
func (c Context) Secret() []byte { return c.text }

// String names the context without its secrets.
func (c Context) String() string { return c.Admin + " at " + c.Hub }

// GoString keeps %#v from the private key.
func (c Context) GoString() string { return "api.Context{" + c.String() + "}" }

// ExpiresSoon reports whether a person has to be warned at time t: in the last two
// weeks, and of a shorter life in its last quarter.
func (c Context) ExpiresSoon(t time.Time) bool {
	return t.After(c.Expires.Add(-min(14*24*time.Hour, c.Expires.Sub(c.Created)/4)))
}

// transport reaches the hub.
func (c Context) transport() http.RoundTripper {
	d := net.Dialer{Timeout: 10 * time.Second}
	return &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "tcp", c.Hub) },
		TLSClientConfig:     c.tls(),
		TLSHandshakeTimeout: 10 * time.Second, MaxIdleConns: 2, IdleConnTimeout: 30 * time.Second,
	}
}

// refusalPatience is how long a hub may take to say why it refuses an admin.
const refusalPatience = 2 * time.Second

// refusal asks the hub once more whether it refuses this admin, and why; nil: it does not say so. Nothing is
// asked on that connection: the words of a refusal are lost where a request crosses them.
func (c Context) refusal() error {
	nc, err := net.DialTimeout("tcp", c.Hub, refusalPatience)
	if err != nil {
		return nil
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(refusalPatience))
	_, err = tls.Client(nc, c.tls()).Read(make([]byte, 1))
	return c.explain(err)
}

// tls trusts the context's CA and nobody else.
func (c Context) tls() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(c.ca)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: HubName, Certificates: []tls.Certificate{c.pair}}
}

// explain turns an error of the transport into what a person can act on, or returns nil.
func (c Context) explain(err error) error {
	var verify *tls.CertificateVerificationError
	var op *net.OpError
	alert := ""
	if errors.As(err, &op) && op.Op == "remote error" {
		alert = op.Err.Error()
	}
	again := "have another made there with 'causeway admin create'"
	switch {
	case errors.As(err, &verify):
		return refused{fmt.Errorf("whoever answers at %s is not the hub that this context was made for; nothing was sent", c.Hub)}
	case alert == "tls: unknown certificate authority":
		return refused{fmt.Errorf("the hub at %s did not issue the certificate of this context; %s", c.Hub, again)}
	case alert == "tls: expired certificate":
		return refused{fmt.Errorf("the certificate of admin %s has expired; %s", c.Admin, again)}
	case alert == "tls: bad certificate":
		return refused{fmt.Errorf("the hub at %s refuses admin %s: the certificate was revoked; %s", c.Hub, c.Admin, again)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: does it run with --listen-admin, and does a firewall let you through?", ErrNoHub, c.Hub)
	case errors.As(err, new(tls.RecordHeaderError)):
		return fmt.Errorf("what answers at %s speaks no TLS: is it the hub's --listen-admin?", c.Hub)
	}
	return nil
}
