package protocol

// FirstKeyEpoch is the epoch of the statement about the WireGuard key that a
// node joined with. A hub assumes it until the node's first Hello.
const FirstKeyEpoch = 1

// Limits of what one node may announce and carry, checked by the hub.
const (
	MaxNodeRoutes     = 256
	MaxNodeCandidates = 32
	MaxNodeLabels     = 64
	MaxLabelLength    = 256 // key and value each
)
