// Package desired is what is wanted of a node: the netmap that it holds and how old that is, the
// pinned keys of peers, who is gone for good, the hub list, and the mark of the cluster's state. It
// judges what comes by what it holds and by the cluster key, and keeps it on disk.
//
//	d, err := desired.New(cfg)
//	taken, refusal := d.Take(netmap)
//	w := d.Wish() // what the host shall be like
//
// It knows neither the host nor how a hub is reached. What only grows old by the time that goes by
// (package clock) is asked for anew.
package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go4.org/netipx"

	"causeway/agent/clock"
	"causeway/agent/config"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/internal/cause"
	"causeway/internal/shortage"
	"causeway/protocol"
)

// Config is what a Desired is made of.
type Config struct {
	Store *identity.Store // of a joined node; stays the caller's to close
	Own   *identity.Own
	Live  *config.Live
	Board *health.Board
	Log   zerolog.Logger
	Wall  func() time.Time  // the wall clock, for what people read
	Boot  func() clock.Boot // the boot clock
}

// Desired is what is wanted of one node. Its methods may be called concurrently.
type Desired struct {
	Config
	clock *clock.Clock // what time it is for all that grows old
	file  file

	mu       sync.Mutex // of what is below, in memory: nothing waits under it
	now      State
	marked   *protocol.StateMark // the newest that came by itself in this run
	session  bool                // a hub stands by what is held, now
	stored   time.Time           // by the clock, as it is on disk
	grantDue bool                // what is granted is not on disk, though it was learned
	watchers []chan struct{}     // of the hub list
}

// State is all that is held at a moment. Nothing that it points to is ever changed.
type State struct {
	Held     *identity.StoredNetmap // nil: no hub has sent one yet
	Pins     map[protocol.NodeNumber]identity.Pin
	PinsLost error                        // what the pins were is not known: no peer's key is believed
	Gone     map[protocol.NodeNumber]bool // nodes that left or were revoked
	Said     []protocol.SignedGoneList    // which say so
	Hubs     protocol.HubList
	Signed   protocol.SignedHubList // Hubs, as they came
	Shown    time.Time              // when Hubs were last shown to be the newest, by this or an earlier run; zero: never
}

// Revoked reports whether a hub has told this node that it is none any more.
func (s State) Revoked() bool { return s.Held != nil && s.Held.Revoked }

// Netmap is the one held; the zero one if there is none.
func (s State) Netmap() (n protocol.Netmap) {
	if s.Held != nil {
		n = s.Held.Netmap
	}
	return n
}

// New reads what an earlier run has left. A netmap that does not read is none, unless that is for
// a shortage, which is an error, as a hub list that does not read is.
func New(cfg Config) (*Desired, error) {
	id := cfg.Own.Now()
	d := &Desired{Config: cfg}
	d.now.Signed, d.now.Shown = id.HubList, id.HubListConfirmed
	var err error
	if d.now.Hubs, err = id.HubList.Open(id.Pin); err != nil {
		return nil, fmt.Errorf("hub list of %s: %w; join again with 'causeway-agent join --replace TOKEN'", cfg.Store.Dir(), err)
	}
	d.clock = clock.New(cfg.Wall, cfg.Boot, clock.State{}, d.now.Hubs.NotBefore)
	if err := d.load(id); err != nil {
		return nil, err
	}
	d.clock.Floor(d.now.Hubs.NotBefore)
	return d, nil
}

// load reads the last netmap and the pins.
func (d *Desired) load(id identity.Identity) error {
	d.loadPins()
	held, err := d.Store.Netmap()
	switch {
	case shortage.Is(err):
		return err
	case err != nil:
		d.Log.Error().Err(err).Msg("the stored netmap does not read, waiting for a hub's")
		return nil
	case held != nil && held.Netmap.Self.Number != id.Number:
		d.Log.Warn().Msg("the stored netmap is another node's, waiting for a hub's")
		return nil
	case held != nil:
		d.now.Held, d.stored = held, held.Clock.Time
		d.clock = clock.New(d.Wall, d.Boot, held.Clock, held.Confirmed)
		for _, l := range held.Gone {
			if why := d.TakeGone(l); why != "" {
				d.Log.Warn().Str("err", why).Msg("a stored list of gone nodes is not used")
			}
		}
	}
	for _, m := range d.Store.Mended() {
		d.Log.Warn().Err(m).Msg("a state file was damaged")
	}
	return nil
}

// Now is what is held now.
func (d *Desired) Now() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

// hold changes the netmap held, which there is, or what is known of it. d.mu is held.
func (d *Desired) hold(change func(*identity.StoredNetmap)) {
	h := *d.now.Held
	change(&h)
	d.now.Held = &h
}

// Have is the version of the netmap held; zero for none.
func (d *Desired) Have() protocol.NetmapVersion { return d.Now().Netmap().NetmapVersion }

// HaveSum is the digest of the peers of the netmap held; nil for none.
func (d *Desired) HaveSum() []byte {
	held := d.Now().Held
	if held == nil {
		return nil
	}
	sum, err := protocol.SumPeers(held.Netmap.Peers)
	if err != nil {
		return nil // the hub sends them, then
	}
	return sum[:]
}

// Announced are the routes that the node announces: those of its config and those that came with
// its token.
func (d *Desired) Announced() []netip.Prefix {
	out := slices.Clone(d.Live.Now().Routes)
	for _, r := range d.Now().Netmap().Self.Routes {
		out = append(out, r.Prefix)
	}
	slices.SortFunc(out, netipx.ComparePrefix)
	return slices.Compact(out)
}

// Name is the node's name: the hub's word, as an operator may have renamed it since it joined.
func (d *Desired) Name() string {
	if n := d.Now().Netmap().Self.Name; protocol.ValidName(n) {
		return n
	}
	return d.Own.Now().Name
}

// Wish is what the host shall be like, at a moment.
type Wish struct {
	State
	Expired bool // the netmap is older than it may get without a hub
}

// Wish is what the host shall be like now. The first time it may wait for the disk.
func (d *Desired) Wish() Wish {
	d.learnGrant()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stand() // a clock set right meanwhile makes nothing old that a hub stands by
	return Wish{d.now, d.expired()}
}

// Expired reports whether the netmap is older than it may get without a hub, whatever the host's
// clock was set to.
func (d *Desired) Expired() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired()
}

// Cause is why the netmap's condition does not hold, empty if it does: for what the host made of
// it when it was applied last.
func (d *Desired) Cause(expired bool, refused []protocol.RefusedPart) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	held, whole := d.now.Held, refusedWhole(refused)
	switch {
	case held == nil:
		return "no netmap yet"
	case held.Revoked:
		return "this node was revoked: no peer is reached; join again with a new token, or leave"
	case d.now.PinsLost != nil:
		return fmt.Sprintf("pinned keys of peers: %s; no peer is reached, since any key would do: %s, or give up what was pinned: 'rm -r %s', and the next keys seen are", d.now.PinsLost, cause.Cure(d.now.PinsLost, "restore "+d.Store.PinsFile()), d.Store.PinsFile())
	case expired:
		return fmt.Sprintf("no hub since %s, which is longer than the netmap's max_age of %s: no peer is reached", held.Confirmed.Format(time.RFC3339), held.Netmap.MaxAge)
	case whole != "":
		return whole
	case held.Netmap.MaxAge > 0 && d.age() > held.Netmap.MaxAge/2:
		return fmt.Sprintf("no hub since %s; peers are dropped at %s", held.Confirmed.Format(time.RFC3339), held.Confirmed.Add(held.Netmap.MaxAge).Format(time.RFC3339))
	}
	return ""
}

// refusedWhole names the first peer, or the netmap, that was refused as a
// whole; empty if there is none. A single prefix, or item, that is refused is this
// host's own choice and no fault: the netmap's view and the hub show it.
func refusedWhole(l []protocol.RefusedPart) string {
	for _, r := range l {
		switch {
		case r.Prefix != "", r.Kind != "":
		case r.Peer == 0:
			return "the netmap was refused: " + r.Reason
		default:
			return fmt.Sprintf("node %d was refused: %s", r.Peer, r.Reason)
		}
	}
	return ""
}
