package look

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Whether policies hold is tried with packets that nothing lets off: no mark, no rule of ours lets them pass. They are
// counted before and past the walls of both hosts, by the table of trials, and dropped
// right behind the receiver's wall, so that nobody gets one.
//
//	own      a packet of the host itself: by a socket, through output
//	behind   of somebody behind the host: written to the TUN device and redirected (tc-mirred(8)) to the
//	         interface that he is behind, as one that came by it: through forward
//	second   written to the TUN device and redirected out of it, so that it goes to the engine at once: past
//	         all that the sender's kernel has, to try what is behind it. Only who may write to
//	         the TUN device and set tc filters can do so: there is no door that stays

// Priorities of our counting chains, around the wall's (netns/policy: prerouting -140).
const (
	beforeWall = -141
	pastWall   = -139
)

// proveWait is how long a trial of policies waits for one that goes on.
const proveWait = 3 * time.Second

// proving is the trial of policies that goes on.
type proving struct {
	protocol.ProveWatch
	plan   netns.Plan
	link   netlink.Link
	inject Inject

	mu   sync.Mutex
	sent bool
}

// Prove counts packets while ctx lasts; it calls ready once it does. One goes on at a time.
func (h *Host) Prove(ctx context.Context, w protocol.ProveWatch, inject Inject, ready func()) error {
	if err := h.takeTurn(ctx); err != nil {
		return err
	}
	defer h.trying.Unlock()
	p := h.host.Last()
	link, err := p.Device()
	if err != nil {
		return err
	}
	if link == nil || link.Attrs().Flags&unix.IFF_UP == 0 {
		return errors.New("the tunnel's interface is not up")
	}
	if _, err := kernel.Run(ctx, proveRules(p.Interface, w), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("set nftables table %s: %w", netns.TrialTable, err)
	}
	defer kernel.Run(context.WithoutCancel(ctx), dropTrial, "nft", "-f", "-")
	if err := inject(selfTest(p, w.Secret)); err != nil {
		return err
	}
	h.proving.Store(&proving{ProveWatch: w, plan: p, link: link, inject: inject})
	defer h.proving.Store(nil)
	ready()
	<-ctx.Done()
	return nil
}

// takeTurn waits a while for a trial that goes on.
func (h *Host) takeTurn(ctx context.Context) error {
	end := time.NewTimer(proveWait)
	defer end.Stop()
	for t := time.NewTicker(20 * time.Millisecond); ; {
		if h.trying.TryLock() {
			t.Stop()
			return nil
		}
		select {
		case <-t.C:
			continue
		case <-end.C:
		case <-ctx.Done():
		}
		t.Stop()
		return errors.New("another trial goes on at this node; try again")
	}
}

// now is the trial that goes on, if it has this secret.
func (h *Host) now(secret uint32) (*proving, error) {
	if g := h.proving.Load(); g != nil && g.Secret == secret {
		return g, nil
	}
	return nil, errors.New("no such trial goes on at this node")
}

// match is what a packet is known by.
func match(p protocol.ProvePacket, token, secret uint32) string {
	f := kernel.NftFamily(p.To)
	at := fmt.Sprintf("%s daddr %s ", f, p.To)
	switch p.Proto {
	case protocol.ProtoTCP:
		return at + fmt.Sprintf("tcp flags & (syn | ack) == syn tcp dport %d tcp sequence %d", p.Port, token)
	case protocol.ProtoUDP:
		return at + fmt.Sprintf("udp dport %d @th,64,64 %d", p.Port, uint64(token)<<32|uint64(secret))
	}
	if p.To.Is6() {
		return at + fmt.Sprintf("icmpv6 type echo-request @th,64,64 %d", uint64(token)<<32|uint64(secret))
	}
	return at + fmt.Sprintf("icmp type echo-request @th,64,64 %d", uint64(token)<<32|uint64(secret))
}

// What a rule counts, the first letter of its comment; the token follows.
const (
	sawBegan     = "b"
	sawEntered   = "e"
	sawElsewhere = "x"
	sawCame      = "c"
	sawPassed    = "p"
	sawSelf      = "s"
)

// proveRules count the packets of a trial and let none of them go anywhere but into the tunnel, and no answer of a wall to one.
func proveRules(dev string, w protocol.ProveWatch) string {
	var b strings.Builder
	t := "inet " + netns.TrialTable
	b.WriteString(dropTrial + "add table " + t + "\n")
	for _, c := range []struct {
		name, hook string
		priority   int
	}{{"output", "output", -400}, {"from", "prerouting", -400}, {"leaving", "postrouting", 2147483646}, {"came", "prerouting", beforeWall}, {"passed", "prerouting", pastWall}} {
		fmt.Fprintf(&b, "add chain %s %s { type filter hook %s priority %d; policy accept; }\n", t, c.name, c.hook, c.priority)
	}
	rule := func(chain, match, what string, token uint32, then string) {
		fmt.Fprintf(&b, "add rule %s %s %s counter %s comment \"%s%d\"\n", t, chain, match, then, what, token)
	}
	in, out := fmt.Sprintf("iifname %q ", dev), fmt.Sprintf("oifname %q ", dev)
	rule("came", in+fmt.Sprintf("udp dport 9 @th,64,64 %d", uint64(w.Secret)<<32|uint64(w.Secret)), sawSelf, w.Secret, "drop")
	for _, p := range w.Send {
		m := match(p, p.Token, w.Secret)
		rule("output", m, sawBegan, p.Token, "")
		rule("from", fmt.Sprintf("iifname != %q ", dev)+m, sawBegan, p.Token, "")
		rule("leaving", out+m, sawEntered, p.Token, "accept")
		rule("leaving", m, sawElsewhere, p.Token, "drop")
		for _, token := range []uint32{p.Token, p.Behind} { // that no filter took
			fmt.Fprintf(&b, "add rule %s came %s%s drop\n", t, in, match(p, token, w.Secret))
		}
		answers(&b, t, p, p.Token)
	}
	for _, p := range w.Receive {
		for _, token := range []uint32{p.Token, p.Behind} {
			m := in + match(p, token, w.Secret)
			rule("came", m, sawCame, token, "")
			rule("passed", m, sawPassed, token, "drop")
			answers(&b, t, p, token)
		}
	}
	return b.String()
}

// answers drops what a wall answers to a packet: a reset, or an error which has the packet's first words inside.
func answers(b *strings.Builder, table string, p protocol.ProvePacket, token uint32) {
	switch {
	case p.Proto == protocol.ProtoTCP:
		fmt.Fprintf(b, "add rule %s output tcp flags & rst == rst tcp ackseq %d drop\n", table, token+1)
	case p.To.Is6():
		fmt.Fprintf(b, "add rule %s output icmpv6 type destination-unreachable @th,%d,32 %d drop\n", table, (8+40+8)*8, token)
	default:
		fmt.Fprintf(b, "add rule %s output icmp type destination-unreachable @th,%d,32 %d drop\n", table, (8+20+8)*8, token)
	}
}

// ProveSeen says what was counted so far.
func (h *Host) ProveSeen(ctx context.Context, secret uint32) (out protocol.ProveSeens, err error) {
	g, err := h.now(secret)
	if err != nil {
		return out, err
	}
	text, err := kernel.Run(ctx, "", "nft", "-j", "list", "table", "inet", netns.TrialTable)
	if err != nil {
		return out, fmt.Errorf("list nftables table %s: %w", netns.TrialTable, err)
	}
	var list struct {
		Nftables []struct {
			Rule *struct {
				Comment string
				Expr    []struct{ Counter *struct{ Packets uint64 } }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return out, errors.New("nft lists what does not read")
	}
	saw := map[string]bool{}
	for _, e := range list.Nftables {
		if e.Rule == nil {
			continue
		}
		for _, x := range e.Rule.Expr {
			saw[e.Rule.Comment] = saw[e.Rule.Comment] || x.Counter != nil && x.Counter.Packets > 0
		}
	}
	at := func(what string, token uint32) bool { return saw[fmt.Sprintf("%s%d", what, token)] }
	out.Counts = at(sawSelf, secret)
	for _, p := range g.Send {
		out.Seen = append(out.Seen, protocol.ProveSeen{Token: p.Token, Began: at(sawBegan, p.Token), Entered: at(sawEntered, p.Token), Elsewhere: at(sawElsewhere, p.Token)})
	}
	for _, p := range g.Receive {
		out.Seen = append(out.Seen, protocol.ProveSeen{Token: p.Token, Came: at(sawCame, p.Token), Passed: at(sawPassed, p.Token), BehindCame: at(sawCame, p.Behind), BehindPassed: at(sawPassed, p.Behind)})
	}
	return out, nil
}

// selfTest is a packet that shows that what comes out of the tunnel is counted.
func selfTest(p netns.Plan, secret uint32) []byte {
	from, to := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for _, o := range p.Overlay {
		if o.Is4() {
			to = o
		}
	}
	return provePacket(protocol.ProvePacket{Proto: protocol.ProtoUDP, Port: 9, To: to}, from, secret, secret)
}
