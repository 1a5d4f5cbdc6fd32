package api

import (
	"embed"
	"net/netip"

	"causeway/protocol"
)

// Source is this package's source: what its comments say of types and fields is
// what 'causeway explain' prints.
//
//go:embed types.go lifecycle.go documents.go document_*.go service.go
var Source embed.FS

// SiteDocument is a site as files for 'causeway apply' have it. What is left out stays
// as it is.
type SiteDocument struct {
	Kind                string `json:"kind"` // site
	Name                string `json:"name"` // 1 to 63 of a-z, 0-9 and '-'
	protocol.SiteFields `yaml:",inline"`
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
