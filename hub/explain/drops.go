package explain

import (
	"fmt"
	"slices"

	"causeway/hub/api"
	"causeway/protocol"
)

// counted says what the engine of s dropped while it was looked. It may be others' packets, so
// it makes no fault, but tells of one.
func counted(s side) (out []string) {
	for _, l := range s.e.Drops.Lines() {
		out = append(out, fmt.Sprintf("%s dropped meanwhile: %s", s.node(), l))
	}
	return out
}

// misleading is a reason that names where a flow's packets end, with what is wrong then: of packets
// that come from a peer, as others find their way to cw0 at any time.
type misleading struct {
	reason  protocol.DropReason
	summary string // of the node that drops and the other
	mend    string
}

// misled are these, the likeliest first.
var misled = []misleading{
	{protocol.DropSpoofed, "%[1]s drops packets that come from %[2]s under an address that %[2]s may not send from, as it seems those of the flow: something there changes their source", "on %[2]s: nft list ruleset | grep -E 'saddr set|snat|masquerade' names who does; except what goes into the tunnel from that"},
	{protocol.DropElsewhere, "%[1]s drops packets from %[2]s to an address that is not its own, as it seems those of the flow", "causeway node show %[1]s"},
}

// misledAt reports whether the engine of s dropped such packets while it was looked.
func misledAt(s side) bool {
	return slices.ContainsFunc(misled, func(m misleading) bool { return s.e.Drops[m.reason] > 0 })
}

// dropped adds to f, of a flow whose packets get lost, what the engine of s counted.
func dropped(s side, f *api.Fault) {
	f.Evidence = append(f.Evidence, counted(s)...)
	for _, m := range misled {
		if s.e.Drops[m.reason] > 0 && f.Node == "" {
			f.Node, f.Summary, f.Mend = s.node(), fmt.Sprintf(m.summary, s.node(), s.other.Node.Name), fmt.Sprintf(m.mend, s.node(), s.other.Node.Name)
		}
	}
}
