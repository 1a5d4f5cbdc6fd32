package protocol

import "embed"

// Source is this package's source: what its comments say of types and fields is
// what 'causeway explain' prints.
//
//go:embed control.go inventory.go limit.go netmap.go policyproof.go prove.go service.go site.go
var Source embed.FS
