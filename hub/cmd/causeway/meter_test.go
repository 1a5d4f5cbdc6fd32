package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

func TestMeterMakesRatesOfReports(t *testing.T) {
	var m meter
	at := time.Unix(1000, 0)
	read := func(after time.Duration, rx, tx uint64) []api.Node {
		nodes := []api.Node{
			{Name: "a", Site: "x", Number: 2, State: api.NodeReady, Paths: []protocol.PathStatus{
				{Peer: 1, Name: "hub", Path: protocol.PathDirect, RxBytes: rx * 100},
				{Peer: 3, Name: "b", Path: protocol.PathRelay, RxBytes: rx, TxBytes: tx, RTT: 7 * time.Millisecond, Loss: 0.02}}},
			{Name: "b", Site: "y", Number: 3, State: api.NodeReady},
		}
		m.feed(at.Add(after), nodes)
		return nodes
	}
	nodes := read(0, 1000, 0)
	require.False(t, m.nodeLoads(nodes)[0].rated, "one reading is no rate")
	read(2*time.Second, 1000, 0) // no report between
	nodes = read(5*time.Second, 11000, 5000)
	l := m.nodeLoads(nodes)
	require.Equal(t, "a", l[0].from)
	require.Equal(t, []float64{2000, 1000}, []float64{l[0].rx, l[0].tx}, "of the time between two reports, without the hub's path")
	s := m.siteLoads(nodes)
	require.Len(t, s, 1)
	require.Equal(t, []string{"x", "y"}, []string{s[0].from, s[0].to})
	require.Equal(t, map[protocol.PathKind]int{protocol.PathRelay: 1}, s[0].paths)
	nodes = read(5*time.Second+staleRate+time.Second, 11000, 5000)
	require.Zero(t, m.nodeLoads(nodes)[0].rx, "nothing passes any more")
	nodes = read(40*time.Second, 10, 10)
	require.False(t, m.nodeLoads(nodes)[0].rated, "its agent started again")
}

// The screen fits whatever terminal it is on, with many nodes and none.
func TestTopFitsTheScreen(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {200, 60}, {40, 10}, {80, 8}} {
		for _, n := range []int{0, 1, 300} {
			m := &topModel{}
			m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
			var nodes []api.Node
			for i := range n {
				nodes = append(nodes, api.Node{Name: strings.Repeat("n", 1+i%63), Site: "site", Number: protocol.NodeNumber(i + 2), State: api.NodeReady})
			}
			m.Update(sample{at: time.Now(), nodes: nodes})
			for range 400 {
				m.Update(tea.KeyPressMsg{Code: tea.KeyDown})
			}
			lines := strings.Split(m.screen(), "\n")
			require.LessOrEqual(t, len(lines), size[1])
			for _, l := range lines {
				require.LessOrEqual(t, text.StringWidthWithoutEscSequences(l), size[0])
			}
			require.Contains(t, lines[len(lines)-1], "q ends")
		}
	}
}

// The program itself, without a terminal: it draws what the hub says on 80 × 24, and
// q ends it.
func TestTopDrawsAndQuits(t *testing.T) {
	hub := newTestWorld(t).Client
	keys, press := io.Pipe()
	var out screenBuffer
	done := make(chan error, 1)
	go func() {
		done <- runTop(t.Context(), hub, time.Second, false, tea.WithInput(keys), tea.WithOutput(&out), tea.WithWindowSize(80, 24), tea.WithEnvironment([]string{"TERM=xterm"}))
	}()
	require.Eventually(t, func() bool {
		return strings.Contains(out.String(), "eu-1") && strings.Contains(out.String(), "43.00 ms")
	}, 10*time.Second, 10*time.Millisecond)
	_, err := press.Write([]byte("q"))
	require.NoError(t, err)
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("q does not end it")
	}
	require.Contains(t, out.String(), "\x1b[?1049l", "the terminal is as it was")

	// So does the end of its context.
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- runTop(ctx, hub, time.Second, false, tea.WithInput(keys), tea.WithOutput(io.Discard), tea.WithWindowSize(80, 24))
	}()
	cancel()
	require.NoError(t, <-done)
}

// screenBuffer is a bytes.Buffer for two goroutines.
type screenBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screenBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screenBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// FuzzManifest: files are hostile; whatever they hold, an error or documents come back.
func FuzzManifest(f *testing.F) {
	f.Add([]byte("kind: site\nname: a\nranges: [10.0.0.0/8]\nmax_age: 72h\n---\nkind: node\nname: b\nlabels: {a: b}\ndrained: true\n"))
	f.Add([]byte("kind: route\nnode: a\nprefix: 10.0.0.0/8\nstate: approved\n"))
	f.Add([]byte("kind: site\nname: !!binary [\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, err := parseManifests("f", b)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		for _, m := range ms {
			require.True(t, json.Valid(m.Document))
			require.NotEmpty(t, m.what)
		}
	})
}
