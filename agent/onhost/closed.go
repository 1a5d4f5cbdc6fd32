package onhost

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

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
func (k *Keeper) loadBook() error {
	b, good, err := held.Load(k.store.HeldFile())
	if shortage.Is(err) {
		return err
	}
	if err != nil {
		k.log.Error().Err(err).Msg("the list of ranges that were routed is damaged; those of the kernel and of the stored netmap are kept closed")
	}
	k.bookNew, k.bookLost, k.bookStored = !good && k.want.Now().Held != nil, !good, good && err == nil
	k.learn(func(f *Facts) { f.Book = b })
	return nil
}

// recallRanges adds what an earlier run routed, as the kernel has it: also what a file
// that is damaged, or an older agent without one, does not tell. What stayed outside the
// tunnel then is recalled with it, where no file says.
func (k *Keeper) recallRanges(ctx context.Context) {
	l, err := k.host.Ranges(ctx, k.hostConfig(nil, nil, nil))
	if err != nil {
		k.log.Warn().Err(err).Msg("routes of an earlier run were not read")
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var apart []held.Exception
	if k.bookLost {
		addrs, err := k.host.Apart(ctx, k.hostConfig(nil, nil, nil))
		if err != nil {
			k.log.Warn().Err(err).Msg("what an earlier run kept outside the tunnel was not read")
		}
		for _, x := range addrs {
			apart = append(apart, held.Exception{Addr: x, What: "outside the tunnel before"})
		}
	}
	l = slices.DeleteFunc(l, func(p netip.Prefix) bool {
		return protocol.CheckPrefix(p) != nil || slices.ContainsFunc(k.want.Now().Hubs.Overlay, p.Overlaps)
	})
	k.learn(func(f *Facts) { f.Book = f.Book.Close(l, k.now()).Remember(apart) })
}

// bound tells the check what was routed before, and which addresses stay outside.
// k.mu is held.
func (k *Keeper) bound(ctx context.Context, in *netmapcheck.Input) {
	used, gateways, hubs := k.needed(ctx)
	if k.bookNew {
		// An agent without such a list routed these: nothing of it is new, and what the
		// host relies on goes where it went.
		k.learn(func(f *Facts) { f.Book = f.Book.Close(netmapcheck.Check(*in).Routes, k.now()) })
		k.bookNew = false
	}
	book := k.Facts().Book
	in.Kept = book.Except(used)
	in.Ways = netmapcheck.Ways(in.Kept, gateways, hubs)
	in.Bound = &netmapcheck.Bound{Routed: held.NewCover(book.Prefixes()), Room: book.Room()}
}

// needed is what this host relies on outside the tunnel, and of that the gateways and hubs.
func (k *Keeper) needed(ctx context.Context) (used []held.Exception, gateways, hubs []netip.Addr) {
	gateways, err := k.host.Gateways(ctx, k.hostConfig(nil, nil, nil))
	if err != nil {
		k.log.Warn().Err(err).Msg("default gateways were not read")
	}
	c := needs.Config{Gateways: gateways, Hubs: needs.HubAddrs(k.want.Now().Hubs), Proxy: k.live.Now().Proxy, Getenv: os.Getenv}
	return needs.Find(c), gateways, c.Hubs
}

// close adds to c what is closed and what stays the host's own, for what was decided. It
// returns the book for then. Without knowing the host's routes all stays as it was.
// k.mu is held.
func (k *Keeper) close(c *netns.Config, x *applying) (held.Book, []held.Exception) {
	set, in, res := k.live.Now(), x.in, x.res
	own := slices.DeleteFunc(slices.Clone(res.Local), func(p netip.Prefix) bool { return slices.Contains(res.Bare, p) })
	last := k.Facts()
	next, apart := last.Book, []held.Exception(nil)
	if x.blind {
		c.Except, apart = last.Plan.Except, last.Apart
	} else {
		next = last.Book.Follow(res.Routes, own, set.Release, k.now())
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

// refused are the closed ranges of a book, which keep their way into the tunnel where a wall refuses what goes there: a
// connection that its rule or its peer left behind ends with an answer.
func refused(b held.Book) (out []netip.Prefix) {
	for _, r := range b.Closed() {
		if r.Prefix.Addr().Is4() || netns.HasIPv6() {
			out = append(out, r.Prefix)
		}
	}
	return out
}

// keepBook stores a book, before anything is routed by it. The kernel keeps it too, so
// that a full disk opens nothing. k.mu is held.
func (k *Keeper) keepBook(next held.Book) error {
	before, left := k.Facts().Book, k.own.Left()
	changed := !next.Equal(before) || !k.bookStored
	k.learn(func(f *Facts) { f.Book = next })
	if !changed || left || len(next.Ranges) == 0 && len(before.Ranges) == 0 {
		return nil
	}
	known := make(map[held.Range]bool, len(before.Ranges))
	for _, r := range before.Ranges {
		known[r] = true
	}
	var closed []string
	for _, r := range next.Closed() {
		if !known[r] {
			closed = append(closed, r.Prefix.String())
		}
	}
	if n := len(closed); n > 0 {
		k.log.Warn().Int("count", n).Strs("prefixes", closed[:min(n, shownRanges)]).Msg("no peer has these ranges any more: they are held closed until one has, or 'causeway-agent release' lets them go")
	}
	err := held.Save(k.store.HeldFile(), next)
	k.bookStored = err == nil
	if err != nil {
		k.board.SetError(health.State, err)
	}
	return err
}

// Release lets closed ranges go, for whoever may say so, and applies that. An error says why it
// does not, or could not store it.
func (k *Keeper) Release(ctx context.Context, p netip.Prefix) ([]held.Range, error) {
	k.mu.Lock()
	next, out, err := k.Facts().Book.Release(p)
	if err == nil {
		err = k.keepBook(next)
	}
	k.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for _, r := range out {
		k.log.Warn().Str("prefix", r.Prefix.String()).Msg("a range was let go by hand: packets to it take the host's own routes")
	}
	k.Reapply(ctx)
	return out, nil
}

// shownRanges is how many ranges a condition names.
const shownRanges = 5

// tellClosed sets the notes of what is closed, and of what stays outside the tunnel.
func (k *Keeper) tellClosed() {
	f := k.Facts()
	closed, refused := f.Book.Closed(), f.Result.Refused
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
	k.board.SetNote(health.Held, note)

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
	for _, x := range f.Stays() {
		if x.Apart {
			out = append(out, x.Own.String())
		} else {
			own = append(own, x.String())
		}
	}
	say("this host's own, which stays local inside another site's range: ", own)
	say("outside the tunnel, as this host relies on them: ", out)
	say("accept: takes from this host: ", k.Taken())
	for _, r := range refused {
		if r.Peer == k.own.Now().Number && r.Prefix != "" {
			notes = append(notes, "announced "+r.Prefix+": "+r.Reason)
		}
	}
	k.board.SetNote(health.Local, strings.Join(notes, "; "))
}
