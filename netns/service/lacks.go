package service

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"causeway/netns"
	"causeway/netns/internal/nf"
)

// lack is something that not every kernel has, from 5.4 on. What needs it is left out of the table there, and all else works.
type lack uint8

const (
	lackReject lack = iota // Linux 5.9
	lackPairs              // Linux 5.6
	lackCount              // a kernel that is built without rules that add to sets
	lacks
)

// lackTexts say what does not work.
var lackTexts = [lacks]string{
	lackReject: "it cannot refuse at prerouting (Linux 5.9 can): connections of pods on a bridge that hands frames to netfilter to a backend that is dead are not reset, and a backend that is a program of this host is not fenced",
	lackPairs:  "it has no sets of pairs of ranges (Linux 5.6 has): a client in one network with its backend, such as a pod that is its own, does not reach it",
	lackCount:  "it has no sets in which rules count: backends that refuse connections are not seen",
}

// lacking says what the kernel lacks.
type lacking [lacks]bool

// Texts say what does not work on this kernel.
func (l lacking) texts() (out []string) {
	for i, is := range l {
		if is {
			out = append(out, lackTexts[i])
		}
	}
	return out
}

// tryTable is there for the moment of a try. As it is called, leave takes it away too.
const tryTable = netns.PartPrefix + "try"

// try makes something in a table of its own, and takes it away again. (Undone transactions tell nothing: where expressions may stand the
// kernel says only when one is done.)
func try(f func(b *nf.Batch)) error {
	b := &nf.Batch{Table: tryTable}
	b.AddTable()
	f(b)
	if err := b.Commit(); err != nil {
		return err
	}
	b = &nf.Batch{Table: tryTable}
	b.DelTable()
	return b.Commit()
}

// tryReject refuses at a hook what no packet is.
func tryReject(b *nf.Batch, hook *nftables.ChainHook) {
	const nobody = 255 // a protocol: reserved
	b.Chain("try", hook, beforeWalls)
	b.Rule("try", nf.Is(nf.Meta(expr.MetaKeyL4PROTO), nobody), nf.TCP, nf.TCPReset)
}

// findLacks tries each, whatever the kernel's version says.
func findLacks() (l lacking) {
	if try(func(*nf.Batch) {}) != nil {
		return l // it takes nothing at all, which writing the table tells
	}
	for i, f := range [lacks]func(b *nf.Batch){
		lackReject: func(b *nf.Batch) { tryReject(b, nftables.ChainHookPrerouting) },
		lackPairs: func(b *nf.Batch) {
			set := sameSet(0, false)
			b.MakeSet(set, 1)
			b.Elements(set.Name, true, pairs([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, nil, false))
		},
		lackCount: func(b *nf.Batch) {
			set := signSets(0, false)[0]
			set.Plain = l[lackPairs] // which was tried by now
			b.MakeSet(set, 1)
			b.Chain("try", nil, 0)
			b.Rule("try", countSign(set.Name, false))
		},
	} {
		l[i] = try(f) != nil
	}
	return l
}

// Lacks says what does not work on this kernel; it is known once the table was written.
func (t *Table) Lacks() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lacks == nil {
		return nil
	}
	return t.lacks.texts()
}
