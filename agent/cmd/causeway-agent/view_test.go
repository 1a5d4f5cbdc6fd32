package main

import (
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	agentdebug "causeway/agent/debug"
	"causeway/protocol"

	"github.com/stretchr/testify/require"
)

// What the engine dropped is one line, and none while it is nothing.
func TestStatusDrops(t *testing.T) {
	var b strings.Builder
	writeStatus(&b, agentdebug.Status{Drops: protocol.Drops{protocol.DropSpoofed: 3, protocol.DropRejected: 0, "\x1b[2J": 7}})
	require.Contains(t, b.String(), "\ndropped   3 from an address that the peer may not send from (spoofed)\n")
	require.NotContains(t, b.String(), "rejected")
	require.NotContains(t, b.String(), "\x1b")
	b.Reset()
	writeStatus(&b, agentdebug.Status{Drops: protocol.Drops{protocol.DropSpoofed: 0}})
	require.NotContains(t, b.String(), "dropped")
}

// An agent that was taken over answers root's commands with what would move a terminal's cursor,
// or write in its title.
func TestHostileAgentOnTerminal(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/status", "/v1/health":
			w.Write([]byte(`{"name":"n\u001b[2J\u009b1m","conditions":[{"name":"hub","cause":"\u001b]0;x\u0007lost"}]}`))
		case "/v1/hubs":
			w.Write([]byte(`{"hubs":[{"number":1,"udp":["\u001b[2Jh:1"]}]}`))
		default:
			w.WriteHeader(http.StatusTeapot)
			w.Write([]byte(`{"error":"\u001b[2Jno"}`))
		}
	})}
	go srv.Serve(l)
	defer srv.Close()
	for _, args := range [][]string{{"status"}, {"health"}, {"hubs", "show"}, {"paths"}, {"repair"}} {
		root := newRoot()
		var out strings.Builder
		root.SetOut(&out)
		root.SetArgs(append(args, "--debug-socket", socket))
		var said string
		if err := root.Execute(); err != nil {
			said = protocol.Folded(err.Error())
		} else {
			said = out.String()
		}
		require.NotEmpty(t, said, args)
		require.NotContains(t, said, "\x1b", args)
		require.NotContains(t, said, "\u009b", args)
		require.NotContains(t, said, "\a", args)
	}
}
