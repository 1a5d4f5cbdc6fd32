package protocol

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Inventory over NATS; docs/NATS.md is its public description. An agent
// publishes only under its own subjects, through JetStream (InventoryStream), with
// inboxes under _INBOX.<number>.>, and hears the hub only on its own subject:
//
//	causeway.v1.inventory.<site>.<number>.snapshot   Inventory
//	causeway.v1.inventory.<site>.<number>.delta      InventoryDelta
//	causeway.v1.inventory.<site>.<number>.incident   Incident
//	causeway.v1.inventory.<site>.<number>.switches   SwitchReport
//	causeway.v1.ask.<number>                         the hub asks for a snapshot; no payload
//
// The hub publishes what becomes of it:
//
//	$KV.causeway-inventory.<site>.<number>           a node's present facts (FactsBucket)
//	$KV.causeway-services.<name>                     a declared service, and who serves it (ServicesBucket)
//	causeway.v1.event.<kind>                         events
//	causeway.v1.incident.<site>.<number>             a node's incident, as it is kept (IncidentStream)
//
// Names of sites are DNS labels and so hold no dot.
const (
	SubjectInventoryAll = "causeway.v1.inventory.>"
	SubjectEventsAll    = "causeway.v1.event.>"
	SubjectIncidents    = "causeway.v1.inventory.*.*.incident"
	SubjectSwitches     = "causeway.v1.inventory.*.*.switches"
	InventoryStream     = "CAUSEWAY_INVENTORY"
	EventStream         = "CAUSEWAY_EVENTS"
	IncidentStream      = "CAUSEWAY_INCIDENTS"
	SubjectKeptAll      = "causeway.v1.incident.>"
	FactsBucket         = "causeway-inventory"
	ServicesBucket      = "causeway-services"
	// MaxInventory bounds a payload.
	MaxInventory = 1 << 20
)

// Bounds of an Inventory. Agents keep to them, hubs drop what does not.
const (
	MaxInterfaces = 512
	MaxContainers = 1024
	MaxDisks      = 128
	MaxPaths      = 4096
	MaxRuntimes   = 16
	MaxAddresses  = 64  // of an interface or container
	MaxFactText   = 256 // bytes of a name or value
)

// AskSubject is where node n hears that the hub wants a snapshot.
func AskSubject(n NodeNumber) string { return fmt.Sprintf("causeway.v1.ask.%d", n) }

// EventSubject is where the hub publishes events of a kind.
func EventSubject(kind string) string { return "causeway.v1.event." + kind }

// FactsKey is the key of node n of site in FactsBucket.
func FactsKey(site string, n NodeNumber) string { return fmt.Sprintf("%s.%d", site, n) }

// InboxPrefix is the inbox prefix of node n's NATS connection.
func InboxPrefix(n NodeNumber) string { return fmt.Sprintf("_INBOX.%d", n) }

// UserInboxPrefix is the inbox prefix of the NATS user of that name. No node's is like it.
func UserInboxPrefix(name string) string { return "_INBOX.user." + name }

// Inventory is a snapshot of a node's facts. What the host does not tell is left out.
type Inventory struct {
	Version      int               `json:"v"`
	Sequence     uint64            `json:"seq"` // grows by one with each message of one boot
	BootID       BootID            `json:"boot_id"`
	Time         time.Time         `json:"time"`
	Hostname     string            `json:"hostname"`
	OS           string            `json:"os"`     // for example Debian GNU/Linux 12 (bookworm)
	Kernel       string            `json:"kernel"` // for example 6.1.0-18-amd64
	Arch         string            `json:"arch"`
	Virtual      string            `json:"virtualisation,omitempty"` // for example kvm; empty: none is known
	CPUModel     string            `json:"cpu_model,omitempty"`
	CPUs         int               `json:"cpus"`            // logical ones
	Cores        int               `json:"cores,omitempty"` // physical ones
	Load         *Load             `json:"load,omitempty"`
	MemoryTotal  uint64            `json:"memory_total_bytes"`
	MemoryUsed   uint64            `json:"memory_used_bytes"`
	HostBootTime time.Time         `json:"host_boot_time"`
	Disks        map[string]Disk   `json:"disks,omitempty"` // by mount point
	Interfaces   []Interface       `json:"interfaces"`
	AgentVersion string            `json:"agent_version"`
	Engine       string            `json:"engine"`
	PodCIDRs     []netip.Prefix    `json:"pod_cidrs"` // announced routes
	Labels       map[string]string `json:"labels,omitempty"`
	// Paths are those of the tunnel that are in use, by the peer's number.
	Paths map[string]Path `json:"paths,omitempty"`
	// Runtimes are the container runtimes that are there, by name. None: the host runs
	// no containers that the agent could see.
	Runtimes map[string]Runtime `json:"runtimes,omitempty"`
	// Containers by runtime and id, such as podman/3f2a….
	Containers map[string]Container `json:"containers,omitempty"`
	Capacity   *Capacity            `json:"capacity,omitempty"`
	// Refused is what the node's wall refuses again and again, at most MaxRefused.
	Refused []RefusedFlow `json:"refused,omitempty"`
	// Left out are facts beyond the bounds, for example "40 containers".
	LeftOut []string `json:"left_out,omitempty"`
}

// InventoryDelta is what changed since the message before it, whose sequence is one
// less and whose boot id is the same.
type InventoryDelta struct {
	Version  int       `json:"v"`
	Sequence uint64    `json:"seq"`
	BootID   BootID    `json:"boot_id"`
	Time     time.Time `json:"time"`
	// Changes is a JSON merge patch (RFC 7396) of the Inventory before.
	Changes json.RawMessage `json:"changes"`
}

// Load is how many tasks ran or waited to, on average over 1, 5 and 15 minutes.
type Load struct {
	One     float64 `json:"1m"`
	Five    float64 `json:"5m"`
	Fifteen float64 `json:"15m"`
}

// Disk is a mounted file system on a device.
type Disk struct {
	Device string `json:"device"`
	Type   string `json:"type"` // for example ext4
	Total  uint64 `json:"total_bytes"`
	Used   uint64 `json:"used_bytes"`
}

// Interface is a network interface of the node. The host's ends of pods' interfaces are
// not among them.
type Interface struct {
	Name      string         `json:"name"`
	Kind      string         `json:"kind,omitempty"` // for example device, bridge, tun
	MAC       string         `json:"mac,omitempty"`
	MTU       int            `json:"mtu"`
	SpeedMbit int            `json:"speed_mbit,omitempty"` // 0: not known
	Up        bool           `json:"up"`
	Addresses []netip.Prefix `json:"addresses"`
}

// Path is the tunnel's path to a peer. Rates are averages since the message before
// that told them.
type Path struct {
	Peer   string   `json:"peer"` // its name
	Path   PathKind `json:"path"`
	Idle   bool     `json:"idle,omitempty"` // as in PathStatus
	RTT    float64  `json:"rtt_ms"`
	Loss   float64  `json:"loss"` // 0 to 1
	MTU    int      `json:"mtu,omitempty"`
	RxRate uint64   `json:"rx_bytes_per_s"`
	TxRate uint64   `json:"tx_bytes_per_s"`
}

// Runtime is a container runtime, or CNI's own records.
type Runtime struct {
	Kind    string `json:"kind"` // docker, podman, containerd or cni
	Version string `json:"version,omitempty"`
	From    string `json:"from"`            // socket or directory
	Error   string `json:"error,omitempty"` // why its containers are not known now
}

// ContainerState is what a container does.
type ContainerState string

// States of containers. A runtime's other words are taken as they are.
const (
	ContainerRunning ContainerState = "running"
	ContainerExited  ContainerState = "exited"
)

// Container is a container, or a pod that CNI alone knows of.
type Container struct {
	ID        string            `json:"id"`
	Runtime   string            `json:"runtime"`
	Name      string            `json:"name"`
	Image     string            `json:"image,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	State     ContainerState    `json:"state"`
	Started   *time.Time        `json:"started,omitempty"`
	Addresses []netip.Addr      `json:"addresses"`
	// Requested is what it may use or was promised; 0: it did not say. Used is what it
	// took at last; 0: not known.
	CPURequested    int    `json:"cpu_requested_milli,omitempty"` // thousandths of a CPU
	MemoryRequested uint64 `json:"memory_requested_bytes,omitempty"`
	CPUUsed         int    `json:"cpu_used_milli,omitempty"`
	MemoryUsed      uint64 `json:"memory_used_bytes,omitempty"`
}

// Capacity is what the node has for pods.
type Capacity struct {
	CPU    Amount `json:"cpu_milli"` // thousandths of a CPU
	Memory Amount `json:"memory_bytes"`
	Pods   Amount `json:"pods"` // total is 0 where no pod range says how many
}

// Amount is how much there is, is used and is left.
type Amount struct {
	Total uint64 `json:"total"`
	Used  uint64 `json:"used"`
	Free  uint64 `json:"free"`
}

// AmountOf is used of total; what is over is not free.
func AmountOf(total, used uint64) Amount { return Amount{total, used, total - min(total, used)} }

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
