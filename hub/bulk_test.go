package hub

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
	"causeway/tunnel/mux"
)

// dialBulk connects from h's overlay address to the hub's bulk port and sends what
// begins a connection there.
func (w *world) dialBulk(h *host, begin any) (net.Conn, error) {
	hub, err := h.hubs.Hubs[0].Number.Overlay(h.hubs.Overlay[0])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := w.tun.DialPort(ctx, h.answer.Overlay[0], netip.AddrPortFrom(hub, protocol.BulkPort))
	if err != nil {
		return nil, err
	}
	return c, protocol.WriteFrame(c, begin, 1<<20)
}

// serves has an agent answer its hub: on connections of their own, if it can those, with long, and
// on debug streams with short.
func (w *world) serves(a *agent, short, long http.Handler) {
	w.t.Helper()
	a.until("the hub has the session", func(protocol.Netmap) bool { return true })
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bulk = func(c protocol.Challenge) {
		if conn, err := w.dialBulk(a.h, c.ProveBulk(a.h.answer.Number, a.h.id)); err == nil {
			http.Serve(&once{c: conn}, long)
		}
	}
	go func() {
		for {
			st, err := a.m.Accept(context.Background())
			if err != nil {
				return
			}
			if h, err := mux.ReadHeader(st); err != nil || h.Kind != protocol.StreamDebug {
				st.Close()
				continue
			}
			go http.Serve(&once{c: st}, short)
		}
	}()
}

func says(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == protocol.DebugCapture {
			w.Header().Set("Content-Type", api.CaptureType)
		}
		io.WriteString(w, text)
	})
}

func bulkFeature(h *protocol.Hello) { h.Features = []string{protocol.FeatureBulk} }

// begin begins a request of the admin API.
func (w *world) begin(path string) *http.Response {
	w.t.Helper()
	resp, err := w.admin.Get("http://hub" + path)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (w *world) text(path string) string {
	w.t.Helper()
	resp := w.begin(path)
	b, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	return fmt.Sprint(resp.StatusCode, " ", string(b))
}

const capturePath = "/v1/diag/capture?on=one"

// What may be long takes a connection of its own, what says how an agent is does not, and an
// agent of the version before, or one that does not prove itself, is asked as before.
func TestBulkWays(t *testing.T) {
	t.Parallel()
	w := start(t, t.TempDir())
	w.site("a")
	one, before := joined(t, w, "one", api.TokenSpec{Site: "a"}), joinedBefore(t, w, "before")
	w.serves(w.dial(one, bulkFeature), says("stream"), says("bulk"))
	for path, want := range map[string]string{
		"debug/v1/health": "stream", "debug/v1/status": "stream", "debug/readyz": "stream",
		"debug/v1/logs": "bulk", "debug/v1/netmap": "bulk", "debug/debug/pprof/heap": "bulk", "debug/metrics": "bulk", "debug/v1/later": "bulk",
	} {
		require.Equal(t, "200 "+want, w.text("/v1/nodes/one/"+path), path)
	}
	require.Equal(t, "200 bulk", w.text(capturePath))
	a := w.dial(before, func(h *protocol.Hello) { oldWay(h); bulkFeature(h) })
	w.serves(a, says("stream"), nil)
	require.Equal(t, "200 stream", w.text("/v1/nodes/before/debug/v1/logs"))
	a.m.Close()
	<-a.ended
	w.serves(w.dial(before, nil), says("stream"), nil)
	require.Equal(t, "200 stream", w.text("/v1/nodes/before/debug/v1/logs"))
}

// A capture of 64 MiB that nobody reads is under way, and a change is in the node's netmap and
// acknowledged. Then all of it is there to be read.
func TestBulkNobodyReads(t *testing.T) {
	t.Parallel()
	w := start(t, t.TempDir())
	w.site("a")
	w.site("b")
	one, two := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "b"})
	a := w.dial(one, bulkFeature)
	w.dial(two, func(h *protocol.Hello) { h.Routes = prefixes("172.16.0.0/16") })
	const size = 64 << 20
	var written atomic.Int64
	w.serves(a, says("stream"), http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", api.CaptureType)
		for piece := make([]byte, 64<<10); written.Load() < size; {
			if _, err := rw.Write(piece); err != nil {
				return
			}
			written.Add(int64(len(piece)))
		}
	}))
	resp := w.begin(capturePath)
	require.Equal(t, 200, resp.StatusCode)
	require.Eventually(t, func() bool { return written.Load() > 64<<10 }, patience, 2*time.Millisecond)

	w.must("POST", "/v1/routes/decide", api.RouteDecision{Node: "two", Prefix: netip.MustParsePrefix("172.16.0.0/16"), Approve: true}, nil)
	n := a.until("the route", func(n protocol.Netmap) bool { return len(routesOf(n, "two")) == 1 })
	require.Eventually(t, func() bool {
		var x api.Node
		w.must("GET", "/v1/nodes/one", nil, &x)
		return x.Netmap == n.NetmapVersion
	}, patience, 2*time.Millisecond, "acknowledged")
	require.Less(t, written.Load(), int64(size), "somebody read it, or it is all in memory")

	got, err := io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.Equal(t, int64(size), got)
}

// Whoever is at a node's address gets nothing of the bulk port, whatever he says there, and keeps
// nobody from it: each challenge is good for its node, by that node's key, and once.
func TestBulkStrangers(t *testing.T) {
	t.Parallel()
	w := start(t, t.TempDir())
	w.site("a")
	one, two := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"})
	a := w.dial(one, bulkFeature)
	w.dial(two, bulkFeature)
	w.serves(a, says("stream"), nil)
	refused := func(what string, h *host, begin any) {
		c, err := w.dialBulk(h, begin)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		if err == nil {
			t.Errorf("%s: got something", what)
		}
		if c != nil {
			c.Close()
		}
	}
	first := make(chan protocol.BulkProof, 1)
	a.mu.Lock()
	a.bulk = func(c protocol.Challenge) {
		right := c.ProveBulk(2, one.id)
		other := c
		other.Nonce = bytes.Repeat([]byte{7}, protocol.ChallengeNonce)
		refused("no proof", one, struct{}{})
		refused("a text", one, "GET / HTTP/1.1")
		refused("a long frame", one, bytes.Repeat([]byte{'x'}, protocol.MaxProof))
		refused("an unknown nonce", one, other.ProveBulk(2, one.id))
		refused("another's key", one, c.ProveBulk(2, two.id))
		refused("another node", two, c.ProveBulk(3, two.id))
		refused("at another node", two, right)
		refused("a proof of a session", one, protocol.BulkProof{Nonce: c.Nonce, Signature: c.Prove(2, nil, one.id).Signature})
		if conn, err := w.dialBulk(one, right); err == nil {
			first <- right
			http.Serve(&once{c: conn}, says("bulk"))
		}
	}
	a.mu.Unlock()
	require.Equal(t, "200 bulk", w.text("/v1/nodes/one/debug/v1/logs"))
	used := <-first
	refused("again", one, used)
}

// A node has so many long answers at once and no more; one that ends makes room. They end with the
// session in which they were asked for.
func TestBulkBounds(t *testing.T) {
	t.Parallel()
	w := start(t, t.TempDir())
	w.site("a")
	a := w.dial(joined(t, w, "one", api.TokenSpec{Site: "a"}), bulkFeature)
	ended := make(chan struct{}, 64)
	w.serves(a, says("stream"), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "a line\n")
		http.NewResponseController(rw).Flush()
		<-r.Context().Done()
		ended <- struct{}{}
	}))
	const path, most = "/v1/nodes/one/debug/v1/logs", 8
	var open []*http.Response
	for range most {
		open = append(open, w.begin(path))
		require.Equal(t, 200, open[len(open)-1].StatusCode)
	}
	code, detail := w.call("GET", path, nil, nil)
	require.Equal(t, 429, code, detail)
	require.Equal(t, "node one: 8 long answers of this node are under way, no more at once; try again when one has ended", detail)
	require.Equal(t, "200 stream", w.text("/v1/nodes/one/debug/v1/health"))
	open[0].Body.Close()
	<-ended
	require.Eventually(t, func() bool {
		open[0] = w.begin(path)
		return open[0].StatusCode == 200
	}, patience, 2*time.Millisecond, "room")
	a.m.Close()
	for range most {
		<-ended
	}
}
