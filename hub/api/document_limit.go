package api

import "causeway/protocol"

// LimitDocument says how much goes through the relay in files for 'causeway apply'.
type LimitDocument struct {
	Kind           string `json:"kind"` // limit
	Name           string `json:"name"` // 1 to 63 of a-z, 0-9 and '-'
	protocol.Limit `yaml:",inline"`
}
