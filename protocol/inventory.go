package protocol

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Inventory over NATS. An agent publishes only under its own subjects:
//
//	causeway.v1.inventory.<site>.<number>.snapshot   Inventory
//	causeway.v1.inventory.<site>.<number>.delta      Inventory with changed parts only (later)
//
// through JetStream (stream StreamInventory), with inboxes under
// _INBOX.<number>.>. Names of sites are DNS labels and so hold no dot.
const (
	SubjectInventoryAll = "causeway.v1.inventory.>"
	InventoryStream     = "CAUSEWAY_INVENTORY"
	// MaxInventory bounds a payload.
	MaxInventory = 1 << 20
)

// InventorySubject is where node n of site publishes its snapshots.
func InventorySubject(site string, n NodeNumber) string {
	return fmt.Sprintf("causeway.v1.inventory.%s.%d.snapshot", site, n)
}

// InboxPrefix is the inbox prefix of node n's NATS connection.
func InboxPrefix(n NodeNumber) string { return fmt.Sprintf("_INBOX.%d", n) }

// Inventory is a snapshot of a node's facts.
type Inventory struct {
	Version      int               `json:"v"`
	Sequence     uint64            `json:"seq"` // grows by one with each message of one boot
	BootID       BootID            `json:"boot_id"`
	Time         time.Time         `json:"time"`
	Hostname     string            `json:"hostname"`
	OS           string            `json:"os"`     // for example Debian GNU/Linux 12 (bookworm)
	Kernel       string            `json:"kernel"` // for example 6.1.0-18-amd64
	Arch         string            `json:"arch"`
	CPUModel     string            `json:"cpu_model,omitempty"`
	CPUs         int               `json:"cpus"`
	MemoryTotal  uint64            `json:"memory_total_bytes"`
	MemoryUsed   uint64            `json:"memory_used_bytes"`
	HostBootTime time.Time         `json:"host_boot_time"`
	Interfaces   []Interface       `json:"interfaces"`
	AgentVersion string            `json:"agent_version"`
	Engine       string            `json:"engine"`
	PodCIDRs     []netip.Prefix    `json:"pod_cidrs"` // announced routes
	Labels       map[string]string `json:"labels,omitempty"`
}

// Interface is a network interface of the node.
type Interface struct {
	Name      string         `json:"name"`
	MAC       string         `json:"mac,omitempty"`
	MTU       int            `json:"mtu"`
	Up        bool           `json:"up"`
	Addresses []netip.Prefix `json:"addresses"`
}

// ValidName reports whether s can name a site or node: a DNS label (RFC 1123)
// in lower case, 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	}) < 0
}
