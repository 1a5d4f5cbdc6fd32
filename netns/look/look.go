// Package look is what a host does with a flow: the way of its packets, rules of routing policy and of firewalls that
// take or drop them, the pods that it ends at, and a trial with packets. It looks and writes nothing, but for
// the table and filters that a trial sets for a moment and takes away.
//
//	h := look.At(host)            // a *netns.Host
//	e := h.Flow(ctx, plan, flow)  // as protocol.FlowEvidence
//	t, err := h.Try(ctx, inject)
//
// It imports netns, which knows what should be there and puts it there; netns knows nothing of look.
package look

import (
	"sync"
	"sync/atomic"

	"causeway/netns"
)

// Host is the host of the network namespace that the calling thread is in, as it is looked at. Its methods may be
// called concurrently.
type Host struct {
	host   *netns.Host
	trying sync.Mutex // of Try and Prove

	proving atomic.Pointer[proving] // that goes on
}

// At looks at the host that plans are applied to by h.
func At(h *netns.Host) *Host { return &Host{host: h} }
