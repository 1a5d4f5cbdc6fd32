package stream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	stdlog "log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hub is a real HTTPS server with streams, as a hub has it.
type hub struct {
	*Server
	addr  string
	conns chan *Conn

	mu     sync.Mutex
	counts map[string]int
	got    bytes.Buffer
	handle func(c *Conn, m []sock.Message) // instead of keeping what comes
	ends   chan error
}

func (h *hub) count(reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[reason]++
}

func (h *hub) counted(reason string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[reason]
}

func newHub(t testing.TB) *hub {
	h := &hub{conns: make(chan *Conn, 64), counts: map[string]int{}, ends: make(chan error, 64)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	h.Server = NewServer(func(c *Conn) {
		running.Add(1)
		defer running.Done()
		h.conns <- c
		h.ends <- c.Run(ctx, func(m []sock.Message) {
			if h.handle != nil {
				h.handle(c, m)
				return
			}
			c.SetBound()
			h.mu.Lock()
			defer h.mu.Unlock()
			for _, x := range m {
				h.got.Write(x.Data)
			}
		})
	}, h.count)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	h.addr = l.Addr().String()
	mux := http.NewServeMux()
	mux.Handle("GET "+protocol.PathStreams, h)
	hs := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate(t)}, DynamicRecordSizingDisabled: true},
		ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, ErrorLog: stdlog.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		hs.ServeTLS(Listener(l), "", "")
	}()
	t.Cleanup(func() {
		cancel()
		hs.Close()
		<-done
		running.Wait()
	})
	return h
}

func certificate(t testing.TB) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	x := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"hub"}}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// agent is the other end of a stream.
type agent struct {
	*Conn
	ended chan error

	mu  sync.Mutex
	got bytes.Buffer
}

func dial(t testing.TB, h *hub, d Dialer) (*agent, *Conn) {
	t.Helper()
	c, err := d.Dial(t.Context(), h.addr, protocol.StreamAddr(1))
	require.NoError(t, err)
	a := &agent{Conn: c, ended: make(chan error, 1)}
	c.SetBound()
	go func() {
		a.ended <- c.Run(context.Background(), func(m []sock.Message) {
			a.mu.Lock()
			defer a.mu.Unlock()
			for _, x := range m {
				a.got.Write(x.Data)
			}
		})
	}()
	t.Cleanup(func() {
		c.Close(ErrClosed)
		select {
		case <-a.ended:
		case <-time.After(5 * time.Second):
			t.Error("the stream did not end")
		}
	})
	select {
	case s := <-h.conns:
		return a, s
	case <-time.After(5 * time.Second):
		t.Fatal("no stream at the hub")
		return nil, nil
	}
}

func (a *agent) received() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.got.Len()
}

func (h *hub) received() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.got.Len()
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, 10*time.Second, 2*time.Millisecond, what)
}

// transport makes n bytes that look like transport messages to a peer.
func transport(n, segment int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	for o := 0; o < n; o += segment {
		copy(b[o:], []byte{byte(protocol.MessageTransport), 0, 0, 9})
	}
	return b
}
