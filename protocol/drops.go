package protocol

import (
	"fmt"
	"slices"
)

// DropReason is why an engine dropped a packet or a message of WireGuard.
type DropReason string

// Reasons.
const (
	DropUnknown      DropReason = "unknown"
	DropRejected     DropReason = "rejected"
	DropMalformed    DropReason = "malformed"
	DropSpoofed      DropReason = "spoofed"
	DropElsewhere    DropReason = "elsewhere"
	DropNoRoute      DropReason = "no_route"
	DropUnstaged     DropReason = "unstaged"
	DropQueueFull    DropReason = "queue_full"
	DropBadMAC       DropReason = "bad_mac"
	DropBadHandshake DropReason = "bad_handshake"
	DropReplayed     DropReason = "replayed"
	DropCrossed      DropReason = "crossed"
	DropCookies      DropReason = "cookies"
	DropLimited      DropReason = "limited"
	DropSendErrors   DropReason = "send_errors"
	DropWriteErrors  DropReason = "write_errors"
)

var dropTexts = map[DropReason]string{
	DropUnknown:      "of no session that is known, or of one that ended",
	DropRejected:     "not authentic, replayed or too old",
	DropMalformed:    "no valid IP packet",
	DropSpoofed:      "from an address that the peer may not send from",
	DropElsewhere:    "to an address that is not this node's",
	DropNoRoute:      "to an address that no peer has",
	DropUnstaged:     "too many that wait for a handshake",
	DropQueueFull:    "too many handshakes at once",
	DropBadMAC:       "handshakes not meant for this node",
	DropBadHandshake: "handshakes of a key that is no peer's",
	DropReplayed:     "handshakes seen before, or too soon",
	DropCrossed:      "handshakes that crossed one of this node's own",
	DropCookies:      "handshakes answered by a cookie",
	DropLimited:      "handshakes beyond the rate",
	DropSendErrors:   "not taken by the path",
	DropWriteErrors:  "not taken by the interface",
}

// DropReasons are all of them, sorted.
func DropReasons() []DropReason {
	out := make([]DropReason, 0, len(dropTexts))
	for r := range dropTexts {
		out = append(out, r)
	}
	slices.Sort(out)
	return out
}

// Known reports whether r is a reason of this version.
func (r DropReason) Known() bool { return dropTexts[r] != "" }

// Text says what was dropped, for people: "from an address that …".
func (r DropReason) Text() string { return dropTexts[r] }

// Drops counts by reason.
type Drops map[DropReason]uint64

// Since is what grew since before, without what did not; nil: nothing.
func (d Drops) Since(before Drops) (out Drops) {
	for r, n := range d {
		if n > before[r] {
			if out == nil {
				out = Drops{}
			}
			out[r] = n - before[r]
		}
	}
	return out
}

// Lines says each count that is not zero, sorted by reason: "3 from an address that the
// peer may not send from (spoofed)". Reasons that are not Known are left out.
func (d Drops) Lines() (out []string) {
	for _, r := range DropReasons() {
		if n := d[r]; n > 0 {
			out = append(out, fmt.Sprintf("%d %s (%s)", n, r.Text(), r))
		}
	}
	return out
}
