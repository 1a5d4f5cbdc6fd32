package api

import (
	"embed"
	"net/netip"

	"causeway/protocol"
)

// Source is this package's source: what its comments say of types and fields is
// what 'causeway explain' prints.
//
//go:embed types.go lifecycle.go documents.go document_*.go
var Source embed.FS

// SiteDocument is a site as files for 'causeway apply' have it. What is left out stays
// as it is.
type SiteDocument struct {
	Kind       string         `json:"kind"`                  // site
	Name       string         `json:"name"`                  // 1 to 63 of a-z, 0-9 and '-'
	Ranges     []netip.Prefix `json:"ranges,omitempty"`      // routes inside them are approved by themselves
	MaxAge     MaxAge         `json:"max_age,omitempty"`     // how long its agents go on without any hub, such as 72h, or forever
	RotateKeys RotateKeys     `json:"rotate_keys,omitempty"` // age at which its nodes make new WireGuard keys, such as 30d, or never
}

// NodeDocument is what files for 'causeway apply' say of a node that is there.
type NodeDocument struct {
	Kind    string            `json:"kind"`              // node
	Name    string            `json:"name"`              // of a node that has joined
	Labels  map[string]string `json:"labels,omitempty"`  // to set, or with an empty value to remove; others stay
	Drained *bool             `json:"drained,omitempty"` // whether other nodes of its site carry its routes where they can
}

// RouteDocument is a decision about a route in files for 'causeway apply'.
type RouteDocument struct {
	Kind   string              `json:"kind"`   // route
	Node   string              `json:"node"`   // the node that announces it
	Prefix netip.Prefix        `json:"prefix"` // the CIDR
	State  protocol.RouteState `json:"state"`  // approved or rejected
}
