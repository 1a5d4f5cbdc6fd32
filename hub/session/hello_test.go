package session

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// helloWorld is a server over a real state log, with nodes that joined.
type helloWorld struct {
	t      *testing.T
	server *Server
	fleet  *fleet.Table
	store  *state.Store
	ids    []protocol.IdentityPrivateKey
}

func newHelloWorld(t *testing.T, nodes int) *helloWorld {
	st := statetest.Open(t)
	w := &helloWorld{t: t, store: st}
	_, err := st.Update(t.Context(), "hub", "start", func(d *state.Draft) error {
		err := d.Add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}})
		if err == nil {
			err = d.Add(state.SiteCreated{Name: "a"})
		}
		w.ids = w.ids[:0]
		for i := byte(1); err == nil && i <= byte(nodes); i++ {
			id, secret := protocol.TokenID{i}, protocol.TokenSecret{i, 7}
			hash := secret.Hash()
			if err = d.Add(state.TokenCreated{ID: id, Hash: hash[:], Site: "a", Expires: d.Now.Add(time.Hour)}); err != nil {
				break
			}
			key, kerr := protocol.NewIdentityPrivateKey()
			require.NoError(t, kerr)
			w.ids = append(w.ids, key)
			err = state.Redeem(d, state.RedeemRequest{Token: id, Secret: secret, Name: fmt.Sprintf("n%d", i), WireGuardKey: protocol.WireGuardPublicKey{i, 1}, IdentityKey: key.Public()})
		}
		return err
	})
	require.NoError(t, err)
	w.fleet = fleet.New(fleet.Config{Number: 1, State: st.State, Proven: func(protocol.NodeNumber) time.Time { return time.Time{} }, Events: &event.Log{}, Log: zerolog.Nop()})
	w.server = New(Config{Number: 1, Store: st, Fleet: w.fleet, Events: &event.Log{}, Log: zerolog.Nop()})
	return w
}

// hello is of the node at index i of those that joined.
func (w *helloWorld) hello(i int, routes ...string) hello {
	var node state.Node
	for _, n := range w.store.State().Nodes.All() {
		if n.IdentityKey == w.ids[i].Public() {
			node = n
		}
	}
	require.NotZero(w.t, node.Number)
	st := protocol.NodeStatement{Number: node.Number, WireGuardKey: node.WireGuardKey, Epoch: protocol.FirstKeyEpoch}.Sign(w.ids[i])
	var prefixes []netip.Prefix
	for _, r := range routes {
		p, _ := netip.ParsePrefix(r)
		prefixes = append(prefixes, p) // invalid: the node is refused
	}
	return hello{name: node.Name, routes: len(prefixes), answer: make(chan helloAnswer, 1),
		announce: func(d *state.Draft) error { return state.Announce(d, node.Number, st, prefixes) }}
}

func (w *helloWorld) stated() (n int) {
	for _, node := range w.store.State().Nodes.All() {
		if node.Statement != nil {
			n++
		}
	}
	return n
}

// Nodes that wait share a transaction, and one that is refused leaves nothing of itself in
// it and keeps none of the others out.
func TestHellosShareATransaction(t *testing.T) {
	w := newHelloWorld(t, 12)
	before := w.store.State().Seq
	var batch []hello
	for i := range 12 {
		if i == 5 {
			batch = append(batch, w.hello(i, "10.9.0.0/16", "no prefix"))
		} else {
			batch = append(batch, w.hello(i, "10.1.0.0/24"))
		}
	}
	answers := slices.Clone(batch) // recordBatch reorders batch
	w.server.recordBatch(t.Context(), batch)
	for i, h := range answers {
		a := <-h.answer
		if i == 5 {
			require.ErrorContains(t, a.err, "no CIDR")
			continue
		}
		require.NoError(t, a.err)
		require.EqualValues(t, before+1, a.state.Seq)
	}
	require.Equal(t, 11, w.stated())
	require.Zero(t, w.store.State().Routes.Len(), "nobody approved them")
	log, err := w.store.Audit(t.Context(), 0, 1)
	require.NoError(t, err)
	require.Equal(t, "nodes", log[0].Who)
	require.Equal(t, "hello of 11 nodes", log[0].Why)
}

// What is more than one transaction holds is stored in several.
func TestHellosTooLargeForATransaction(t *testing.T) {
	w := newHelloWorld(t, 1)
	before := w.store.State().Seq
	var batch []hello
	for i := range byte(4) {
		batch = append(batch, hello{name: "n", answer: make(chan helloAnswer, 1), announce: func(d *state.Draft) error {
			for j := range 2000 { // 400 KB
				if err := d.Add(state.TokenCreated{ID: protocol.TokenID{9, i, byte(j), byte(j >> 8)}, Hash: make([]byte, 32), Site: "a", Expires: d.Now.Add(time.Hour)}); err != nil {
					return err
				}
			}
			return nil
		}})
	}
	answers := slices.Clone(batch)
	w.server.recordBatch(t.Context(), batch)
	for _, h := range answers {
		require.NoError(t, (<-h.answer).err)
	}
	require.Equal(t, before+2, w.store.State().Seq)
}

// Those that come while the log is busy are gathered; a node alone is in the audit by its name.
func TestHellosAreGatheredWhileTheLogIsBusy(t *testing.T) {
	const nodes = 20
	w := newHelloWorld(t, nodes)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { w.server.recordHellos(ctx) })
	_, err := w.server.record(ctx, w.hello(0))
	require.NoError(t, err)
	log, err := w.store.Audit(ctx, 0, 1)
	require.NoError(t, err)
	require.Equal(t, "hello", log[0].Why)
	require.Equal(t, "node:"+w.hello(0).name, log[0].Who)

	before := w.store.State().Seq
	busy, release := make(chan struct{}), make(chan struct{})
	wg.Go(func() {
		_, err := w.store.Update(ctx, "unix:root", "slow", func(*state.Draft) error {
			close(busy)
			<-release
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-busy
	var started, done sync.WaitGroup
	for i := 1; i < nodes; i++ {
		h := w.hello(i)
		started.Add(1)
		done.Go(func() {
			started.Done()
			if _, err := w.server.record(ctx, h); err != nil {
				t.Error(err)
			}
		})
	}
	started.Wait()
	close(release)
	done.Wait()
	require.Equal(t, nodes, w.stated())
	require.LessOrEqual(t, w.store.State().Seq-before, uint64(nodes/2), "transactions for the hellos of %d nodes", nodes-1)
}
