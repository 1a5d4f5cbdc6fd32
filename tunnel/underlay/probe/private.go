package probe

import (
	"net/netip"
	"time"

	"causeway/protocol"
)

// PrivateCandidates says how a peer's addresses in private ranges are tried. Some providers shut off hosts that
// send to such addresses by their public uplink.
type PrivateCandidates int

// How they are tried.
const (
	PrivateAuto PrivateCandidates = iota // a few times, then with long pauses, and not while a good direct path is there
	PrivateOff                           // never
	PrivateOn                            // as any other
)

// sharedSpace is what carriers give their customers (RFC 6598).
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

func private(a netip.Addr) bool { return a.IsPrivate() || sharedSpace.Contains(a) }

// goodDirect reports whether a direct path to p was proven and nothing is said against it: that
// of an idle peer is asked again when there is traffic.
func (p *peer) goodDirect(now time.Time) bool {
	for _, q := range p.paths {
		if q.kind == protocol.PathDirect && !q.lastAnswer.IsZero() && !q.silent(now) && !q.suspect(now) && !q.lossy {
			return true
		}
	}
	return false
}
