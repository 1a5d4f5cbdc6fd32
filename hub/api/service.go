package api

import (
	"net/netip"
	"time"

	"causeway/protocol"
)

// Service is a service: what is declared, what the hub gave it, and who serves it now.
type Service struct {
	Name string `json:"name"`
	ServiceSpec
	Generation uint64    `json:"generation"` // transaction that changed it last
	Created    time.Time `json:"created"`
	Changed    time.Time `json:"changed"`
	// Sites are those of its endpoints, by name.
	Sites     []ServiceSite     `json:"sites"`
	Endpoints []ServiceEndpoint `json:"endpoints,omitempty"` // by site and address; lists leave them out
	Findings  []ServiceFinding  `json:"findings"`
	// PublicName is by which the outside finds it, where this hub answers a zone, and Answers is what that has now.
	PublicName string          `json:"public_name,omitempty"`
	Answers    []ServiceAnswer `json:"answers,omitempty"`
	// Clients that are told of it: how many have acknowledged it as it is declared now, and who has not, or refused it; lists leave it out.
	Have int      `json:"have"`
	Lack []string `json:"lack,omitempty"`
	// Waits are the nodes that a switch waits for; Unaware those for which the old site stays fenced behind it. Lists leave both out.
	Waits   []ServiceWait `json:"waits,omitempty"`
	Unaware []string      `json:"unaware,omitempty"`
	ETag    string        `json:"etag"`
}

// ServiceSite is a site of a service.
type ServiceSite struct {
	Site     string `json:"site"`
	All      int    `json:"all"`    // endpoints there
	Usable   int    `json:"usable"` // that may take new connections: those that are ready, and those of which nobody said yet
	Ready    int    `json:"ready"`  // as the nodes beside them say
	NotReady int    `json:"not_ready"`
	Unknown  int    `json:"unknown"`
	Excluded bool   `json:"excluded,omitempty"`
}

// Readiness of endpoints.
const (
	EndpointReady    = "ready"
	EndpointNotReady = "not ready"
	EndpointUnknown  = "unknown"
)

// ServiceEndpoint is an address that serves.
type ServiceEndpoint struct {
	Addr  netip.Addr `json:"addr"`
	Site  string     `json:"site"`
	Name  string     `json:"name"`            // its label in names of DNS
	Nodes []string   `json:"nodes"`           // that carry it
	Ready string     `json:"ready"`           // ready, not ready or unknown, as these say
	Cause string     `json:"cause,omitempty"` // why it is not ready, or why nobody knows
	Since time.Time  `json:"since,omitzero"`
	// Away is why nodes are not told of it, or not to use it; empty: it is used while it is ready.
	Away string `json:"away,omitempty"`
}

// ServiceAnswer is a site whose addresses, of one family, the public name of a service is answered with.
type ServiceAnswer struct {
	Site      string       `json:"site"`
	Addresses []netip.Addr `json:"addresses"`
	Percent   int          `json:"percent"` // of the answers for that family
}

// ServiceWait is a node that a switch waits for.
type ServiceWait struct {
	Node  string    `json:"node"`
	Why   string    `json:"why"`
	Until time.Time `json:"until,omitzero"` // its lease is over then; never, where there is none
}

// ServiceFinding is what is wrong with a service. It goes on with what is right.
type ServiceFinding struct {
	Check string `json:"check"` // as 'causeway doctor' has it
	Text  string `json:"text"`
}

// ServicePatch changes how a service uses its sites. What is left out stays.
type ServicePatch struct {
	Weights map[string]int `json:"weights,omitempty"`               // of these sites, 0 to 1000; prefer becomes weights
	Exclude []string       `json:"exclude,omitempty" maxItems:"64"` // sites that take no traffic from now on
	Include []string       `json:"include,omitempty" maxItems:"64"` // sites that do again
	Writer  string         `json:"writer,omitempty" maxLength:"63"` // the site that a single-writer service is switched to; the one that it is switched away from takes a switch back
	// Force switches at once, whether the old site is fenced or not: both may take writes then.
	Force bool `json:"force,omitempty"`

	Expose   []protocol.ServiceExpose `json:"expose,omitempty" maxItems:"64"`   // where the outside reaches it from now on, too
	Unexpose []protocol.ServiceExpose `json:"unexpose,omitempty" maxItems:"64"` // and does no more; whatever port it is of
}
