package service

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/conntrack"
	"causeway/netns/internal/nf"
)

// MaxFences is how many backends may be fenced, and how many flows left.
const MaxFences = 1 << 16

// The sets, and the chains that look into them.
const (
	setFenced   = "fenced"
	setLeft     = "left"
	chainFence  = "fence"  // of what comes out of the tunnel
	chainFenced = "fenced" // it is to a fenced backend
)

// Left are flows of one port of a service to a backend that may not serve it any more, whoever else it serves.
type Left struct {
	VIP     netip.Addr
	Proto   uint8 // 6 or 17
	Port    uint16
	Backend netip.Addr
}

// fences are Config.Fenced and Config.Left. They are never changed.
type fences struct {
	fenced map[Backend]bool
	left   map[Left]bool
}

// newFences checks.
func newFences(fenced []Backend, left []Left) (f fences, err error) {
	if len(fenced) > MaxFences || len(left) > MaxFences {
		return f, fmt.Errorf("service: %d fenced backends and %d left ones: at most %d of each", len(fenced), len(left), MaxFences)
	}
	f = fences{make(map[Backend]bool, len(fenced)), make(map[Left]bool, len(left))}
	for _, b := range fenced {
		if err := b.check(); err != nil {
			return fences{}, err
		}
		f.fenced[b] = true
	}
	for _, l := range left {
		b := Backend{l.Proto, netip.AddrPortFrom(l.Backend, l.Port)}
		if err := b.check(); err != nil {
			return fences{}, err
		}
		if err := plain(l.VIP); err != nil || l.VIP.Is4() != l.Backend.Is4() {
			return fences{}, fmt.Errorf("service: %s is no address that leads to %s", l.VIP, l.Backend)
		}
		f.left[l] = true
	}
	return f, nil
}

// Fence has the host block what comes out of the tunnel to the fenced backends, by whatever address it was sent, and end flows that left
// their service's backend: what comes of one is reset, and of a service's flows what comes back is dropped. When it returns without an
// error the kernel does so; before the first Switch, and before a Part or Set has said what the host is, it is remembered alone.
func (t *Table) Fence(fenced []Backend, left []Left) error {
	f, err := newFences(fenced, left)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live.fences = f; t.host == nil || !t.switched {
		return nil
	}
	return t.write()
}

// Fenced reports whether what Fence said last is what the kernel does, as far as is known.
func (t *Table) Fenced() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.have != nil && maps.Equal(t.have.live.fenced, t.live.fenced) && maps.Equal(t.have.live.left, t.live.left)
}

// End ends flows that left, which Fence has to know of already: conntrack forgets them, so that none goes on when Fence does not say so any more,
// and what comes of one from then on is reset. Clients that are idle are prodded to say something. It returns how many flows there were.
// When it returns without an error all are forgotten; clients may hear of it some seconds later, or when ctx ends. It needs CAP_NET_RAW.
func (t *Table) End(ctx context.Context, left []Left) (n int, err error) {
	f, err := newFences(nil, left)
	if err != nil || len(left) == 0 {
		return 0, err
	}
	d, err := conntrack.NewDeleter()
	if err != nil {
		return 0, err
	}
	defer d.Close()
	var tell []ended
	err = t.each(ctx, func(x conntrack.Flow) error {
		if !f.left[Left{x.To.Addr(), x.Proto, x.To.Port(), x.Answers.Addr()}] {
			return nil
		}
		gone, err := d.Delete(x)
		if gone {
			n++
			if open(x) && len(tell) < maxTold {
				tell = append(tell, ended{x.To, x.From})
			}
		}
		return err
	})
	if err == nil {
		t.tell(tell)
	}
	return n, err
}

// ended is a flow whose client is to hear that it ended.
type ended struct{ from, to netip.AddrPort }

// maxTold is how many clients are told at once that a flow ended; others hear so with the next packet.
const maxTold = 1 << 16

// tell prods clients, once.
func (t *Table) tell(l []ended) {
	p := &prodder{socks: [2]int{-1, -1}}
	defer p.close()
	for _, x := range l {
		if p.prod(x.from, x.to) != nil {
			return
		}
	}
}

// Stands reports whether an earlier agent's table is there, as far as it can be told. Until the first Switch it stays as it is.
func (t *Table) Stands() bool {
	_, chains, err := found()
	return err == nil && len(chains) > 0
}

// fenceSets are the sets of a family.
func fenceSets(e epoch, v6 bool) []nf.Set {
	a := addrType(v6)
	return []nf.Set{
		{Name: e.set(setFenced, v6), Key: []nftables.SetDatatype{a, nftables.TypeInetProto, nftables.TypeInetService}},
		{Name: e.set(setLeft, v6), Key: []nftables.SetDatatype{a, nftables.TypeInetProto, nftables.TypeInetService, a}},
	}
}

// write adds what is in f and not in before, and deletes the reverse.
func (f fences) write(b *nf.Batch, e epoch, before fences) {
	for _, v6 := range []bool{false, true} {
		b.Elements(e.set(setFenced, v6), false, dead(before.fenced, f.fenced, v6))
		b.Elements(e.set(setFenced, v6), true, dead(f.fenced, before.fenced, v6))
		b.Elements(e.set(setLeft, v6), false, lefts(before.left, f.left, v6))
		b.Elements(e.set(setLeft, v6), true, lefts(f.left, before.left, v6))
	}
}

// lefts are the elements for those of a that b has not.
func lefts(a, b map[Left]bool, v6 bool) (out []nf.Element) {
	for x := range a {
		if !b[x] && x.VIP.Is6() == v6 {
			k := append(x.VIP.AsSlice(), x.Proto, 0, 0, 0)
			k = append(binary.BigEndian.AppendUint16(k, x.Port), 0, 0)
			out = append(out, nf.Element{Key: append(k, x.Backend.AsSlice()...)})
		}
	}
	return out
}

// fence writes what is not let through to fenced backends. What is sent to one's own address meets it as well: by then nothing tells
// a flow that its client's node translated from others.
func fence(b *nf.Batch, device string, e epoch) {
	b.Rule(chainArrives, nf.Device(expr.MetaKeyIIFNAME, device), nf.Jump(chainFence))
	for _, v6 := range []bool{false, true} {
		next := after(v6)
		b.Rule(chainFence, nf.Family(v6), to(v6)(regs), nf.Meta(expr.MetaKeyL4PROTO)(next), nf.Payload(expr.PayloadBaseTransportHeader, 2, 2)(next+1),
			[]expr.Any{nf.Lookup(e.set(setFenced, v6), regs)}, nf.GoTo(chainFenced))
	}
	b.Rule(chainFenced, nf.Counter)
	b.Rule(chainFenced, nf.TCP, nf.TCPReset)
	b.Rule(chainFenced, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: icmpxPort}})
}

// leavesFlow writes that flows of a family that left are at an end.
func leavesFlow(b *nf.Batch, e epoch, v6 bool) {
	next := after(v6)
	b.Rule(chainFlow+nf.Suffix(v6), nf.CtTo(v6, nf.Original)(regs), nf.CtProto(next), nf.CtDir(expr.CtKeyPROTODST, nf.Original)(next+1), nf.CtFrom(v6, nf.Reply)(next+2),
		[]expr.Any{nf.Lookup(e.set(setLeft, v6), regs)}, nf.GoTo(chainDead))
}
