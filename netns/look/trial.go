package look

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/netns/internal/kernel"
)

// Whether pods are reached by the tunnel, and reach it, is tried and not read off rules: a
// packet goes the way that a peer's would, another the way of one that a pod sends, through
// all that the host's kernel has on that way, whoever put it there. Both are counted and
// dropped by chains of ours right before they would leave the host: no pod and no peer
// gets one, nothing remembers them.
//
//	in    written to the TUN device; counted at postrouting, about to leave to the pod
//	out   written there as well, and redirected (tc-mirred(8)) to the interface that the pod is
//	      behind as if it had come by that; counted at postrouting, about to enter the tunnel.
//	      A link without a carrier, as a container bridge that no container is on, is left out
//
// A probe is the SYN of a connection, known by two random words of its TCP header that
// nobody else sees. One that a firewall rejects makes the kernel answer: such answers are dropped too.

// Bounds of a trial.
const (
	mostTargets = 32 // addresses of each round, half of each range's
	trialWait   = 100 * time.Millisecond
	trialLooks  = 3 // at least, on a host that is busy
	trialRounds = 2 // what did not come through is tried again, before it counts
)

// trialFilter is the priority of our tc filters at the TUN device.
const trialFilter = 0xca5e

// Inject gives the kernel a packet as one that came out of the tunnel.
type Inject func(packet []byte) error

// Trial is what became of probes.
type Trial struct {
	Whole   bool   // each range of the plan was tried, both ways where somebody is behind the host's link
	Tried   int    // probes
	Blocked string // what does not come through, and what mends it; empty: all did
}

// Try tries whether packets pass between the tunnel and what the last applied plan has
// behind this host. What Docker drops and leaves a place to open is opened and tried again.
func (h *Host) Try(ctx context.Context, inject Inject) (Trial, error) {
	h.trying.Lock()
	defer h.trying.Unlock()
	p := h.host.Last()
	if !netns.HasIPv6() {
		p = p.Without6()
	}
	link, err := p.Device()
	if err != nil || link == nil || link.Attrs().Flags&unix.IFF_UP == 0 {
		return Trial{}, err
	}
	probes, whole := probes(ctx, p)
	t, err := try(ctx, p, link, probes, inject)
	if err != nil || len(t) == 0 {
		return Trial{Whole: whole && err == nil && len(probes) > 0, Tried: len(probes)}, err
	}
	if opened, err := h.host.OpenFirewalls(ctx, p); err != nil {
		return Trial{}, err
	} else if opened {
		if t, err = try(ctx, p, link, t, inject); err != nil {
			return Trial{}, err
		}
	}
	out := Trial{Whole: whole, Tried: len(probes)}
	if len(t) == 0 {
		return out, nil
	}
	if from := anotherSource(ctx, p, link, t[0], inject); from.IsValid() {
		out.Blocked = translated(ctx, p, t[0], from)
	} else {
		out.Blocked = blocked(ctx, p, t[0])
	}
	return out, nil
}

// try sends probes and returns those that did not come through in any round.
func try(ctx context.Context, p netns.Plan, link netlink.Link, probes []probe, inject Inject) ([]probe, error) {
	for range trialRounds {
		if len(probes) == 0 {
			break
		}
		secret := newSecret()
		err := tryOnce(ctx, link, probes, secret, trialRules(p, probes, secret), inject, func() (bool, error) { return counted(ctx, probes) })
		if err != nil {
			return nil, err
		}
		probes = slices.DeleteFunc(slices.Clone(probes), func(b probe) bool { return b.passed })
	}
	return probes, nil
}

func newSecret() uint32 {
	var word [4]byte
	rand.Read(word[:])
	return binary.BigEndian.Uint32(word[:])
}

// tryOnce sends probes while rules stand, and looks until all has been seen or the wait is over.
func tryOnce(ctx context.Context, link netlink.Link, probes []probe, secret uint32, rules string, inject Inject, look func() (all bool, err error)) error {
	if _, err := kernel.Run(ctx, rules, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("set nftables table %s: %w", netns.TrialTable, err)
	}
	defer kernel.Run(context.WithoutCancel(ctx), dropTrial, "nft", "-f", "-")
	undo, err := redirect(link, probes, secret)
	defer undo()
	if err != nil {
		return err
	}
	for _, b := range probes {
		if err := inject(b.packet(secret)); err != nil {
			return err
		}
	}
	end := time.Now().Add(trialWait)
	for n := 1; ; n++ {
		all, err := look()
		if err != nil || all || n > trialLooks && time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// dropTrial takes the table of a trial away.
const dropTrial = "add table inet " + netns.TrialTable + "\ndelete table inet " + netns.TrialTable + "\n"

// trialRules count and drop the probes. None of them leaves the host, whichever way it goes,
// and no answer to one that a firewall rejects.
func trialRules(p netns.Plan, probes []probe, secret uint32) string {
	var b strings.Builder
	t := "inet " + netns.TrialTable
	b.WriteString(dropTrial + "add table " + t + "\n")
	fmt.Fprintf(&b, "add chain %s leaving { type filter hook postrouting priority 2147483646; policy accept; }\n", t)
	fmt.Fprintf(&b, "add chain %s arriving { type filter hook input priority -2147483647; policy accept; }\n", t)
	fmt.Fprintf(&b, "add chain %s answers { type filter hook output priority -2147483647; policy accept; }\n", t)
	fmt.Fprintf(&b, "add chain %s marks { type filter hook prerouting priority -2147483647; policy accept; }\n", t)
	fmt.Fprintf(&b, "add rule %s marks tcp flags syn tcp ackseq %d meta mark set %d\n", t, secret, netns.TrialMark)
	for _, x := range probes {
		dev, from, to := x.leaves(p)
		f := kernel.NftFamily(to)
		fmt.Fprintf(&b, "add rule %s leaving tcp ackseq %d tcp sequence %d oifname %q %s saddr %s %s daddr %s counter drop\n", t, secret, x.id, dev, f, from, f, to)
	}
	for _, c := range []string{"leaving", "arriving"} {
		fmt.Fprintf(&b, "add rule %s %s tcp flags syn tcp ackseq %d drop\n", t, c, secret)
	}
	for _, x := range probes {
		fmt.Fprintf(&b, "add rule %s answers tcp flags & rst == rst tcp ackseq %d drop\n", t, x.id+1)
	}
	// The packet that an error is about follows its 8 bytes: 20 or 40 of IP, and TCP's.
	fmt.Fprintf(&b, "add rule %s answers icmp type destination-unreachable @th,%d,32 %d drop\n", t, (8+20+8)*8, secret)
	fmt.Fprintf(&b, "add rule %s answers icmpv6 type destination-unreachable @th,%d,32 %d drop\n", t, (8+40+8)*8, secret)
	return b.String()
}

// counted notes which probes were about to leave where they should, and whether all were.
func counted(ctx context.Context, probes []probe) (all bool, err error) {
	text, err := kernel.Run(ctx, "", "nft", "-j", "list", "chain", "inet", netns.TrialTable, "leaving")
	if err != nil {
		return false, fmt.Errorf("list nftables table %s: %w", netns.TrialTable, err)
	}
	var list struct {
		Nftables []struct {
			Rule *struct {
				Expr []struct {
					Match   *struct{ Right any }
					Counter *struct{ Packets uint64 }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return false, errors.New("nft lists what does not read")
	}
	for _, e := range list.Nftables {
		if e.Rule == nil || len(e.Rule.Expr) < 2 || e.Rule.Expr[1].Match == nil {
			continue
		}
		id, _ := e.Rule.Expr[1].Match.Right.(float64)
		for _, x := range e.Rule.Expr {
			for i := range probes {
				if x.Counter != nil && x.Counter.Packets > 0 && probes[i].id == uint32(id) {
					probes[i].passed = true
				}
			}
		}
	}
	return !slices.ContainsFunc(probes, func(b probe) bool { return !b.passed }), nil
}

// redirect has the kernel take probes that stand for a pod's for ones that came by the
// pod's interface. Call undo in any case.
func redirect(link netlink.Link, probes []probe, secret uint32) (undo func(), err error) {
	undo = func() {}
	if !slices.ContainsFunc(probes, func(b probe) bool { return b.out }) {
		return undo, nil
	}
	index := link.Attrs().Index
	if err := kernel.AddClsact(link); err != nil {
		return undo, err
	}
	var added []*netlink.U32
	undo = func() {
		for _, f := range added {
			netlink.FilterDel(f)
		}
	}
	for _, b := range probes {
		if !b.out {
			continue
		}
		to, err := kernel.LinkByName(b.dev)
		if err != nil || to == nil {
			return undo, err
		}
		tcp, proto := int32(20), uint16(unix.ETH_P_IP)
		if b.pod.Is6() {
			tcp, proto = 40, unix.ETH_P_IPV6
		}
		f := &netlink.U32{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: trialFilter, Protocol: proto},
			Sel: &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Nkeys: 2, Keys: []netlink.TcU32Key{
				{Mask: 0xffffffff, Val: b.id, Off: tcp + 4}, {Mask: 0xffffffff, Val: secret, Off: tcp + 8}}},
			Actions: []netlink.Action{&netlink.MirredAction{
				ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN},
				MirredAction: netlink.TCA_INGRESS_REDIR, Ifindex: to.Attrs().Index}},
		}
		if proto == unix.ETH_P_IPV6 {
			f.Priority++ // a priority is of one protocol
		}
		if err := netlink.FilterAdd(f); err != nil {
			return undo, fmt.Errorf("redirect to %s: %w", b.dev, err)
		}
		added = append(added, f)
	}
	return undo, nil
}
