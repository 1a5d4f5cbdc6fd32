package onhost

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/agent/clock"
	"causeway/agent/config"
	"causeway/agent/desired"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/agent/repair"
	"causeway/netns"
	"causeway/netns/look"
	"causeway/protocol"
	"causeway/tunnel"
)

// doubles are a tunnel and a host that remember what they were told.
type doubles struct {
	mu      sync.Mutex
	peers   []protocol.NodeNumber
	routes  map[netip.Prefix]protocol.NodeNumber // of peers
	device  tunnel.Device
	made    bool // Reattach makes a device
	plan    netns.Plan
	applies int
	drifts  func() []netns.Drift // nil: none
	err     error                // of Apply and Mend
	unread  error                // of Drift
	mended  []netns.Drift
	amid    func() // in Apply; nil: nothing
	watch   chan []netns.Change
	leading []look.Passing
}

func (d *doubles) SetPeers(l []tunnel.NodePeer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers, d.routes = nil, map[netip.Prefix]protocol.NodeNumber{}
	for _, p := range l {
		d.peers = append(d.peers, p.Number)
		for _, r := range p.AllowedIPs {
			if d.routes[r] != 0 {
				return fmt.Errorf("%s is of peers %d and %d", r, d.routes[r], p.Number)
			}
			d.routes[r] = p.Number
		}
	}
	return nil
}
func (d *doubles) SetLocal([]netip.Prefix)      {}
func (d *doubles) SetInterface(bool)            {}
func (d *doubles) Paths() []protocol.PathStatus { return nil }
func (d *doubles) Inject([]byte) error          { return nil }
func (d *doubles) Device() tunnel.Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.device
}
func (d *doubles) Reattach() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made, nil
}

func (d *doubles) Apply(_ context.Context, p netns.Plan) error {
	if d.amid != nil {
		d.amid()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plan, d.applies = p, d.applies+1
	return d.err
}
func (d *doubles) ForeignRoutes(context.Context, netns.Config) ([]netns.Foreign, error) {
	return nil, nil
}
func (d *doubles) Gateways(context.Context, netns.Config) ([]netip.Addr, error) { return nil, nil }
func (d *doubles) Ranges(context.Context, netns.Config) ([]netip.Prefix, error) { return nil, nil }
func (d *doubles) Apart(context.Context, netns.Config) ([]netip.Addr, error)    { return nil, nil }
func (d *doubles) Uses(context.Context, netns.Config) (netns.Uses, error)       { return netns.Uses{}, nil }
func (d *doubles) ForwardBlockedBy(context.Context) (string, error)             { return "", nil }
func (d *doubles) Try(context.Context, look.Inject) (look.Trial, error)         { return look.Trial{}, nil }
func (d *doubles) RouteMTUs(context.Context, netns.Config) (map[netip.Prefix]int, error) {
	return nil, nil
}
func (d *doubles) Watch(context.Context) (<-chan []netns.Change, error) { return d.watch, nil }
func (d *doubles) Drift(_ context.Context, kinds ...netns.Kind) (out []netns.Drift, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.drifts == nil {
		return nil, d.unread
	}
	for _, x := range d.drifts() {
		if slices.Contains(kinds, x.Kind) {
			out = append(out, x)
		}
	}
	return out, d.unread
}
func (d *doubles) Mend(_ context.Context, l []netns.Drift) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mended = append(d.mended, l...)
	return d.err
}
func (d *doubles) AccessDrops(context.Context) (map[string]uint64, error) { return nil, nil }
func (d *doubles) Passing() ([]look.Passing, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.leading, nil
}
func (d *doubles) PutRight() []netns.Drift { return nil }

func (d *doubles) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *doubles) reached() []protocol.NodeNumber {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.peers)
}

// world is a Keeper of a node that has joined, between doubles.
type world struct {
	*doubles
	*Keeper
	counted map[string]int // repairs, by kind
	version uint64
}

func newWorld(t *testing.T, set func(*config.Config)) *world {
	t.Helper()
	store, err := identity.Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	t.Cleanup(func() { store.Close() })
	cluster, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	key, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	ik, err := protocol.NewIdentityPrivateKey()
	require.NoError(t, err)
	list, err := protocol.HubList{Version: 1, Serial: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4},
		Hubs: []protocol.Hub{{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{1}, UDP: []string{"192.0.2.1:51820"}, HTTPS: []string{"192.0.2.1:443"}}}}.Sign(cluster)
	require.NoError(t, err)
	id := identity.Identity{Number: 2, Name: "n2", Site: "s", Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.2")}, WireGuardKey: key, IdentityKey: ik, KeyEpoch: 1, Pin: cluster.Public().Pin(), HubList: list, Shields: true}
	require.NoError(t, store.SaveIdentity(id))
	own, settings := identity.NewOwn(store, id, nil), config.Default()
	if set != nil {
		set(&settings)
	}
	live := config.NewLive(settings)
	var specs []health.Spec
	for _, name := range []string{health.State, health.Routes, health.Netmap, health.Tunnel, health.Repair, health.Firewall, health.Held, health.Local} {
		specs = append(specs, health.Spec{Name: name})
	}
	board := health.New(time.Now(), func(protocol.Condition) {}, specs...)
	want, err := desired.New(desired.Config{Store: store, Own: own, Live: live, Board: board, Log: zerolog.Nop(), Wall: time.Now, Boot: clock.ThisBoot})
	require.NoError(t, err)
	incidents, err := repair.OpenLog(store.IncidentFile(), time.Now())
	require.NoError(t, err)
	w := &world{doubles: &doubles{watch: make(chan []netns.Change)}, counted: map[string]int{}}
	w.Keeper, err = New(Config{Store: store, Own: own, Live: live, Want: want, Board: board, Tunnel: w.doubles, Host: w.doubles, Look: w.doubles, Incidents: incidents, Now: time.Now,
		Mended: func(kind string) { w.counted[kind]++ }, GaveUp: func(string) {}, Log: zerolog.Nop()})
	require.NoError(t, err)
	return w
}

// take has a netmap of these peers be wanted.
func (w *world) take(t *testing.T, peers ...protocol.Peer) {
	t.Helper()
	w.version++
	_, refusal := w.want.Take(protocol.Netmap{NetmapVersion: protocol.NetmapVersion{Epoch: 1, Version: w.version}, Peers: peers, Self: protocol.NetmapSelf{Number: 2}})
	require.Nil(t, refusal)
}

func testPeer(n protocol.NodeNumber, routes ...string) protocol.Peer {
	a, _ := n.Overlay(protocol.DefaultOverlay4)
	p := protocol.Peer{Statement: protocol.NodeStatement{Number: n, WireGuardKey: protocol.WireGuardPublicKey{byte(n), 7}, Epoch: 1}.Sign(protocol.IdentityPrivateKey{byte(n)}),
		Name: "p", Site: "s", Overlay: []netip.Addr{a}}
	for _, r := range routes {
		p.Routes = append(p.Routes, netip.MustParsePrefix(r))
	}
	return p
}
