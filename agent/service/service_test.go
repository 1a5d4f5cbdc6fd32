package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/agent/items"
	"causeway/netns/netnstest"
	svc "causeway/netns/service"
	"causeway/protocol"
)

// node is an engine with a table that stands nowhere: what a switch says is asked of it.
type node struct {
	*Engine
	number protocol.NodeNumber
	addr   netip.Addr
	view   atomic.Pointer[View]
	table  *svc.Table
	fails  atomic.Int32 // so many switches fail
	faults atomic.Int32
	stop   func()
}

type unwritten struct {
	*svc.Table
	n *node
}

func (u unwritten) Switch(l []svc.Service, dead []svc.Backend) error {
	if u.n.fails.Add(-1) >= 0 {
		return errors.New("the kernel is busy")
	}
	return u.Table.Switch(l, dead)
}

func (unwritten) Signs(context.Context) (map[svc.Sign]svc.Signs, error) { return nil, nil }
func (unwritten) Note(context.Context) error                            { return nil }
func (unwritten) Release(context.Context, []svc.Backend) (int, error)   { return 0, nil }
func (unwritten) Prod(context.Context, []svc.Backend) (int, error)      { return 0, nil }

func (unwritten) End(context.Context, []svc.Left) (int, error) { return 0, nil }
func (unwritten) Fenced() bool                                 { return true }
func (unwritten) Stands() bool                                 { return false }

func startNode(t *testing.T, n *node) {
	t.Helper()
	n.table = svc.NewTable()
	n.Engine = New(Config{Tracked: Tracked, View: n.view.Load, Table: unwritten{n.table, n}, Heard: func() map[protocol.NodeNumber]uint64 { return nil }, Path: func(protocol.NodeNumber) bool { return false },
		Told: func() {}, Moved: func() {}, Fault: func(cause string) {
			if cause != "" {
				n.faults.Add(1)
			}
		}, Log: zerolog.New(zerolog.NewTestWriter(t))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.Run(ctx)
	}()
	n.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(n.stop)
}

// share is the percent of slots that lead to an address.
func (n *node) share(a netip.Addr) int {
	for _, s := range n.table.Config().Services {
		count := 0
		for _, b := range s.Slots {
			if b.Addr() == a {
				count++
			}
		}
		if len(s.Slots) > 0 {
			return 100 * count / len(s.Slots)
		}
	}
	return 0
}

// inNamespace runs the test once more, in a process whose network is its own and has these addresses; false: this is not that process.
func inNamespace(t *testing.T, addrs ...string) bool {
	t.Helper()
	const marker = "CAUSEWAY_TEST_NAMESPACE"
	if os.Getenv(marker) != "" {
		netnstest.Sh(t, "ip link set lo up")
		for _, a := range addrs {
			netnstest.Sh(t, "ip addr add "+a+" dev lo")
		}
		return true
	}
	netnstest.Root(t)
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err)
	return false
}

// Two agents that talk over real sockets: readiness and silence of one move the other's slots, and back.
func TestSwitch(t *testing.T) {
	if !inNamespace(t, "198.18.0.2/32", "198.18.0.3/32") {
		return
	}
	a := &node{number: 2, addr: netip.MustParseAddr("198.18.0.2")}
	b := &node{number: 3, addr: netip.MustParseAddr("198.18.0.3")}
	item := protocol.ServiceItem{
		Service: protocol.Service{Ports: []protocol.ServicePort{{Port: 80, Target: 8080}}, Prefer: protocol.PreferOrder, Order: []string{"sb", "sa"}, SlowStart: protocol.Duration(time.Second),
			Health: protocol.ServiceHealth{Type: protocol.HealthHTTP, Interval: protocol.Duration(200 * time.Millisecond), Fail: 2, OK: 1}, VIP4: netip.MustParseAddr("198.19.1.1")},
		Endpoints: []protocol.ServiceEndpoint{{Addr: a.addr, Site: "sa"}, {Addr: b.addr, Site: "sb"}},
	}
	require.NoError(t, item.Check())
	headless := protocol.ServiceItem{Service: protocol.Service{Headless: true, Health: protocol.ServiceHealth{Type: protocol.HealthNone}}, Endpoints: item.Endpoints}
	require.NoError(t, headless.Check())
	view := func(n, peer *node, site string) {
		n.view.Store(&View{Services: []items.Service{{Name: "pods", ServiceItem: headless}, {Name: "web", ServiceItem: item}}, Site: site, Own: []netip.Addr{n.addr},
			Peers: []protocol.Peer{{Statement: protocol.SignedNodeStatement{NodeStatement: protocol.NodeStatement{Number: peer.number}}, Name: fmt.Sprint("n", peer.number), Overlay: []netip.Addr{peer.addr}}}})
	}
	view(a, b, "sa")
	view(b, a, "sb")
	serve := func(n *node) (status *atomic.Int32) {
		status = &atomic.Int32{}
		status.Store(200)
		l, err := net.Listen("tcp", netip.AddrPortFrom(n.addr, 8080).String())
		require.NoError(t, err)
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) })}
		t.Cleanup(func() { s.Close() })
		go func() { _ = s.Serve(l) }()
		return status
	}
	serve(a)
	status := serve(b)
	a.fails.Store(2)
	startNode(t, a)
	startNode(t, b)
	until := func(what string, percent int, at netip.Addr, within time.Duration) {
		t.Helper()
		begun := time.Now()
		require.Eventually(t, func() bool { return a.share(at) == percent }, within, 5*time.Millisecond, what)
		t.Logf("%s: %s", what, time.Since(begun).Round(time.Millisecond))
	}
	until("begin", 100, b.addr, 5*time.Second)
	require.EqualValues(t, 2, a.faults.Load(), "a switch that failed is tried again")
	require.True(t, a.Usable("pods", b.addr))
	status.Store(503)
	until("not ready", 100, a.addr, 2*time.Second)
	v, err := a.View(t.Context(), "web")
	require.NoError(t, err)
	i := slices.IndexFunc(v.Services[0].Endpoints, func(e protocol.ServiceEndpointView) bool { return e.Addr == b.addr })
	require.Equal(t, "its node says: not ready", v.Services[0].Endpoints[i].Why)
	_, err = a.View(t.Context(), "none")
	require.EqualError(t, err, "this node was told of no service none")
	require.Empty(t, a.table.Config().Dead)
	status.Store(200)
	until("ready again", 100, b.addr, 4*time.Second)
	b.stop()
	until("silent", 100, a.addr, 1500*time.Millisecond)
	require.False(t, a.Usable("pods", b.addr))
	dead := svc.Backend{Proto: 6, Addr: netip.AddrPortFrom(b.addr, 8080)}
	require.Eventually(t, func() bool { return slices.Contains(a.table.Config().Dead, dead) }, 2*time.Second, 5*time.Millisecond)
	startNode(t, b)
	until("back", 100, b.addr, 8*time.Second)
	require.Empty(t, a.table.Config().Dead)
	r, _ := a.Switches().Next()
	var told []string
	for _, x := range r.Switches {
		if x.Service == "web" && x.Why != protocol.SwitchShare { // whether the last share goes by itself is the ramp's
			told = append(told, fmt.Sprint(x.Why, " ", x.From, " ", x.By))
		}
		if x.Why == protocol.SwitchSuspect {
			t.Logf("gap %s, released %s", x.Gap, x.Released)
			require.Less(t, time.Duration(x.Gap), 1500*time.Millisecond)
			require.GreaterOrEqual(t, x.Released, x.Gap)
		}
	}
	told = told[max(0, slices.Index(told, "not-ready [sb] node n3")):] // what comes before depends on who is there first
	require.Equal(t, []string{"not-ready [sb] node n3", "ready [sa] node n3", "suspect [sb] client", "dead [sa] client", "back [sa] client"}, told)
}
