package health

import "causeway/protocol"

// Names of the agent's conditions.
const (
	Tunnel   = "tunnel"
	Hub      = "hub"
	Paths    = protocol.ConditionPaths
	Control  = "control"
	NATS     = "nats"
	Netmap   = "netmap"
	Routes   = "routes"
	Firewall = "firewall"
	State    = "state"
	Keys     = "keys"
	Repair   = "repair"
	Clock    = "clock"
	Held     = "held"
	Local    = "local"
	HubList  = "hub_list"
	Policy   = "policy"
	Services = "services"
	DNS      = "dns"
)
