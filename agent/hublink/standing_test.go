package hublink

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// A node that a hub gives no session says why, as far as the hub's word goes, and what helps.
func TestWhyNoSession(t *testing.T) {
	mark := func(epoch, seq uint64) *protocol.StateMark { return &protocol.StateMark{Epoch: epoch, Sequence: seq} }
	own, other := protocol.WireGuardPublicKey{1}, protocol.WireGuardPublicKey{2}
	q := ListQuestion{Mark: mark(1, 10), Node: protocol.NodeAsk{Number: 5, WireGuardKey: own, Epoch: 2}}
	for name, c := range map[string]struct {
		s    *protocol.Standing
		hubs *protocol.StateMark
		want []string // all of them; none: nothing is said
	}{
		"an older hub":              {},
		"all is well":               {s: &protocol.Standing{Number: 5, Name: "sh", WireGuardKey: own, KeyEpoch: 2}, hubs: mark(1, 12)},
		"a newer key, not told yet": {s: &protocol.Standing{Number: 5, Name: "sh", WireGuardKey: other, KeyEpoch: 1}, hubs: mark(1, 12)},
		"set back":                  {s: &protocol.Standing{Number: 5, Name: "sh", WireGuardKey: other, KeyEpoch: 4}, hubs: mark(1, 12), want: []string{"of epoch 4", "that of epoch 2", "set back", "--site a --replace sh'", "join --replace TOKEN --name sh"}},
		"left":                      {s: &protocol.Standing{Number: 5, Name: "sh", Gone: protocol.StandingLeft}, want: []string{"(number 5) left the cluster:", "--site a'", "join --replace TOKEN --name sh"}},
		"its name is taken":         {s: &protocol.Standing{Number: 5, Name: "sh", Gone: protocol.StandingRevoked, Taken: true}, want: []string{"was revoked, and another node has its name", "--replace sh'"}},
		"the hub was set back":      {s: &protocol.Standing{Number: 5, Name: "sh", WireGuardKey: other, KeyEpoch: 1}, hubs: mark(1, 8), want: []string{"the hub's state was set back", "transaction 8", "transaction 10", "'causeway doctor'"}},
		"restored, the older key":   {s: &protocol.Standing{Number: 5, Name: "sh", WireGuardKey: other, KeyEpoch: 1}, hubs: mark(2, 8), want: []string{"restored from an earlier time, from before this node's key of epoch 2", "--replace sh'"}},
		"restored, unknown":         {hubs: mark(2, 8), want: []string{"restored from an earlier time", "it has to join again", "--site a'"}},
	} {
		text := noSession("a", "sh", q, c.s, c.hubs)
		require.Equal(t, len(c.want) > 0, text != "", "%s: %s", name, text)
		require.NotContains(t, text, "\n")
		for _, w := range c.want {
			require.Contains(t, text, w, name)
		}
	}
}

// What the cluster key did not sign for this question is no word of the hub's; a node that is
// gone reaches no peer.
func TestStandingHeard(t *testing.T) {
	w := newWorld(t, time.Now)
	var standing func(q ListQuestion) *protocol.Standing
	w.fetch = func(_ context.Context, _ string, q ListQuestion) (protocol.HubListAnswer, error) {
		return protocol.HubListAnswer{SignedHubList: w.signed, Fresh: w.signed.Fresh(w.cluster, w.list.Serial, q.Nonce, time.Now()), Standing: standing(q)}, nil
	}
	a := w.Link
	q := a.nodeAsk(protocol.ListNonce{1})
	id := a.own.Now()
	require.True(t, q.SignedBy(protocol.ListNonce{1}, id.IdentityKey.Public()))
	require.Equal(t, id.WireGuardKey.Public(), q.WireGuardKey)
	left := protocol.Standing{Number: id.Number, Name: id.Name, Gone: protocol.StandingLeft}
	for name, f := range map[string]func(q ListQuestion) *protocol.Standing{
		"another question": func(q ListQuestion) *protocol.Standing { s := left.Sign(protocol.ListNonce{9}, w.cluster); return &s },
		"another cluster": func(q ListQuestion) *protocol.Standing {
			k, err := protocol.NewClusterPrivateKey()
			require.NoError(t, err)
			s := left.Sign(q.Nonce, k)
			return &s
		},
		"another node": func(q ListQuestion) *protocol.Standing {
			o := left
			o.Number++
			s := o.Sign(q.Nonce, w.cluster)
			return &s
		},
	} {
		standing = f
		require.NoError(t, a.fetchListAt(t.Context(), "192.0.2.1:443"), name)
		require.Empty(t, a.hubsWord(), name)
	}
	standing = func(q ListQuestion) *protocol.Standing { s := left.Sign(q.Nonce, w.cluster); return &s }
	require.NoError(t, a.fetchListAt(t.Context(), "192.0.2.1:443"))
	require.True(t, strings.Contains(a.hubsWord(), "left the cluster"), a.hubsWord())
}
