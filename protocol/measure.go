package protocol

import (
	"net/netip"
	"time"
)

// Bounds of a measurement between two agents.
const (
	MaxMeasureTime = 30 * time.Second
	MaxMeasureRate = 10_000_000_000 // bits a second
)

// MeasureKind is what is measured.
type MeasureKind string

// Kinds of measurements, each in one direction.
const (
	MeasureTCP MeasureKind = "tcp" // throughput
	MeasureUDP MeasureKind = "udp" // throughput, loss, jitter
	MeasureMTU MeasureKind = "mtu" // the largest packet that arrives inside the tunnel
)

// MeasureOffer asks an agent to be the receiver: it opens sockets on its overlay address
// for this peer alone, once, for a bounded time.
type MeasureOffer struct {
	Kind MeasureKind   `json:"kind"`
	Peer NodeNumber    `json:"peer"` // who will send
	Time time.Duration `json:"time_ns"`
	Rate uint64        `json:"rate"` // bits a second
}

// MeasurePlace is where the receiver waits, and what to say there.
type MeasurePlace struct {
	TCP    netip.AddrPort `json:"tcp"`
	UDP    netip.AddrPort `json:"udp"`
	Secret []byte         `json:"secret"` // MeasureSecret bytes
	Error  string         `json:"error,omitempty"`
}

// Ports at which the receiver of a measurement listens at its overlay address, TCP and UDP:
// shields leave them open, and the wall of both hosts keeps all but agents from them.
const (
	MeasurePortFirst = 4713
	MeasurePortLast  = 4716
)

// MeasureSecret is the length of what shows a receiver that the sender is the expected one.
const MeasureSecret = 16

// MeasureRun asks an agent to be the sender.
type MeasureRun struct {
	MeasureOffer
	Place MeasurePlace `json:"place"`
}

// Measured is what a measurement found.
type Measured struct {
	Sent      uint64        `json:"sent_bytes"`
	Received  uint64        `json:"received_bytes"`
	Took      time.Duration `json:"took_ns"` // of what was received
	Datagrams uint64        `json:"datagrams,omitempty"`
	Lost      uint64        `json:"lost,omitempty"`
	Reordered uint64        `json:"reordered,omitempty"`
	Jitter    time.Duration `json:"jitter_ns,omitempty"` // RFC 3550, section 6.4.1
	MTU       int           `json:"mtu,omitempty"`       // the largest IP packet that arrived inside
	Device    int           `json:"device,omitempty"`    // MTU of the tunnel's interface
	Route     int           `json:"route,omitempty"`     // MTU set on the route to the peer
	Error     string        `json:"error,omitempty"`
}
