package api

import "causeway/protocol"

// FlowLogDocument has nodes log which flows pass through their tunnels and which they refuse, with or without any
// policy: see 'causeway flows'.
type FlowLogDocument struct {
	Kind             string `json:"kind"` // flowlog
	Name             string `json:"name"` // 1 to 63 of a-z, 0-9 and '-'
	protocol.FlowLog `yaml:",inline"`
}
