package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/netns/internal/nf"
)

// Table writes the table, and remembers what it shall be and what it wrote, so that a change costs what changes. What it shall
// be has two halves: what the host is comes with a netmap, by a Part, and what there is of services comes from whoever
// watches backends, by Switch; each changes without the other. Set is both.
//
// Its methods work in the network namespace of the calling thread, need CAP_NET_ADMIN, and may be called concurrently.
type Table struct {
	mu       sync.Mutex
	host     *host // nil: nothing shall be there, or not yet
	live     live
	switched bool     // somebody said what there is of services
	have     *written // nil: not known what is there

	stand *nf.Standing
	stop  context.CancelFunc // ends the listening; nil: nobody listens
	hooks io.Closer          // what others' flush does not end; nil: not held
	noted noted
	meter meter
	lacks *lacking // nil: not known yet
}

// written is what stands in the kernel.
type written struct {
	host  host
	live  live
	epoch epoch
	lacks lacking
}

// NewTable returns a table that knows nothing of what is there: the first write is of all.
func NewTable() *Table { return &Table{stand: nf.NewStanding(TableName)} }

// Set makes the table what the config says. What is open goes on, and each new flow goes by what was or by what is then.
// After an error of the kernel's the table still shall be so, and the next write is of all.
func (t *Table) Set(c Config) error {
	h, err := c.host()
	if err != nil {
		return err
	}
	f, err := newFences(c.Fenced, c.Left)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live.fences = f
	return t.set(&h, c.Services, c.Dead)
}

// Switch is Set of what there is of services alone. Before a Part, or Set, has said what the host is, it is remembered until then.
func (t *Table) Switch(services []Service, dead []Backend) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.set(t.host, services, dead)
}

// set is Set; t.mu is held.
func (t *Table) set(h *host, services []Service, dead []Backend) error {
	l, err := newLive(services, dead, t.live)
	if err != nil {
		return err
	}
	if h != nil {
		known := t.live
		if t.host == nil || !slices.Equal(t.host.ranges, h.ranges) {
			known = live{}
		}
		if err := h.checkRange(l, known); err != nil {
			return err
		}
	}
	t.host, t.live, t.switched = h, l, true
	if h == nil {
		return nil
	}
	return t.write()
}

// setHost is Set of what the host is alone. Before somebody said what there is of services the table stays as an agent left it that is gone.
func (t *Table) setHost(h host) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := h.checkRange(t.live, live{}); err != nil {
		return err
	}
	t.host = &h
	if !t.switched {
		return nil
	}
	return t.write()
}

// is reports whether the table is of such a host.
func (t *Table) is(h host) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.host != nil && t.host.equal(h)
}

// leave has nothing written any more, until somebody says what the host is. The table stays.
func (t *Table) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.host, t.have = nil, nil
	if t.stop != nil {
		t.stop()
		t.stop = nil
	}
	if t.hooks != nil {
		_ = t.hooks.Close()
		t.hooks = nil
	}
}

// listen listens until leave, if nobody does yet.
func (t *Table) listen() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hooks == nil {
		t.hooks, _ = nf.HoldHooks() // without, a flush resets what is open until the table is back
	}
	if t.stop != nil {
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	if _, err := t.stand.Watch(ctx); err != nil {
		stop()
		return err
	}
	t.stop = stop
	return nil
}

// Config is what the table shall be.
func (t *Table) Config() Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Config
	if h := t.host; h != nil {
		c = Config{Interface: h.device, Range: h.ranges, Own: h.own, Local: h.local}
	}
	return t.live.config(c)
}

// Watch tells when others touched the table, or may have: Differs then says so. Changes are gathered while nobody
// receives; the channel is closed when ctx ends. A Part does so by itself.
func (t *Table) Watch(ctx context.Context) (<-chan struct{}, error) { return t.stand.Watch(ctx) }

// Differs reports whether the table is not as it was written, or may not be: where Watch saw others touch it, or its
// chains, rules or sets are others. It changes nothing, and does not look at what is in slots. The next write is of all then.
func (t *Table) Differs() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have == nil {
		return t.switched, nil
	}
	return t.stand.Differs()
}

// How many elements one transaction has. The whole table may be written in any number of them, for its sets are in use only
// from the last one on; a change, which all services of a site may be part of, in as few as can be.
const (
	mostAnew    = 1 << 13
	mostChanged = 1 << 18
)

// write writes what differs from what is there; t.mu is held.
func (t *Table) write() error {
	if t.lacks == nil {
		l := findLacks()
		t.lacks = &l
	}
	next := &written{host: *t.host, live: t.live, lacks: *t.lacks}
	h := t.have
	t.have = nil // until it is known
	err := error(nil)
	if h != nil && !t.stand.Doubt() {
		next.epoch = h.epoch
		if err = t.change(h, next); err == nil {
			t.have = next
			return nil
		}
		// Others have been at it, and that is not heard of yet.
	}
	if err = t.whole(next); err != nil {
		return fmt.Errorf("set nftables table %s: %w", TableName, err)
	}
	t.have = next
	return errors.Join(t.stand.Written(), t.host.freeStrays())
}

// whole writes all of the table, whatever is there. Where that is of another shape, the table is made anew.
func (t *Table) whole(next *written) error {
	sets, chains, err := found()
	if err != nil {
		return err
	}
	for _, name := range sets {
		if i := strings.LastIndexByte(name, '-'); i >= 0 {
			n, _ := strconv.ParseUint(name[i+1:], 10, 31)
			next.epoch = max(next.epoch, epoch(n))
		}
	}
	next.epoch++
	err = t.fill(next)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		b := t.batch()
		b.AddTable()
		b.DelTable()
		if err = t.stand.Commit(b, false); err == nil {
			sets, chains, err = nil, nil, t.fill(next)
		}
	}
	chains = slices.DeleteFunc(chains, func(c string) bool { return slices.Contains(chainNames(), c) })
	if err != nil || len(sets)+len(chains) == 0 {
		return err
	}
	// What is out of use, and what others put there.
	b := t.batch()
	for _, c := range chains {
		b.FlushChain(c)
	}
	for _, c := range chains {
		b.RemoveChain(c)
	}
	for _, name := range sets {
		b.DelSet(name)
	}
	return t.stand.Commit(b, false)
}

func (t *Table) batch() *nf.Batch { return &nf.Batch{Table: TableName} }

// fill writes new sets and what is in them, in as many transactions as it takes, and then, in one, the rules that ask them.
func (t *Table) fill(next *written) error {
	b := t.batch()
	b.AddTable()
	makeSets(b, next.epoch, next.lacks)
	hostSets(b, next.epoch, true, next.host, host{}, next.lacks)
	for _, v6 := range []bool{false, true} {
		b.Elements(next.epoch.set(setDead, v6), true, dead(next.live.dead, nil, v6))
	}
	next.live.fences.write(b, next.epoch, fences{})
	doors(b, next.epoch, next.live.exposed, nil)
	n, pending := 0, map[kind][]nf.Element{}
	first := true // from which on nothing that others did before is left
	put := func() error {
		for k, l := range pending {
			b.Elements(k.name(next.epoch), true, l)
			pending[k] = l[:0]
		}
		err := t.stand.Commit(b, first)
		b, n, first = t.batch(), 0, false
		return err
	}
	for k, e := range next.live.services {
		if e.slots(k) == 0 {
			continue
		}
		x := e.kind(k)
		pending[x] = slotElements(pending[x], k, e, true, func(int) bool { return true })
		if n += e.slots(k); n >= mostAnew {
			if err := put(); err != nil {
				return err
			}
		}
	}
	if err := put(); err != nil {
		return err
	}
	rules(b, next.host, next.epoch, next.lacks)
	return t.stand.Commit(b, false)
}

// change writes what is new in next.
func (t *Table) change(h, next *written) error {
	b := t.batch()
	ruled := !h.host.equal(next.host) // the rules name its device, and an address of its own
	if ruled {
		hostSets(b, next.epoch, false, h.host, next.host, next.lacks)
		hostSets(b, next.epoch, true, next.host, h.host, next.lacks)
		rules(b, next.host, next.epoch, next.lacks)
	}
	for _, v6 := range []bool{false, true} {
		set := next.epoch.set(setDead, v6)
		b.Elements(set, false, dead(h.live.dead, next.live.dead, v6))
		b.Elements(set, true, dead(next.live.dead, h.live.dead, v6))
	}
	next.live.fences.write(b, next.epoch, h.live.fences)
	doors(b, next.epoch, next.live.exposed, h.live.exposed)
	n := 0
	gone, came := map[kind][]nf.Element{}, map[kind][]nf.Element{}
	flush := func() error {
		for k, l := range gone {
			b.Elements(k.name(next.epoch), false, l)
		}
		for k, l := range came {
			b.Elements(k.name(next.epoch), true, l)
		}
		if b.Len() == 0 {
			return nil
		}
		err := t.stand.Commit(b, false)
		b, n = t.batch(), 0
		clear(gone)
		clear(came)
		return err
	}
	for k, l := range differing(h.live.services, next.live.services) {
		for i, e := range l {
			if e == nil || e.slots(k) == 0 {
				continue
			}
			other, m := l[1-i], gone
			if i == 1 {
				m = came
			}
			x := e.kind(k)
			want := func(int) bool { return true }
			if other != nil && other.kind(k) == x {
				want = func(i int) bool { return string(e.slot(k, i)) != string(other.slot(k, i)) }
			}
			before := len(m[x])
			m[x] = slotElements(m[x], k, e, i == 1, want)
			n += len(m[x]) - before
		}
		if n >= mostChanged {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil || !ruled {
		return err
	}
	return t.stand.Written()
}

// differing are services that differ, before and after; nil: it is not there.
func differing(was, want map[key]*entry) map[key][2]*entry {
	out := map[key][2]*entry{}
	for k, e := range was {
		if want[k] != e {
			out[k] = [2]*entry{e, want[k]}
		}
	}
	for k, e := range want {
		if was[k] == nil {
			out[k] = [2]*entry{nil, e}
		}
	}
	return out
}

// dead are the elements for those of a that b has not.
func dead(a, b map[Backend]bool, v6 bool) (out []nf.Element) {
	for x := range a {
		if !b[x] && x.Addr.Addr().Is6() == v6 {
			out = append(out, deadElement(x))
		}
	}
	return out
}

// found are the names of the table's sets and chains that are there.
func found() (sets, chains []string, err error) {
	for _, x := range []struct {
		typ, table, name int
		out              *[]string
	}{
		{unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, &sets},
		{unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, &chains},
	} {
		msgs, err := kernel.AskNft(x.typ, unix.NLM_F_DUMP)
		if err != nil {
			return nil, nil, fmt.Errorf("list what is there: %w", err)
		}
		for _, m := range msgs {
			table, name := "", ""
			for typ, v := range kernel.Attributes(m) {
				switch int(typ) {
				case x.table:
					table = unix.ByteSliceToString(v)
				case x.name:
					name = unix.ByteSliceToString(v)
				}
			}
			if table == TableName {
				*x.out = append(*x.out, name)
			}
		}
	}
	return sets, chains, nil
}
