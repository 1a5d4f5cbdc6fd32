package desired

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"causeway/agent/identity"
	"causeway/agent/netmapcheck"
	"causeway/protocol"
)

// Taken is what became of a netmap that is held now.
type Taken struct {
	Netmap  protocol.Netmap // whole
	Refused []protocol.RefusedPart
	// Lost are peers that an earlier epoch had, though nobody said that they are gone.
	Lost []protocol.LostPeer
	// Announces reports whether the node announces other routes than before.
	Announces bool
}

// Take holds what a hub sent, with what came along; it is not stored yet. Where it does not, it
// returns the answer for the hub.
func (d *Desired) Take(n protocol.Netmap) (t Taken, refusal *protocol.NetmapAck) {
	refuse := func(why string) (Taken, *protocol.NetmapAck) {
		d.Log.Warn().Str("err", why).Msg("refused a netmap")
		return Taken{}, &protocol.NetmapAck{NetmapVersion: d.Have(), Refused: []protocol.RefusedPart{{Reason: why}}}
	}
	if d.Own.Left() {
		return t, &protocol.NetmapAck{NetmapVersion: n.NetmapVersion, Errors: []string{"this node has left"}}
	}
	var held *protocol.Netmap
	if h := d.Now().Held; h != nil {
		held = &h.Netmap
		if why := netmapcheck.Newer(held.NetmapVersion, n.NetmapVersion); why != "" {
			return refuse(why)
		}
	}
	full, err := n.Apply(held)
	if errors.Is(err, protocol.ErrUnknownBase) {
		return t, &protocol.NetmapAck{NetmapVersion: d.Have(), Full: true}
	}
	if err != nil {
		return refuse(err.Error())
	}
	if full.Self.Number != d.Own.Now().Number {
		return refuse(fmt.Sprintf("it is for node number %d", full.Self.Number))
	}
	t.Netmap = full
	if n.HubList != nil {
		if _, why := d.TakeHubList(*n.HubList); why != "" {
			t.Refused = append(t.Refused, protocol.RefusedPart{Reason: "hub list: " + why})
		}
	}
	if n.Gone != nil {
		if why := d.TakeGone(*n.Gone); why != "" {
			t.Refused = append(t.Refused, protocol.RefusedPart{Reason: "list of gone nodes: " + why})
		}
	}
	before := d.Announced()
	d.mu.Lock()
	if h := d.now.Held; h != nil { // another one came meanwhile
		if why := netmapcheck.Newer(h.Netmap.NetmapVersion, full.NetmapVersion); why != "" {
			d.mu.Unlock()
			return refuse(why)
		}
	}
	d.now.Held = &identity.StoredNetmap{Netmap: full, Confirmed: d.word(), Gone: d.now.Said}
	gone := d.now.Gone
	d.mu.Unlock()
	if held != nil && held.Epoch < full.Epoch {
		t.Lost = lost(*held, full, gone)
	}
	t.Announces = !slices.Equal(before, d.Announced())
	return t, nil
}

// learnGrant takes what the hub says of this node's own routes as those of its token,
// once: for an identity of before tokens' routes were kept, and for a hub that does not
// tell them at the join. It is what such an agent has gone by so far. Where it cannot be
// stored it holds for this run, and is stored later.
func (d *Desired) learnGrant() {
	granted := d.Own.Now().Granted
	d.mu.Lock()
	held, due := d.now.Held, d.grantDue
	d.mu.Unlock()
	if granted != nil && !due || held == nil || d.Own.Left() {
		return
	}
	if granted == nil {
		granted = []netip.Prefix{}
		for _, r := range held.Netmap.Self.Routes {
			if r.State == protocol.RouteApproved && r.Prefix.IsValid() && !slices.Contains(d.Live.Now().Routes, r.Prefix) {
				granted = append(granted, r.Prefix.Masked())
			}
		}
	}
	err := d.Own.Hold(func(id *identity.Identity) { id.Granted = granted })
	d.mu.Lock()
	d.grantDue = err != nil
	d.mu.Unlock()
	if err != nil {
		d.Log.Error().Err(err).Msg("the routes of this node's token were not stored")
	}
}
