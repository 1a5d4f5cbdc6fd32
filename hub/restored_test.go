package hub

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/join"
	"causeway/protocol"
)

// backup returns a backup of the hub and its cluster key's file.
func (w *world) backup() (archive []byte, key string) {
	w.t.Helper()
	res, err := w.admin.Get("http://hub/v1/backup")
	require.NoError(w.t, err)
	defer res.Body.Close()
	require.Equal(w.t, http.StatusOK, res.StatusCode)
	archive, err = io.ReadAll(res.Body)
	require.NoError(w.t, err)
	b, err := os.ReadFile(filepath.Join(w.dir, "data", join.ClusterKeyFile))
	require.NoError(w.t, err)
	return archive, string(b)
}

// gone are the numbers that an agent was told are gone.
func (a *agent) gone() []protocol.SignedGoneList {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.netmap == nil || a.netmap.Gone == nil {
		return nil
	}
	return []protocol.SignedGoneList{*a.netmap.Gone}
}

// A hub is restored from a backup that is older than a revocation, and than a
// join. The revoked node is there first, and gets nothing; with the first agent that
// knew better it is revoked again, whatever other lists agents show. The newer node
// is named.
func TestRevokedStaysRevokedAfterRestore(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	one, two, three := joined(t, w, "one", api.TokenSpec{Site: "a"}), joined(t, w, "two", api.TokenSpec{Site: "a"}), joined(t, w, "three", api.TokenSpec{Site: "a"})
	left := joined(t, w, "left", api.TokenSpec{Site: "a"})
	a := w.dial(one, nil)
	for _, h := range []*host{two, three, left} {
		w.dial(h, nil)
	}
	a.until("all", func(n protocol.Netmap) bool { return len(n.Peers) == 3 })
	require.Empty(t, a.gone())
	archive, key := w.backup()
	w.must("DELETE", "/v1/nodes/two", nil, nil)
	w.must("DELETE", "/v1/nodes/left", nil, nil)
	later := joined(t, w, "later", api.TokenSpec{Site: "a"})
	w.dial(later, nil)
	n := a.until("two gone, later there", func(n protocol.Netmap) bool { return len(n.Peers) == 2 && n.Gone != nil })
	require.Len(t, n.Peers, 2)
	gone := a.gone()
	cluster, err := protocol.ParseClusterPrivateKey(strings.TrimSpace(key))
	require.NoError(t, err)
	l, err := gone[0].Open(cluster.Public().Pin())
	require.NoError(t, err)
	require.Equal(t, []protocol.NodeNumber{two.answer.Number, left.answer.Number}, l)
	w.stop()

	to := t.TempDir()
	_, err = Restore(context.Background(), filepath.Join(to, "data"), bytes.NewReader(archive), key, 1000, []string{"nobody"})
	require.ErrorContains(t, err, "no node")
	_, err = Restore(context.Background(), filepath.Join(to, "data"), bytes.NewReader(archive), key, 1000, []string{"left"})
	require.NoError(t, err)
	w = start(t, to)
	state := func(name string) string {
		var node api.Node
		w.must("GET", "/v1/nodes/"+name, nil, &node)
		return node.State
	}
	require.Equal(t, api.NodeRevoked, state("left"), "named with the restore")

	b := w.dial(two, nil)
	other, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	c := w.dial(three, func(h *protocol.Hello) { // was away since before the backup, and shows what somebody made up
		h.Gone = []protocol.SignedGoneList{protocol.SignGone([]protocol.NodeNumber{one.answer.Number}, other), {}}
	})
	time.Sleep(500 * time.Millisecond) // what does not come has no condition; a netmap would be there within 100 ms
	for _, x := range []*agent{b, c} {
		x.mu.Lock()
		require.Nil(t, x.netmap, "nothing before all are back")
		x.mu.Unlock()
	}
	a = w.dial(one, func(h *protocol.Hello) { h.Gone = gone })
	require.Eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.errs) > 0 && b.errs[0].Code == protocol.ErrorRevoked && b.netmap == nil
	}, patience, 5*time.Millisecond, "two hears that it was revoked")
	require.Equal(t, api.NodeRevoked, state("two"))
	for _, x := range []*agent{a, c} {
		x.until("a netmap of the new epoch without two", func(n protocol.Netmap) bool { return n.Epoch == 2 && len(n.Peers) == 1 })
	}
	require.Equal(t, gone, a.gone())
	var log []api.AuditEntry
	w.must("GET", "/v1/audit?limit=10", nil, &log)
	text := ""
	for _, e := range log {
		text += e.Why + "\n"
		for _, c := range e.Changes {
			text += c + "\n"
		}
	}
	require.Contains(t, text, "by a signed list that node one holds")
	require.Contains(t, text, "takes effect: 2 of 2 nodes have come back")

	a.send(protocol.KindNetmapAck, protocol.NetmapAck{NetmapVersion: protocol.NetmapVersion{Epoch: 2}, Lost: []protocol.LostPeer{
		{Number: later.answer.Number, Name: "later\x1b[2J", Site: "a"}, {Number: three.answer.Number, Name: "three", Site: "a"}}})
	var st api.Status
	require.Eventually(t, func() bool {
		w.must("GET", "/v1/status", nil, &st)
		return len(st.Unknown) > 0
	}, patience, 5*time.Millisecond)
	require.Equal(t, []api.UnknownNode{{Name: "later [2J", Site: "a", Number: later.answer.Number, ReportedBy: "one"}}, st.Unknown)
	var events []api.Event
	w.must("GET", "/v1/events?limit=100", nil, &events)
	found := false
	for _, e := range events {
		found = found || e.Kind == "node_unknown" && e.Node == "one"
	}
	require.True(t, found, events)

	w.stop() // in effect for good: a later start waits for nobody
	w = start(t, to)
	w.dial(one, nil).until("at once", func(n protocol.Netmap) bool { return n.Epoch == 2 && len(n.Peers) == 1 })
}
