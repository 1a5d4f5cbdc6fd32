package api

import "causeway/protocol"

// LimitDocument is a bound of what goes through the relay.
type LimitDocument struct {
	Kind           string `json:"kind"` // limit
	Name           string `json:"name"` // 1 to 63 of a-z, 0-9 and '-'
	protocol.Limit `yaml:",inline"`
}
