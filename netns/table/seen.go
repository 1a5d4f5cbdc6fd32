package table

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// seen is what is known of the table in the kernel.
type seen struct {
	table string
	in    *Table // that was put there last; nil: not known

	handles string // of the table, its chains, rules and sets, as they were put there
	clean   uint32 // nftables' generation at which it was as put there; 0: not known

	monitor int                        // a socket that hears of each transaction; -1: none
	heard   uint32                     // the generation up to which it has
	lost    bool                       // some was not heard
	touched map[string]map[point]touch // by set: what became of it since clean
}

// touch is what the last transaction that had a point made of it.
type touch struct {
	there bool
	data  []byte // of a map
}

const (
	// hearing is how long the kernel may take to tell of a transaction that it has made.
	hearing = 200 * time.Millisecond
	// monitorRoom is that of the monitor's socket: some ten thousand elements. What does not fit is lost, and the table listed then.
	monitorRoom = 8 << 20
	mostTouched = 10_000 // of these the table is listed
)

// remake makes the whole table anew.
func (k *seen) remake(t *Table) error {
	k.clean = 0
	before, ok := kernel.NftGeneration()
	n := 0
	for _, s := range t.Sets {
		n += 2 * len(s.Elements)
	}
	if err := commit(n, t.fill); err != nil {
		return err
	}
	if err := k.listen(); err != nil {
		return err
	}
	var err error
	if k.handles, err = kernel.NftHandles(k.table); err != nil {
		return err
	}
	now, known := kernel.NftGeneration()
	if k.heard = now; ok && known && now == before+1 {
		k.clean = now
	} else {
		k.lost = true // others were at it at the same time: what they did is looked for once
	}
	return nil
}

// listen begins to hear what is done from now on.
func (k *seen) listen() error {
	if err := k.mute(); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("listen to nftables: %w", err)
	}
	k.monitor, k.lost, k.touched = fd, false, map[string]map[point]touch{}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, monitorRoom) // or less
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)); err != nil {
		return errors.Join(fmt.Errorf("listen to nftables: %w", err), k.mute())
	}
	return nil
}

// mute ends that.
func (k *seen) mute() error {
	fd := k.monitor
	if k.monitor = -1; fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// differences are how the kernel's table differs from what was put there.
type differences struct {
	gone      bool                      // the whole table
	structure bool                      // it is not the same table, or its chains, rules or sets are not
	known     bool                      // the rest is true
	missing   map[string][]Element      // by set, those of which a point is absent or another one's
	extra     map[string][]point        // that are there and no element's, or with another number
	absent    map[string]map[point]bool // that are not there
}

// differs compares with t, which is what was put there. Where it takes a list of the elements it is made only if list says so; else they are
// not known.
func (k *seen) differs(ctx context.Context, t *Table, list bool) (d differences, err error) {
	now, ok := kernel.NftGeneration()
	if ok && k.clean != 0 && now == k.clean {
		return differences{known: true}, nil
	}
	h, err := kernel.NftHandles(k.table)
	if err != nil {
		return d, err
	}
	if h != k.handles {
		return differences{gone: h == "", structure: true, known: true}, nil
	}
	if ok && k.hearUntil(ctx, now) {
		d = k.judge(t)
	} else if list {
		if err := k.list(t); err != nil {
			return d, err
		}
		d = k.judge(t)
	} else {
		return d, nil
	}
	if len(d.missing)+len(d.extra) == 0 && ok {
		k.clean = now
	}
	return d, nil
}

// judge compares what was touched with t, and forgets what is as it should be.
func (k *seen) judge(t *Table) differences {
	d := differences{known: true, missing: map[string][]Element{}, extra: map[string][]point{}, absent: map[string]map[point]bool{}}
	for _, s := range t.Sets {
		missing, absent := map[Element]bool{}, map[point]bool{}
		for p, x := range k.touched[s.Name] {
			e, wanted := s.at(p)
			switch {
			case x.there && wanted && (!s.Map || p.end || sameValue(x.data, e.Value)), !x.there && !wanted:
				delete(k.touched[s.Name], p)
				continue
			case x.there:
				d.extra[s.Name] = append(d.extra[s.Name], p)
			default:
				absent[p] = true
			}
			if wanted {
				missing[e] = true
			}
		}
		if len(missing) > 0 {
			d.missing[s.Name], d.absent[s.Name] = slices.SortedFunc(maps.Keys(missing), byFirst), absent
		}
	}
	return d
}

// hearUntil hears what was done up to a generation, and says whether it heard all.
func (k *seen) hearUntil(ctx context.Context, generation uint32) bool {
	for end := time.Now().Add(hearing); ; {
		k.hear()
		switch {
		case k.lost || k.monitor < 0:
			return false
		case int32(k.heard-generation) >= 0:
			return true
		case ctx.Err() != nil || time.Now().After(end):
			return false
		}
		unix.Poll([]unix.PollFd{{Fd: int32(k.monitor), Events: unix.POLLIN}}, 20)
	}
}

// hear takes what the kernel has told by now.
func (k *seen) hear() {
	b := make([]byte, 1<<16)
	for k.monitor >= 0 {
		n, from, err := unix.Recvfrom(k.monitor, b, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			k.lost = true
			if !errors.Is(err, unix.ENOBUFS) {
				return
			}
			continue
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // not the kernel
		}
		msgs, err := syscall.ParseNetlinkMessage(b[:n])
		if err != nil {
			k.lost = true
			continue
		}
		for _, m := range msgs {
			if m.Header.Type>>8 == unix.NFNL_SUBSYS_NFTABLES && len(m.Data) >= kernel.NfgenmsgSize {
				k.take(int(m.Header.Type&0xff), m.Data)
			}
		}
	}
}

// take takes one notification.
func (k *seen) take(typ int, b []byte) {
	family, b := b[0], b[kernel.NfgenmsgSize:]
	switch typ {
	case unix.NFT_MSG_NEWGEN:
		for a, v := range kernel.NftAttrs(b) {
			if a == unix.NFTA_GEN_ID && len(v) == 4 {
				k.heard = binary.BigEndian.Uint32(v)
			}
		}
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		table, set := "", ""
		for a, v := range kernel.NftAttrs(b) {
			switch a {
			case unix.NFTA_SET_ELEM_LIST_TABLE:
				table = unix.ByteSliceToString(v)
			case unix.NFTA_SET_ELEM_LIST_SET:
				set = unix.ByteSliceToString(v)
			case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
				if family != unix.NFPROTO_INET || table != k.table {
					return
				}
				for _, e := range kernel.NftAttrs(v) {
					k.touch(set, typ == unix.NFT_MSG_NEWSETELEM, e)
				}
			}
		}
	}
}

// touch notes what became of one element of a notification.
func (k *seen) touch(set string, there bool, b []byte) {
	var p point
	x := touch{there: there}
	for a, v := range kernel.NftAttrs(b) {
		switch a {
		case unix.NFTA_SET_ELEM_KEY:
			p.addr, _ = netip.AddrFromSlice(dataValue(v))
		case unix.NFTA_SET_ELEM_DATA:
			x.data = slices.Clone(dataValue(v))
		case unix.NFTA_SET_ELEM_FLAGS:
			p.end = len(v) == 4 && binary.BigEndian.Uint32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		}
	}
	l := k.touched[set]
	if l == nil {
		l = map[point]touch{}
		k.touched[set] = l
	}
	if l[p] = x; len(l) > mostTouched {
		k.lost = true
	}
}

func dataValue(b []byte) []byte {
	for a, v := range kernel.NftAttrs(b) {
		if a == unix.NFTA_DATA_VALUE {
			return v
		}
	}
	return nil
}

// list reads all elements, as if each that differs had been touched, and hears on from before that.
func (k *seen) list(t *Table) error {
	if err := k.listen(); err != nil {
		return err
	}
	now, ok := kernel.NftGeneration()
	if k.heard = now; !ok {
		k.lost = true
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	for _, s := range t.Sets {
		there, err := kernel.Retry(func() ([]nftables.SetElement, error) { return c.GetSetElements(s.nft(t.nft())) })
		if err != nil {
			return fmt.Errorf("list set %s: %w", s.Name, err)
		}
		l := map[point]touch{}
		for _, e := range s.Elements {
			first, behind := e.points()
			l[first] = touch{}
			if behind.addr.IsValid() {
				l[behind] = touch{}
			}
		}
		for _, x := range there {
			a, _ := netip.AddrFromSlice(x.Key)
			l[point{a, x.IntervalEnd}] = touch{there: true, data: x.Val}
		}
		k.touched[s.Name] = l
	}
	return nil
}
