package main

import (
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// Closed ranges are one line, however many there are.
func TestStatusClosed(t *testing.T) {
	var l []agentdebug.HeldRange
	for i := range 7 {
		l = append(l, agentdebug.HeldRange{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16), Since: time.Unix(0, 0).UTC()})
	}
	for n, want := range map[int]string{
		0: "",
		1: "closed    10.0.0.0/16 since 1970-01-01T00:00:00Z, as no peer has it any more; 'causeway-agent release 10.0.0.0/16' lets it go to the host's own routes\n",
		2: "closed    2 ranges, as no peer has them any more; 'causeway-agent release RANGE' lets one go to the host's own routes: 10.0.0.0/16 since 1970-01-01T00:00:00Z, 10.1.0.0/16 since 1970-01-01T00:00:00Z\n",
	} {
		var b strings.Builder
		writeClosed(&b, l[:n])
		require.Equal(t, want, b.String())
	}
	var b strings.Builder
	writeClosed(&b, l)
	require.Equal(t, 1, strings.Count(b.String(), "\n"))
	require.Contains(t, b.String(), "10.4.0.0/16 since 1970-01-01T00:00:00Z, and 2 more (-o json)\n")
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
