package scale

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"causeway/protocol"
)

// Each agent's facts change by themselves once in so long, on average.
const factsChange = time.Minute

// inventory publishes an agent's facts over NATS, on a stream of its control session.
type inventory struct {
	poke  chan chan<- uint64 // asks for a change; hears its sequence before it is sent
	seq   uint64
	acked atomic.Bool // in this session
}

func (v *inventory) run(ctx context.Context, a *agent, open func(context.Context) (net.Conn, error)) {
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond), backoff.WithMaxInterval(10*time.Second), backoff.WithMaxElapsedTime(0))
	for ctx.Err() == nil {
		v.acked.Store(false)
		if err := v.session(ctx, a, open); err != nil && ctx.Err() == nil {
			a.world.troubled(err)
		}
		v.acked.Store(false)
		select {
		case <-ctx.Done():
		case <-time.After(b.NextBackOff()):
		}
	}
}

type natsDialer struct {
	ctx  context.Context
	open func(context.Context) (net.Conn, error)
}

func (d natsDialer) Dial(string, string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	return d.open(ctx)
}

func (v *inventory) session(ctx context.Context, a *agent, open func(context.Context) (net.Conn, error)) error {
	nc, err := nats.Connect("nats://hub:4222", nats.SetCustomDialer(natsDialer{ctx, open}), nats.SkipHostLookup(), nats.CustomInboxPrefix(protocol.InboxPrefix(a.number)),
		nats.NoReconnect(), nats.IgnoreDiscoveredServers(), nats.Timeout(20*time.Second), nats.PingInterval(30*time.Second),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { a.world.troubled(err) }))
	if err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if err := v.publish(ctx, a, js, nil); err != nil {
		return err
	}
	v.acked.Store(true)
	for {
		var heard chan<- uint64
		select {
		case <-ctx.Done():
			return nil
		case heard = <-v.poke:
		case <-time.After(factsChange/2 + rand.N(factsChange)):
		}
		if err := v.publish(ctx, a, js, heard); err != nil {
			return err
		}
	}
}

// publish sends a change, again and again until it is acknowledged.
func (v *inventory) publish(ctx context.Context, a *agent, js jetstream.JetStream, heard chan<- uint64) error {
	v.seq++
	b, err := json.Marshal(facts(a, v.seq))
	if err != nil {
		return err
	}
	if heard != nil {
		heard <- v.seq
	}
	m := nats.NewMsg(protocol.InventorySubject(a.site, a.number))
	m.Data = b
	for try := 0; ; try++ {
		pctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := js.PublishMsg(pctx, m, jetstream.WithMsgID(fmt.Sprintf("%s-%d", a.boot, v.seq)))
		cancel()
		if err == nil || ctx.Err() != nil || try == 3 {
			return err
		}
	}
}

// facts are those of a host with twenty containers.
func facts(a *agent, seq uint64) protocol.Inventory {
	n := byte(a.number)
	inv := protocol.Inventory{Version: protocol.Version, Sequence: seq, BootID: a.boot, Time: time.Now().UTC(), Hostname: a.name, OS: "Debian GNU/Linux 12 (bookworm)",
		Kernel: "6.1.0-18-amd64", Arch: "amd64", CPUModel: "AMD EPYC 7763 64-Core Processor", CPUs: 64, MemoryTotal: 256 << 30, MemoryUsed: 100<<30 + seq<<20,
		HostBootTime: a.world.started, AgentVersion: "scale", Engine: "scale", PodCIDRs: a.routes, Containers: map[string]protocol.Container{}}
	for i := range byte(4) {
		inv.Interfaces = append(inv.Interfaces, protocol.Interface{Name: fmt.Sprintf("eth%d", i), MAC: fmt.Sprintf("02:00:00:00:%02x:%02x", n, i), MTU: 1500, Up: true,
			Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, i, n, 1}), 24)}})
	}
	for i := range 20 {
		id := fmt.Sprintf("%08x%056d", a.number, i)
		inv.Containers["podman/"+id] = protocol.Container{Name: fmt.Sprintf("service-%d", i), Image: "registry.example.org/team/service:1.2.3"}
	}
	return inv
}
