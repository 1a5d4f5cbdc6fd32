package underlay

import (
	"context"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type nobody struct{}

func (nobody) Receive(Source, []byte, int) {}
func (nobody) Flush()                      {}

func testConfig(t *testing.T) Config {
	k, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	return Config{Self: 7, PrivateKey: k, BootID: protocol.BootID{1}, NewReader: func() Receiver { return nobody{} }, Log: zerolog.Nop()}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no reader": func(c *Config) { c.NewReader = nil },
		"no number": func(c *Config) { c.Self = 0 },
		"no key":    func(c *Config) { c.PrivateKey = protocol.WireGuardPrivateKey{} },
		"no boot":   func(c *Config) { c.BootID = protocol.BootID{} },
	} {
		c := testConfig(t)
		change(&c)
		_, err := New(c)
		require.Error(t, err, name)
	}
}

func TestSendBeforeRunAndToStrangers(t *testing.T) {
	u, err := New(testConfig(t))
	require.NoError(t, err)
	require.ErrorIs(t, u.Send(9, make([]byte, 100), 100), ErrNotRunning)
	require.Zero(t, u.Port())
	stop := start(t, u)
	require.NotZero(t, u.Port())
	require.ErrorIs(t, u.Send(9, make([]byte, 100), 100), ErrUnknownPeer)
	require.NoError(t, u.SetPeers([]Peer{{Number: 9, Key: u.cfg.PrivateKey.Public(), Direct: true}}))
	require.ErrorIs(t, u.Send(9, append([]byte{4}, make([]byte, 99)...), 100), ErrNoPath)
	stop()
	require.ErrorIs(t, u.Send(9, make([]byte, 100), 100), ErrNotRunning)
}

func start(t *testing.T, u *Underlay) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	select {
	case <-u.Ready():
	case err := <-done:
		t.Fatalf("run: %v", err)
	}
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

// What the host has is not known here; what holds for any host is.
func TestCandidates(t *testing.T) {
	changed := make(chan struct{}, 10)
	var all atomic.Bool
	c := testConfig(t)
	c.OnCandidates = func() { changed <- struct{}{} }
	c.Excluded = func(ifname string, a netip.Addr) bool {
		return ifname == "" || all.Load()
	}
	u, err := New(c)
	require.NoError(t, err)
	stop := start(t, u)
	defer stop()
	own := func() int {
		l, err := u.ownAddresses()
		require.NoError(t, err)
		for _, a := range l {
			require.Equal(t, u.Port(), a.Port())
			require.True(t, a.Addr().IsGlobalUnicast() && !a.Addr().IsLoopback(), a)
		}
		return len(l)
	}
	if own() == 0 {
		return // a host with loopback alone
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told of the candidates")
	}
	require.NotEmpty(t, u.Candidates())
	all.Store(true)
	require.Zero(t, own())
}

// The port of the last run is taken again, unless somebody has it by now.
func TestLastPort(t *testing.T) {
	run := func(last uint16) (port uint16, stop func()) {
		c := testConfig(t)
		c.LastPort = last
		u, err := New(c)
		require.NoError(t, err)
		stop = start(t, u)
		return u.Port(), stop
	}
	first, stop := run(0)
	stop()
	again, stop := run(first)
	defer stop()
	require.Equal(t, first, again)
	other, stop2 := run(first)
	defer stop2()
	require.NotEqual(t, first, other)
}

func TestHubAddressesInAnyForm(t *testing.T) {
	u, err := New(testConfig(t))
	require.NoError(t, err)
	mapped := netip.MustParseAddrPort("[::ffff:192.0.2.1]:51820")
	require.NoError(t, u.SetHubs([]Hub{{Number: 1, Key: u.cfg.PrivateKey.Public(), Addrs: []netip.AddrPort{mapped}}}))
	require.Contains(t, *u.sources.Load(), netip.MustParseAddrPort("192.0.2.1:51820"))
	require.Error(t, u.SetHubs([]Hub{{Number: 1, Addrs: []netip.AddrPort{mapped, netip.MustParseAddrPort("192.0.2.1:51820")}}}), "the same twice")
	require.Len(t, *u.sources.Load(), 1, "nothing was changed")
	require.NoError(t, u.SetHubs(nil))
	require.Empty(t, *u.sources.Load())
}

// A thousand peers that nobody talks to cost no goroutine.
func TestIdlePeersCostNoGoroutine(t *testing.T) {
	u, err := New(testConfig(t))
	require.NoError(t, err)
	stop := start(t, u)
	defer stop()
	before := runtime.NumGoroutine()
	var peers []Peer
	for n := range 1000 {
		peers = append(peers, Peer{Number: protocol.NodeNumber(100 + n), Key: protocol.WireGuardPublicKey{byte(n), byte(n >> 8), 1}, Direct: true,
			Candidates: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(1+n))}})
	}
	require.NoError(t, u.SetPeers(peers))
	require.Less(t, runtime.NumGoroutine(), before+20, "the sockets may just be starting theirs")
}

// Whatever comes from a hub has come over its path: of peers that are not known here, or not yet,
// and of no use to anybody. The hub counts it as sent, and a path that carries is none to be left.
func TestArrivalsOfStrangers(t *testing.T) {
	u, err := New(testConfig(t))
	require.NoError(t, err)
	hub := netip.MustParseAddrPort("192.0.2.1:1")
	require.NoError(t, u.SetHubs([]Hub{{Number: 1, Key: protocol.WireGuardPublicKey{1}, Addrs: []netip.AddrPort{hub}}}))
	require.NoError(t, u.SetPeers([]Peer{{Number: 3, Key: protocol.WireGuardPublicKey{3}}}))
	r := &reader{u: u, recv: nobody{}, now: time.Now()}
	tally := (*u.sources.Load())[hub].tally
	require.NotNil(t, tally)
	for i, number := range []byte{77, 1, 3, 0} { // unknown, a hub's, a peer's, the hub's own
		r.message(&sock.Message{From: hub, Data: append([]byte{2, 0, 0, number}, make([]byte, protocol.ResponseSize-4)...), Segment: protocol.ResponseSize})
		require.Equal(t, protocol.DataCounts{uint32(i + 1)}, tally.Counts().Received, "of number %d", number)
	}
}
