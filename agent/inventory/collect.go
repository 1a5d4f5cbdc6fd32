// Package inventory publishes a node's facts over NATS. It gathers them and sends them on a stream of the control
// channel, acknowledged by JetStream: snapshots, and deltas within a second or two of a change.
//
// A Collector knows the host: it is told of changes by netlink, by the events
// of container runtimes and by inotify, and polls only what no event tells
// of. A Publisher keeps what no hub has acknowledged, in order and bounded, over
// restarts too.
package inventory

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"causeway/protocol"
)

// Config says where container runtimes are. What is not there costs a look now and then.
type Config struct {
	Docker     string // socket; empty: not looked for
	Podman     string // socket
	Containerd string // state directory
	CNI        string // directory of its records
}

// DefaultConfig is where the runtimes' packages put them.
func DefaultConfig() Config {
	return Config{Docker: "/run/docker.sock", Podman: "/run/podman/podman.sock", Containerd: "/run/containerd", CNI: "/var/lib/cni"}
}

// changeGather is how long events are gathered: a container's start is a dozen.
const changeGather = 100 * time.Millisecond

// Collector gathers facts of the host. Run follows changes; Facts may be called by one
// goroutine at a time.
type Collector struct {
	sources []*tracked
	changes chan struct{}
	raw     chan struct{}

	constant *protocol.Inventory
	busy     busy
	usage    *usage
}

// tracked is a source with what it said last.
type tracked struct {
	source
	mu    sync.Mutex
	dirty bool

	info protocol.Runtime // this and list are for Facts alone
	list []found
}

func (t *tracked) mark() {
	t.mu.Lock()
	t.dirty = true
	t.mu.Unlock()
}

// NewCollector opens nothing.
func NewCollector(cfg Config) *Collector {
	c := &Collector{changes: make(chan struct{}, 1), raw: make(chan struct{}, 1), usage: newUsage()}
	add := func(where string, s source) {
		if where != "" {
			c.sources = append(c.sources, &tracked{source: s, dirty: true})
		}
	}
	add(cfg.Docker, newDocker("docker", cfg.Docker))
	add(cfg.Podman, newDocker("podman", cfg.Podman))
	add(cfg.Containerd, &containerd{cfg.Containerd})
	add(cfg.CNI, &cni{cfg.CNI})
	return c
}

// Changes fires when Facts would say something else, gathered.
func (c *Collector) Changes() <-chan struct{} { return c.changes }

// Changed is for what the collector cannot see by itself.
func (c *Collector) Changed() { signal(c.raw) }

// Run follows changes until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	watchLinks(ctx, c.raw) // where the kernel cannot tell, the poll finds them
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range c.sources {
		g.Go(func() error {
			follow(ctx, s.source, func() {
				s.mark()
				signal(c.raw)
			})
			return nil
		})
	}
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-c.raw:
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(changeGather):
			}
			select {
			case <-c.raw:
			default:
			}
			signal(c.changes)
		}
	})
	return g.Wait()
}

// Facts returns what the host says of itself now. What cannot be read is left out: facts
// with a hole are better than none. Maps and lists are the caller's.
func (c *Collector) Facts(ctx context.Context) protocol.Inventory {
	if c.constant == nil {
		c.constant = &protocol.Inventory{Version: protocol.Version}
		hostFacts(ctx, c.constant)
		c.busy.milli(ctx, c.constant.CPUs) // what counts is from here on
	}
	inv := *c.constant
	inv.Time = time.Now().UTC()
	loadFacts(ctx, &inv)
	inv.Interfaces = Interfaces()

	inv.Runtimes, inv.Containers = map[string]protocol.Runtime{}, map[string]protocol.Container{}
	var containers, pods []found
	for _, s := range c.sources {
		if !s.refresh(ctx) {
			continue
		}
		inv.Runtimes[s.name()] = s.info
		if s.name() == "cni" {
			pods = append(pods, s.list...)
		} else {
			containers = append(containers, s.list...)
		}
	}
	containers, alone := joinCNI(slices.Clone(containers), pods)
	containers = append(containers, alone...)
	c.usage.measure(inv.Time, containers)
	running := uint64(0)
	for _, f := range containers {
		f.Labels, f.Addresses = maps.Clone(f.Labels), slices.Clone(f.Addresses)
		inv.Containers[f.Runtime+"/"+f.ID] = f.Container
		if f.State == protocol.ContainerRunning {
			running++
		}
	}
	inv.Capacity = &protocol.Capacity{
		CPU:    protocol.AmountOf(uint64(inv.CPUs)*1000, c.busy.milli(ctx, inv.CPUs)),
		Memory: protocol.AmountOf(inv.MemoryTotal, inv.MemoryUsed),
		Pods:   protocol.Amount{Used: running},
	}
	return inv
}

// refresh asks the source if something changed, and reports whether it is there. A
// source that fails keeps its last list and says why.
func (t *tracked) refresh(ctx context.Context) bool {
	if !t.there() {
		t.list = nil
		t.mark()
		return false
	}
	t.mu.Lock()
	dirty := t.dirty
	t.dirty = false
	t.mu.Unlock()
	if !dirty {
		return true
	}
	info, list, err := t.source.list(ctx)
	if err != nil {
		t.mark()
		info.Error = protocol.OneLine(err.Error(), protocol.MaxFactText)
		t.info = info
		return true
	}
	t.info, t.list = info, list
	return true
}
