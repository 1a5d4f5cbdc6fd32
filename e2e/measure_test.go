package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// soak reports whether everything is to be run, however long it takes: 'make
// soak' sets this. Otherwise one case stands for each mechanism.
func soak() bool { return os.Getenv("CAUSEWAY_SOAK") != "" }

// some are the cases of a matrix to run: all of them in a soak.
func some[T any](all []T, light func(T) bool) []T {
	var out []T
	for _, c := range all {
		if soak() || light(c) {
			out = append(out, c)
		}
	}
	return out
}

// measured prints a figure, for internal/testrun to gather over many runs,
// and holds it to its limit. Both are in seconds.
func measured(t *testing.T, what string, seconds, limit float64) {
	t.Helper()
	t.Logf("measured %s %.3f s", strings.ReplaceAll(what, " ", "-"), seconds)
	require.LessOrEqual(t, seconds, limit, what)
}

// ask reads one of an agent's endpoints without a process in between.
func (n *Node) ask(ctx context.Context, path string, v any) error {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.Socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return err
	}
	r, err := c.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	return json.NewDecoder(r.Body).Decode(v)
}

// pathTo is how n reaches another node now.
func (n *Node) pathTo(ctx context.Context, name string) (protocol.PathStatus, error) {
	var l []protocol.PathStatus
	if err := n.ask(ctx, "/v1/paths", &l); err != nil {
		return protocol.PathStatus{}, err
	}
	for _, p := range l {
		if p.Name == name {
			return p, nil
		}
	}
	return protocol.PathStatus{}, fmt.Errorf("%s knows no path to %s", n.Name, name)
}

// waitPath waits until a node reaches another by a kind of path.
func waitPath(t *testing.T, d time.Duration, from, to *Node, kind protocol.PathKind) {
	t.Helper()
	require.NoError(t, lab.Wait(within(t, d), fmt.Sprintf("a %s path from %s to %s", kind, from.Name, to.Name), func(ctx context.Context) error {
		p, err := from.pathTo(ctx, to.Name)
		if err == nil && p.Path != kind {
			err = fmt.Errorf("it is %s by %s", p.Path, p.Addr)
		}
		return err
	}))
}

// waitPaths is waitPath both ways.
func waitPaths(t *testing.T, d time.Duration, a, b *Node, kind protocol.PathKind) {
	t.Helper()
	waitPath(t, d, a, b, kind)
	waitPath(t, d, b, a, kind)
}

// pathLog follows a node's path to another one.
type pathLog struct {
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	seen []string
}

// watchPath begins to note every change of path, as often as 20 times a second.
func watchPath(t *testing.T, n *Node, to string) *pathLog {
	ctx, stop := context.WithCancel(context.Background())
	l := &pathLog{stop: stop, done: make(chan struct{})}
	t.Cleanup(func() { l.end() })
	start := time.Now()
	go func() {
		defer close(l.done)
		var last protocol.PathStatus
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			if p, err := n.pathTo(ctx, to); err == nil && (p.Path != last.Path || p.Addr != last.Addr || !p.Since.Equal(last.Since)) {
				last = p
				l.mu.Lock()
				l.seen = append(l.seen, fmt.Sprintf("%.1f s %s %s", time.Since(start).Seconds(), p.Path, p.Addr))
				l.mu.Unlock()
			}
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	}()
	return l
}

// end stops watching and returns the changes: the first line is how it was.
func (l *pathLog) end() []string {
	l.stop()
	<-l.done
	return l.seen
}

// traffic is what runs between two pods while paths change: a connection whose
// gaps are measured, and a bulk transfer that must arrive whole.
type traffic struct {
	hold *Held
	bulk *lab.Process
}

// startTraffic begins both, after the first ping; the server runs already.
func startTraffic(t *testing.T, s *System, a, b *Pod) *traffic {
	t.Helper()
	require.NoError(t, Ping(step(t), a.Host, b.V4))
	hold, err := s.Hold(step(t), a.Host, b.V4)
	require.NoError(t, err)
	p, err := a.Start(lab.Program{Name: "bulk", Args: []string{s.Bin.Labtool, "bulk", b.V6, "-pace", "4000000"}})
	require.NoError(t, err)
	require.NoError(t, p.WaitOutput(step(t), "connected"))
	return &traffic{hold, p}
}

// end ends both. It returns the longest gap of the connection.
func (f *traffic) end(t *testing.T) (gap float64) {
	t.Helper()
	_, gap, err := f.hold.End(step(t))
	require.NoError(t, err)
	require.NoError(t, f.bulk.Stop(step(t)), "the transfer: %s", f.bulk.Output())
	out := strings.TrimSpace(f.bulk.Output())
	t.Logf("bulk: %s", out[strings.LastIndexByte(out, '\n')+1:])
	return gap
}
