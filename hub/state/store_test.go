package state_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/bus"
	"causeway/hub/state"
	"causeway/protocol"
)

const patience = 20 * time.Second

// server is a real embedded server with its JetStream.
type server struct {
	bus *bus.Server
	js  jetstream.JetStream
}

func start(t testing.TB, dir string) *server {
	t.Helper()
	b, err := bus.Start(context.Background(), bus.Config{Dir: dir, Log: zerolog.Nop()})
	require.NoError(t, err)
	nc, err := b.StateConn()
	require.NoError(t, err)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close(); b.Close() })
	return &server{b, js}
}

// open opens a store and follows the log until the test ends.
func (s *server) open(t testing.TB, m *state.Marker) *state.Store {
	t.Helper()
	st, err := state.Open(context.Background(), state.StoreConfig{JetStream: s.js, Marker: m, Log: zerolog.Nop()})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := st.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return st
}

func setUp(t testing.TB, st *state.Store) {
	t.Helper()
	_, err := st.Update(context.Background(), "hub", "start", func(d *state.Draft) error {
		return errors.Join(
			d.Add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}}),
			d.Add(state.HubAdded{Number: 1}), d.Add(state.SiteCreated{Name: "a"}))
	})
	require.NoError(t, err)
}

func secret(n int) protocol.TokenSecret { return protocol.TokenSecret{byte(n), byte(n >> 8), 7} }

func addToken(ctx context.Context, st *state.Store, n int) (protocol.TokenID, error) {
	id, h := protocol.TokenID{byte(n), byte(n >> 8)}, secret(n).Hash()
	_, err := st.Update(ctx, "unix:root", "token create", func(d *state.Draft) error {
		return d.Add(state.TokenCreated{ID: id, Hash: h[:], Site: "a", Expires: d.Now.Add(time.Hour)})
	})
	return id, err
}

func request(id protocol.TokenID, s protocol.TokenSecret, host int, name string) state.RedeemRequest {
	return state.RedeemRequest{Token: id, Secret: s, Name: name,
		WireGuardKey: protocol.WireGuardPublicKey{byte(host), byte(host >> 8), 1}, IdentityKey: protocol.IdentityPublicKey{byte(host), byte(host >> 8), 2}}
}

// Whoever does not hold a token's secret does not keep others from deciding,
// nor waits for them. A token of another hub is found.
func TestRedeemWithoutSecretTakesNoTurn(t *testing.T) {
	srv := start(t, t.TempDir())
	one, two := srv.open(t, nil), srv.open(t, nil)
	setUp(t, one)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	id, err := addToken(ctx, one, 1)
	require.NoError(t, err)
	inside, done := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := two.Update(ctx, "unix:root", "slow", func(*state.Draft) error {
			select {
			case <-inside:
			default:
				close(inside)
			}
			<-done
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-inside
	var r *state.Refusal
	short, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	_, err = two.Redeem(short, "token", "join", request(id, secret(2), 1, "n1"))
	close(done)
	require.ErrorAs(t, err, &r)
	require.False(t, r.Shown)
	_, err = two.Redeem(ctx, "token", "join", request(protocol.TokenID{9}, secret(9), 1, "n1"))
	require.ErrorAs(t, err, &r)
	id, err = addToken(ctx, one, 3)
	require.NoError(t, err)
	st, err := two.Redeem(ctx, "token", "join", request(id, secret(3), 1, "n1"))
	require.NoError(t, err)
	_, err = st.FindNode("n1")
	require.NoError(t, err)
	wg.Wait()
}

// Of any number of hosts that redeem a token at once, at two hubs, one wins.
func TestRedeemConcurrently(t *testing.T) {
	s := start(t, t.TempDir())
	stores := []*state.Store{s.open(t, nil), s.open(t, nil)}
	setUp(t, stores[0])
	const tokens, hosts = 4, 200
	var ids [tokens]protocol.TokenID
	for i := range ids {
		var err error
		ids[i], err = addToken(t.Context(), stores[0], i+1)
		require.NoError(t, err)
	}
	var won, refused, other atomic.Int64
	var wg sync.WaitGroup
	for h := range hosts {
		wg.Go(func() {
			st, k := stores[h%2], h%tokens
			r := request(ids[k], secret(k+1), h, fmt.Sprintf("host-%d", h))
			for {
				_, err := st.Update(t.Context(), "token", "join", func(d *state.Draft) error { return state.Redeem(d, r) })
				var no *state.Refusal
				switch {
				case errors.Is(err, state.ErrBusy):
					continue
				case err == nil:
					won.Add(1)
				case errors.As(err, &no) && no.Shown:
					refused.Add(1)
				default:
					other.Add(1)
					t.Error(err)
				}
				return
			}
		})
	}
	wg.Wait()
	require.Equal(t, int64(tokens), won.Load())
	require.Equal(t, int64(hosts-tokens), refused.Load())
	require.Zero(t, other.Load())
	sameSoon(t, stores...)
	require.Len(t, stores[0].State().LiveNodes(), tokens)
}

// sameSoon waits until all stores have the same state.
func sameSoon(t testing.TB, stores ...*state.Store) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, st := range stores[1:] {
			if st.State().Seq != stores[0].State().Seq {
				return false
			}
		}
		return true
	}, patience, time.Millisecond)
	for _, st := range stores[1:] {
		require.Empty(t, state.Same(stores[0].State(), st.State()))
	}
}

// Two hubs decide at random at the same time: no invariant breaks, both see
// the same, and a third that folds the log from its start does, too.
func TestTwoStoresProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "causeway-state-")
		require.NoError(rt, err)
		defer os.RemoveAll(dir)
		b, err := bus.Start(context.Background(), bus.Config{Dir: dir, Log: zerolog.Nop()})
		require.NoError(rt, err)
		defer b.Close()
		nc, err := b.StateConn()
		require.NoError(rt, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		require.NoError(rt, err)
		var stores []*state.Store
		for range 2 {
			st, err := state.Open(context.Background(), state.StoreConfig{JetStream: js, Log: zerolog.Nop()})
			require.NoError(rt, err)
			stores = append(stores, st)
		}
		setUp(t, stores[0])

		type op struct{ kind, a, b int }
		ops := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) op {
			return op{rapid.IntRange(0, 8).Draw(t, "kind"), rapid.IntRange(0, 3).Draw(t, "a"), rapid.IntRange(0, 3).Draw(t, "b")}
		}), 1, 40).Draw(rt, "ops")
		var wg sync.WaitGroup
		for w := range 2 { // no Run: what the other wrote is seen through conflicts alone
			wg.Go(func() {
				for i, o := range ops {
					if i%2 == w {
						step(stores[w], o.kind, o.a, o.b)
					}
				}
			})
		}
		wg.Wait()
		third, err := state.Open(context.Background(), state.StoreConfig{JetStream: js, Log: zerolog.Nop()})
		require.NoError(rt, err)
		for _, st := range stores {
			_, err := st.Update(context.Background(), "x", "x", func(*state.Draft) error { return nil }) // catches up
			require.NoError(rt, err)
			require.Empty(rt, state.Same(third.State(), st.State()))
		}
		invariants(rt, third.State())
	})
}

var pools = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("10.2.0.0/16")}

// step does one of the things that hubs do; refusals are fine.
func step(st *state.Store, kind, a, b int) {
	ctx := context.Background()
	name, site := fmt.Sprintf("n%d", a), string("ab"[b%2])
	decide := func(d *state.Draft) error { return nil }
	switch kind {
	case 0:
		addToken(ctx, st, a+1)
		return
	case 1, 2:
		decide = func(d *state.Draft) error {
			return state.Redeem(d, request(protocol.TokenID{byte(a + 1)}, secret(a+1), b, name))
		}
	case 3:
		decide = func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: site, Ranges: pools[a : a+1]}) }
	case 4:
		decide = func(d *state.Draft) error { return d.Add(state.SiteDeleted{Name: site}) }
	case 5:
		decide = func(d *state.Draft) error {
			n, err := d.FindNode(name)
			if err != nil {
				return err
			}
			return state.AnnounceRoutes(d, n.Number, []netip.Prefix{pools[b], pools[(b+1)%4]})
		}
	case 6, 7:
		decide = func(d *state.Draft) error { return state.DecideRoute(d, name, pools[b], kind == 6, "x") }
	case 8:
		decide = func(d *state.Draft) error {
			n, err := d.FindNode(name)
			if err != nil {
				return err
			}
			return state.Remove(d, n.Number, state.GoneLeft)
		}
	}
	st.Update(ctx, "test", "step", decide)
}

// failer is what invariants reports to.
type failer interface {
	Errorf(string, ...any)
	FailNow()
}

func invariants(t failer, s *state.State) {
	names, keys, used := map[string]bool{}, map[protocol.WireGuardPublicKey]bool{}, map[protocol.NodeNumber]bool{}
	for n, node := range s.Nodes.All() {
		require.Equal(t, n, node.Number)
		require.Less(t, n, s.NextNumber)
		require.False(t, s.HubNumbers.Get(n))
		require.False(t, keys[node.WireGuardKey])
		keys[node.WireGuardKey] = true
		if node.Live() {
			require.False(t, names[node.Name])
			names[node.Name] = true
			require.True(t, s.Sites.Has(node.Site))
		}
	}
	for _, k := range s.Tokens.All() {
		if k.UsedBy != 0 {
			require.False(t, used[k.UsedBy])
			used[k.UsedBy] = true
			require.Equal(t, k.ID, s.Nodes.Get(k.UsedBy).Token)
		}
	}
	for k, r := range s.Routes.All() {
		require.True(t, s.Nodes.Get(k.Node).Live())
		if r.State != protocol.RouteApproved {
			continue
		}
		require.NoError(t, state.CheckPrefix(k.Prefix, s.Overlay))
		for k2, r2 := range s.Routes.All() {
			if r2.State == protocol.RouteApproved && s.Nodes.Get(k.Node).Site != s.Nodes.Get(k2.Node).Site {
				require.False(t, k.Prefix.Overlaps(k2.Prefix), "%v %v", k, k2)
			}
		}
	}
}

func TestStoreFollowsAnother(t *testing.T) {
	s := start(t, t.TempDir())
	a, b := s.open(t, nil), s.open(t, nil)
	changed, stop := b.Watch()
	defer stop()
	setUp(t, a)
	deadline := time.After(patience)
	for b.State().Seq < a.State().Seq {
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("no change seen")
		}
	}
	sameSoon(t, a, b)
	// A refusal on a state that is behind is made again on the newest one.
	_, err := addToken(t.Context(), a, 1)
	require.NoError(t, err)
	_, err = b.Update(t.Context(), "x", "y", func(d *state.Draft) error {
		return state.Redeem(d, request(protocol.TokenID{1}, secret(1), 1, "one"))
	})
	require.NoError(t, err)
	txs, err := b.Audit(t.Context(), 0, 10)
	require.NoError(t, err)
	require.Equal(t, "y", txs[0].Why)
	require.Len(t, txs, 3)
}

func TestMarkerRefusesOtherLogs(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "log.json")
	_, err := state.OpenMarker(path)
	require.ErrorIs(t, err, state.ErrNoMarker)
	m, err := state.NewMarker(path)
	require.NoError(t, err)
	require.True(t, m.New())

	run := func(dir string, do func(*server, *state.Marker)) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			m, err := state.OpenMarker(path)
			require.NoError(t, err)
			do(start(t, dir), m)
		})
	}
	nats := filepath.Join(base, "nats")
	run(nats, func(s *server, m *state.Marker) {
		st := s.open(t, m)
		setUp(t, st)
		_, err := addToken(context.Background(), st, 1)
		require.NoError(t, err)
		require.Eventually(t, func() bool { b, _ := os.ReadFile(path); return strings.Contains(string(b), `"last_sequence":2`) }, patience, time.Millisecond)
	})
	refuse := func(dir, says string) {
		run(dir, func(s *server, m *state.Marker) {
			_, err := state.Open(context.Background(), state.StoreConfig{JetStream: s.js, Marker: m, Log: zerolog.Nop()})
			require.ErrorContains(t, err, says)
			require.NotContains(t, err.Error(), "\n")
		})
	}
	refuse(filepath.Join(base, "empty"), "gone")
	// A log of the same shape, but made at another time.
	t.Run("other", func(t *testing.T) {
		s := start(t, filepath.Join(base, "other"))
		setUp(t, s.open(t, nil))
	})
	refuse(filepath.Join(base, "other"), "another one")
	require.NoError(t, os.WriteFile(path, []byte("junk"), 0o600))
	_, err = state.OpenMarker(path)
	require.ErrorContains(t, err, "unreadable")
}

// A log cut behind the marker is refused, whatever cut it.
func TestShorterLogIsRefused(t *testing.T) {
	base := t.TempDir()
	path, nats := filepath.Join(base, "log.json"), filepath.Join(base, "nats")
	t.Run("write", func(t *testing.T) {
		m, err := state.NewMarker(path)
		require.NoError(t, err)
		st := start(t, nats).open(t, m)
		setUp(t, st)
		require.NoError(t, os.CopyFS(filepath.Join(base, "backup"), os.DirFS(nats)))
		_, err = addToken(t.Context(), st, 1)
		require.NoError(t, err)
	})
	t.Run("restore an old copy", func(t *testing.T) {
		m, err := state.OpenMarker(path)
		require.NoError(t, err)
		s := start(t, filepath.Join(base, "backup"))
		_, err = state.Open(t.Context(), state.StoreConfig{JetStream: s.js, Marker: m, Log: zerolog.Nop()})
		require.ErrorContains(t, err, "shorter")
	})
}

// What was done and changes nothing is said by the log, and folds.
func TestNote(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	st := s.open(t, nil)
	_, err := st.Update(t.Context(), "unix:root", "make it", func(d *state.Draft) error {
		return d.Add(state.ClusterCreated{Cluster: protocol.ClusterPrivateKey{1}.Public(), Epoch: 1, Overlay: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}})
	})
	require.NoError(t, err)
	before := st.State()
	after, err := st.Update(t.Context(), "unix:root", "looked", func(d *state.Draft) error { d.Note(); return nil })
	require.NoError(t, err)
	require.Equal(t, before.Seq+1, after.Seq)
	again := s.open(t, nil)
	require.Equal(t, after.Seq, again.State().Seq)
	l, err := again.Audit(t.Context(), 0, 1)
	require.NoError(t, err)
	require.Equal(t, []string{"unix:root", "looked"}, []string{l[0].Who, l[0].Why})
	require.Empty(t, l[0].Changes)
}
