package protocol

import "time"

// FirstKeyEpoch is the epoch of the statement about the WireGuard key that a
// node joined with. A hub assumes it until the node's first Hello.
const FirstKeyEpoch = 1

// DefaultKeyOverlap is how long a node's or hub's old key is good beside the
// new one, for those who have not heard of that.
const DefaultKeyOverlap = 24 * time.Hour

// Bounds of a node's key rotation.
const (
	MaxKeyOverlap = 30 * 24 * time.Hour
	MinRotateKeys = time.Hour
)

// Limits of what one node may announce and carry, checked by the hub.
const (
	MaxNodeRoutes     = 256
	MaxNodeCandidates = 32
)
