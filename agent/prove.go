package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"causeway/protocol"
)

// prove counts packets of a trial of policies until ctx ends; it calls ready once it does. It sends in the name of this
// node and of what is behind it alone, so that nobody sends in another's by it.
func (a *answers) prove(ctx context.Context, w protocol.ProveWatch, ready func()) error {
	local := slices.Concat(a.host.Facts().Result.Local, a.want.Announced())
	for _, p := range w.Send {
		for _, x := range p.Among {
			if !slices.ContainsFunc(local, func(l netip.Prefix) bool { return l.Contains(x) }) {
				return fmt.Errorf("%s is inside no route that this node carries", x)
			}
		}
		if p.From.IsValid() && !slices.Contains(a.own.Now().Overlay, p.From) {
			return fmt.Errorf("%s is no address of this node", p.From)
		}
		if a.ownEnd(p.To, local) {
			return fmt.Errorf("%s is at this node itself", p.To)
		}
	}
	for _, p := range w.Receive {
		if !a.ownEnd(p.To, local) {
			return fmt.Errorf("%s is neither an address of this node nor inside a route that it carries", p.To)
		}
	}
	return a.look.Prove(ctx, w, a.tunnel.Inject, ready)
}

// proveSend sends the packets of the trial that goes on.
func (a *answers) proveSend(ctx context.Context, q protocol.ProveNow) (out protocol.ProveSents, err error) {
	out.Sent, err = a.look.ProveSend(ctx, q.Secret, func(to netip.Addr) bool {
		for _, p := range a.host.Facts().Result.Peers {
			if slices.ContainsFunc(p.Prefixes(), func(x netip.Prefix) bool { return x.Contains(to) }) {
				return true
			}
		}
		return false
	})
	return out, err
}

func (a *answers) proveSeen(ctx context.Context, q protocol.ProveNow) (protocol.ProveSeens, error) {
	return a.look.ProveSeen(ctx, q.Secret)
}
