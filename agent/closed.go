package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"causeway/agent/debug"
	"causeway/agent/health"
	"causeway/agent/held"
	"causeway/agent/needs"
	"causeway/agent/netmapcheck"
	"causeway/internal/shortage"
	"causeway/netns"
	"causeway/protocol"
)

// loadBook reads which ranges were ever routed. A damaged file stops nothing and opens
// nothing: what the kernel has of an earlier run (recallRanges) and the stored netmap
// stay closed or routed, and the file is made anew. An error is a shortage: the file may
// be good, and must stay.
func (a *Agent) loadBook() error {
	b, good, err := held.Load(a.cfg.Store.HeldFile())
	if shortage.Is(err) {
		return err
	}
	if err != nil {
		a.log.Error().Err(err).Msg("the list of ranges that were routed is damaged; those of the kernel and of the stored netmap are kept closed")
	}
	a.book, a.bookNew, a.bookLost, a.bookStored = b, !good && a.want.Now().Held != nil, !good, good && err == nil
	return nil
}

// recallRanges adds what an earlier run routed, as the kernel has it: also what a file
// that is damaged, or an older agent without one, does not tell. What stayed outside the
// tunnel then is recalled with it, where no file says.
func (a *Agent) recallRanges(ctx context.Context) {
	l, err := a.host.Ranges(ctx, a.hostConfig(nil, nil, nil))
	if err != nil {
		a.log.Warn().Err(err).Msg("routes of an earlier run were not read")
		return
	}
	a.applyMu.Lock()
	defer a.applyMu.Unlock()
	var apart []held.Exception
	if a.bookLost {
		addrs, err := a.host.Apart(ctx, a.hostConfig(nil, nil, nil))
		if err != nil {
			a.log.Warn().Err(err).Msg("what an earlier run kept outside the tunnel was not read")
		}
		for _, x := range addrs {
			apart = append(apart, held.Exception{Addr: x, What: "outside the tunnel before"})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	l = slices.DeleteFunc(l, func(p netip.Prefix) bool {
		return protocol.CheckPrefix(p) != nil || slices.ContainsFunc(a.want.Now().Hubs.Overlay, p.Overlaps)
	})
	a.book = a.book.Close(l, a.now()).Remember(apart)
}

// bound tells the check what was routed before, and which addresses stay outside.
// Called with applyMu.
func (a *Agent) bound(ctx context.Context, in *netmapcheck.Input) {
	used, gateways, hubs := a.needed(ctx)
	if a.bookNew {
		// An agent without such a list routed these: nothing of it is new, and what the
		// host relies on goes where it went.
		b := a.book.Close(netmapcheck.Check(*in).Routes, a.now())
		a.mu.Lock()
		a.book, a.bookNew = b, false
		a.mu.Unlock()
	}
	in.Kept = a.book.Except(used)
	in.Ways = netmapcheck.Ways(in.Kept, gateways, hubs)
	in.Bound = &netmapcheck.Bound{Routed: held.NewCover(a.book.Prefixes()), Room: a.book.Room()}
}

// needed is what this host relies on outside the tunnel, and of that the gateways and hubs.
func (a *Agent) needed(ctx context.Context) (used []held.Exception, gateways, hubs []netip.Addr) {
	gateways, err := a.host.Gateways(ctx, a.hostConfig(nil, nil, nil))
	if err != nil {
		a.log.Warn().Err(err).Msg("default gateways were not read")
	}
	c := needs.Config{Gateways: gateways, Hubs: needs.HubAddrs(a.want.Now().Hubs), Proxy: a.cfg.Settings.Proxy, Getenv: os.Getenv}
	return needs.Find(c), gateways, c.Hubs
}

// close adds to c what is closed and what stays the host's own, for what was decided. It
// returns the book for then. Without knowing the host's routes all stays as it was.
// Called with applyMu.
func (a *Agent) close(c *netns.Config, x *applying) (held.Book, []held.Exception) {
	set, in, res := a.live.Now(), x.in, x.res
	own := slices.DeleteFunc(slices.Clone(res.Local), func(p netip.Prefix) bool { return slices.Contains(res.Bare, p) })
	next, apart := a.book, []held.Exception(nil)
	if x.blind {
		a.mu.Lock()
		c.Except, apart = a.plan.Except, a.apart
		a.mu.Unlock()
	} else {
		next = a.book.Follow(res.Routes, own, set.Release, a.now())
		c.Except, apart = netmapcheck.Exceptions(netmapcheck.Ground{Ranges: next.Prefixes(), Routes: res.Routes, Own: own, Named: in.Named, Foreign: x.foreign, Kept: in.Kept, Ways: in.Ways})
		next = next.Remember(apart)
	}
	c.Bare = res.Bare
	c.Held = slices.Concat(in.Hubs.Overlay, next.Prefixes())
	if !netns.HasIPv6() {
		v6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
		c.Held = slices.DeleteFunc(c.Held, v6)
		c.Except = slices.DeleteFunc(slices.Clone(c.Except), func(x netns.Exception) bool { return v6(x.Prefix) })
	}
	return next, apart
}

// keepBook stores a book, before anything is routed by it. The kernel keeps it too, so
// that a full disk opens nothing. Called with applyMu.
func (a *Agent) keepBook(next held.Book) error {
	a.mu.Lock()
	changed, left := !next.Equal(a.book) || !a.bookStored, a.own.Left()
	before := a.book
	a.book = next
	a.mu.Unlock()
	if !changed || left || len(next.Ranges) == 0 && len(before.Ranges) == 0 {
		return nil
	}
	known := make(map[held.Range]bool, len(before.Ranges))
	for _, r := range before.Ranges {
		known[r] = true
	}
	for _, r := range next.Closed() {
		if !known[r] {
			a.log.Warn().Str("prefix", r.Prefix.String()).Msg("no peer has this range any more: it is held closed until one has, or 'causeway-agent release' lets it go")
		}
	}
	err := held.Save(a.cfg.Store.HeldFile(), next)
	a.bookStored = err == nil
	if err != nil {
		a.board.SetError(health.State, err)
	}
	return err
}

// release lets closed ranges go, for whoever may use the debug socket.
func (a *Agent) release(ctx context.Context, p netip.Prefix) (debug.ReleaseResult, error) {
	a.applyMu.Lock()
	next, out, err := a.book.Release(p)
	if err == nil {
		err = a.keepBook(next)
	}
	a.applyMu.Unlock()
	if err != nil {
		return debug.ReleaseResult{}, err
	}
	for _, r := range out {
		a.log.Warn().Str("prefix", r.Prefix.String()).Msg("a range was let go by hand: packets to it take the host's own routes")
	}
	a.reapply(ctx)
	r := debug.ReleaseResult{Released: heldRanges(out)}
	a.mu.Lock()
	r.Error = strings.Join(a.errs, "; ")
	a.mu.Unlock()
	return r, nil
}

func heldRanges(l []held.Range) []debug.HeldRange {
	out := []debug.HeldRange{}
	for _, r := range l {
		out = append(out, debug.HeldRange{Prefix: r.Prefix, Since: r.Closed})
	}
	return out
}

// shownRanges is how many ranges a condition names.
const shownRanges = 5

// tellClosed sets the notes of what is closed, and of what stays outside the tunnel.
func (a *Agent) tellClosed() {
	a.mu.Lock()
	closed, refused := a.book.Closed(), a.result.Refused
	a.mu.Unlock()
	var l []string
	for _, r := range closed[:min(len(closed), shownRanges)] {
		l = append(l, fmt.Sprintf("%s since %s", r.Prefix, r.Closed.Format(time.RFC3339)))
	}
	note := ""
	if len(closed) > 0 {
		if n := len(closed) - len(l); n > 0 {
			l = append(l, fmt.Sprintf("and %d more", n))
		}
		note = fmt.Sprintf("'causeway-agent release %s' on this host lets go what no peer has any more and is held closed: %s", closed[0].Prefix, strings.Join(l, ", "))
	}
	a.board.SetNote(health.Held, note)

	var notes []string
	say := func(what string, l []string) {
		if n := len(l) - shownRanges; n > 0 {
			l = append(l[:shownRanges:shownRanges], fmt.Sprintf("and %d more", n))
		}
		if len(l) > 0 {
			notes = append(notes, what+strings.Join(l, ", "))
		}
	}
	var own, out []string
	for _, x := range a.stays() {
		if x.apart {
			out = append(out, x.Own.String())
		} else {
			own = append(own, x.String())
		}
	}
	say("this host's own, which stays local inside another site's range: ", own)
	say("outside the tunnel, as this host relies on them: ", out)
	say("accept: takes from this host: ", a.taken())
	for _, r := range refused {
		if r.Peer == a.own.Now().Number && r.Prefix != "" {
			notes = append(notes, "announced "+r.Prefix+": "+r.Reason)
		}
	}
	a.board.SetNote(health.Local, strings.Join(notes, "; "))
}
