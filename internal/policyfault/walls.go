package policyfault

// Variable names walls that are off, with commas.
const Variable = "CAUSEWAY_POLICY_OFF"

// The walls.
const (
	Netmaps = "netmaps" // the hub gives everybody all peers
	Relay   = "relay"   // the hub's relay forwards between all
	Host    = "host"    // the agent has no table
)
