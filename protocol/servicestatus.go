package protocol

import (
	"net/netip"
	"time"
)

// Bounds of what an agent reports of services.
const (
	MaxServiceReadiness = 10 * MaxServiceEndpoints // backends beside it; it fits a status
	MaxReadinessCause   = 120                      // bytes
	MaxServiceFences    = 3072                     // services
)

// ServiceReadiness is what a node's agent found of a backend beside it: part of its Status. It counts for what the node
// carries.
type ServiceReadiness struct {
	Service string     `json:"service"`
	Addr    netip.Addr `json:"addr"`
	Ready   Readiness  `json:"ready"`
	Cause   string     `json:"cause,omitempty"` // why it is not ready
	Since   time.Time  `json:"since"`
}
