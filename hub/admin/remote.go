package admin

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"causeway/hub/conns"
)

// Limits of connections from elsewhere.
const (
	handshakeTimeout = 10 * time.Second
	lingerTimeout    = time.Second // so that a refused caller reads why
	maxUnknown       = 256         // connections whose caller is not known yet
	maxUnknownSource = 64
	maxPerAdmin      = 64
	// expiryTick is how soon a connection ends after its certificate expired; a
	// revocation is told at once.
	expiryTick = time.Second
)

var errNotAdmin = errors.New("the certificate is no admin's")

// ServeRemote answers on l, which it closes, until ctx ends: TLS 1.3 alone, and only
// whoever shows a certificate that this hub's CA issued and its state names. Nothing
// that others send is read as HTTP.
func (s *Server) ServeRemote(ctx context.Context, l net.Listener) error {
	cert, err := s.cfg.CA.serverCert(s.cfg.PublicHost)
	if err != nil {
		l.Close()
		return fmt.Errorf("serve admin api: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(s.cfg.CA.cert)
	inner, cancel := context.WithCancel(ctx)
	r := &remote{s: s, ctx: inner, l: conns.New(l, maxUnknown, maxUnknownSource), ready: make(chan net.Conn), open: map[*remoteConn]bool{},
		conf: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
			SessionTicketsDisabled: true, // each connection shows its certificate
			VerifyConnection: func(cs tls.ConnectionState) error {
				if s.certCaller(sha256.Sum256(cs.PeerCertificates[0].Raw)).Role == NoRole {
					return errNotAdmin
				}
				return nil
			},
		}}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(r.accept)
	wg.Go(r.watch)
	return s.serve(ctx, r)
}

// certCaller returns who has the certificate with that SHA-256, by the newest state.
func (s *Server) certCaller(sum [32]byte) Caller {
	a, ok := s.cfg.Store.State().AdminByCert(sum)
	if !ok || a.Hub != s.cfg.Number || a.State(time.Now()) != "active" {
		return Caller{}
	}
	for r, name := range roleNames {
		if name == a.Role {
			return Caller{"admin:" + a.Name, Role(r)}
		}
	}
	return Caller{}
}

// remote is a listener of connections whose callers are known.
type remote struct {
	s     *Server
	l     *conns.Listener
	conf  *tls.Config
	ctx   context.Context
	ready chan net.Conn

	mu   sync.Mutex
	open map[*remoteConn]bool
}

// remoteConn is a connection after its handshake.
type remoteConn struct {
	*tls.Conn
	r   *remote
	sum [32]byte // of the certificate
}

// Close closes the connection.
func (c *remoteConn) Close() error {
	c.r.mu.Lock()
	delete(c.r.open, c)
	c.r.mu.Unlock()
	return c.Conn.Close()
}

func (r *remote) accept() {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(r.ready)
	for {
		c, err := r.l.Accept()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || r.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			r.s.cfg.Log.Warn().Err(err).Msg("admin connection not accepted") // too many files, most likely
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-r.ctx.Done():
				return
			}
		}
		wg.Go(func() { r.handshake(c) })
	}
}

// handshake finds out who is there, and hands the connection on or closes it.
func (r *remote) handshake(nc net.Conn) {
	t := tls.Server(nc, r.conf)
	ctx, cancel := context.WithTimeout(r.ctx, handshakeTimeout)
	err := t.HandshakeContext(ctx)
	cancel()
	if err != nil {
		r.refuse(nc, err)
		return
	}
	c := &remoteConn{Conn: t, r: r, sum: sha256.Sum256(t.ConnectionState().PeerCertificates[0].Raw)}
	if !r.admit(c) {
		t.Close()
		return
	}
	nc.(*conns.Conn).Detach()
	select {
	case r.ready <- c:
	case <-r.ctx.Done():
		c.Close()
	}
}

// admit counts the connection of a known caller.
func (r *remote) admit(c *remoteConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for o := range r.open {
		if o.sum == c.sum {
			n++
		}
	}
	if n >= maxPerAdmin {
		return false
	}
	r.open[c] = true
	return true
}

// refuse ends a connection whose caller is unknown. What he sent meanwhile is read,
// or the system would drop the alert that tells him why.
func (r *remote) refuse(nc net.Conn, err error) {
	defer nc.Close()
	var bad *tls.CertificateVerificationError
	if errors.As(err, &bad) || errors.Is(err, errNotAdmin) {
		r.s.refusedRemote(nc.RemoteAddr().String(), err)
	}
	nc.SetDeadline(time.Now().Add(lingerTimeout))
	if w, ok := nc.(*conns.Conn).Conn.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
		return
	}
	b := make([]byte, 4096)
	for n := 0; n < 64<<10; {
		m, err := nc.Read(b)
		if err != nil {
			return
		}
		n += m
	}
}

// watch ends the connections of whoever is no admin any more.
func (r *remote) watch() {
	changed, stop := r.s.cfg.Store.Watch()
	defer stop()
	tick := time.NewTicker(expiryTick)
	defer tick.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
		var end []*remoteConn
		r.mu.Lock()
		for c := range r.open {
			if r.s.certCaller(c.sum).Role == NoRole {
				end = append(end, c)
			}
		}
		r.mu.Unlock()
		for _, c := range end {
			// Not the TLS connection: a writer that waits would keep it open.
			c.NetConn().Close()
			c.Close()
		}
	}
}

// Accept returns the next connection whose caller is known.
func (r *remote) Accept() (net.Conn, error) {
	c, ok := <-r.ready
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close closes the listener.
func (r *remote) Close() error { return r.l.Close() }

// Addr is the listener's address.
func (r *remote) Addr() net.Addr { return r.l.Addr() }
