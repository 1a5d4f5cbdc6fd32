package relay_test

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
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/relay"
	"causeway/tunnel/underlay"
	"causeway/tunnel/underlay/stream"
)

// serveStreams is the hub's HTTPS server; the address stays over a restart.
func (h *hub) serveStreams(addr string) (at string, stop func()) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(h.t, err)
	x := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, x, x, key.Public(), key)
	require.NoError(h.t, err)
	l, err := net.Listen("tcp", addr)
	require.NoError(h.t, err)
	mux := http.NewServeMux()
	mux.Handle("GET "+protocol.PathStreams, h.StreamHandler())
	s := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		ErrorLog: stdlog.New(io.Discard, "", 0)}
	return l.Addr().String(), run(h.t, func(ctx context.Context) error {
		go func() {
			<-ctx.Done()
			s.Close()
		}()
		if err := s.ServeTLS(stream.Listener(l), "", ""); err != http.ErrServerClosed {
			return err
		}
		return nil
	}, closed)
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// onStream makes a node that reaches the hub over a stream alone.
func onStream(h *hub, n protocol.NodeNumber, https string) *node {
	x := &node{host: host{t: h.t, key: newKey(h.t)}, number: n, hub: h, https: []string{https}}
	h.nodes = append(h.nodes, relay.Node{Number: n, Key: x.key.Public()})
	require.NoError(h.t, h.SetNodes(h.nodes))
	x.start(nil)
	return x
}

func TestStreams(t *testing.T) {
	h := newHub(t)
	https, _ := h.serveStreams("127.0.0.1:0")
	a, b, c := onStream(h, 2, https), onStream(h, 3, https), newNode(t, h, 4)
	all := []*node{a, b, c}
	for _, x := range all {
		for _, y := range all {
			if x != y {
				x.meet(y, false)
			}
		}
	}
	for _, x := range all {
		x.bound()
	}
	eventually(t, "UDP is found to be blocked", a.UDPBlocked)
	require.False(t, c.UDPBlocked())
	for i, p := range [][2]*node{{a, b}, {b, a}, {a, c}, {c, a}} {
		for j, size := range []int{64, 700, 1452} {
			msg := transport(byte(16*i+j), 40, size)
			for o := 0; o < len(msg); o += 20 * size { // a datagram socket's buffer has a bound
				part := msg[o:min(o+20*size, len(msg))]
				// What the path carries has to be found first.
				eventually(t, "the path carries it", func() bool { return p[0].Send(p[1].number, bytes.Clone(part), size) == nil })
				eventually(t, "run through the relay", func() bool { return p[1].dev.has(p[0].number, part) })
			}
		}
	}
	require.Equal(t, protocol.PathStream, a.path(b.number))
	require.Equal(t, protocol.PathStream, a.path(c.number))
	require.Equal(t, protocol.PathRelay, c.path(a.number))
	for _, p := range a.Paths() {
		require.Equal(t, https, p.Addr.String(), "shown as what a person can look for")
	}
	require.True(t, protocol.IsStream(h.Bound(a.number)[0]))

	msg := transport(1, 8, 200)
	require.NoError(t, a.Send(hubNumber, bytes.Clone(msg), 200))
	eventually(t, "run for the hub", func() bool { return h.dev.has(a.number, msg) })
	require.NoError(t, h.Send(a.number, bytes.Clone(msg), 200))
	eventually(t, "run from the hub", func() bool { return a.dev.has(hubNumber, msg) })

	before := h.Stats().Dropped[relay.DropAddressee]
	require.NoError(t, b.SetPeers(append(b.peers, underlay.Peer{Number: 99, Key: newKey(t).Public()})))
	b.Send(99, transport(1, 1, 64), 64)
	eventually(t, "an unknown addressee is counted", func() bool { return h.Stats().Dropped[relay.DropAddressee] > before })

	// A node that is removed loses its stream at once.
	h.nodes = slices.DeleteFunc(h.nodes, func(n relay.Node) bool { return n.Number == a.number })
	require.NoError(t, h.SetNodes(h.nodes))
	require.Empty(t, h.Bound(a.number))
	eventually(t, "a's stream is gone", func() bool { return !a.HubBound(hubNumber) })
	require.True(t, b.HubBound(hubNumber))
}

// The hub's HTTPS port goes away and comes back.
func TestStreamIsDialledAgain(t *testing.T) {
	h := newHub(t)
	https, stop := h.serveStreams("127.0.0.1:0")
	a := onStream(h, 2, https)
	a.bound()
	h.stop()
	stop()
	eventually(t, "the agent knows", func() bool { return !a.HubBound(hubNumber) })
	h.start(nil)
	start := time.Now()
	h.serveStreams(https)
	a.bound()
	require.Less(t, time.Since(start), 3*time.Second)
	eventually(t, "its restart is told", func() bool { return slices.Contains(a.dev.restartedBy(), hubNumber) })
}
