package protocol

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of incidents. Agents keep to them, hubs drop what does not.
const (
	MaxIncident      = 32 << 10 // bytes of a payload
	MaxIncidentLines = 8
	MaxIncidentText  = 300
)

// IncidentState says how an incident stands.
type IncidentState string

// States of incidents.
const (
	IncidentOpen    IncidentState = "open"    // it lasts, and is being mended where it can be
	IncidentStopped IncidentState = "stopped" // it lasts, and the agent has given up
	IncidentOver    IncidentState = "over"
)

// Incident is something that went wrong on a node: what it has set up was changed
// by others, or its hub was out of reach. An agent sends it anew, with a higher
// revision, when it goes on.
type Incident struct {
	Version  int           `json:"v"`
	Number   uint64        `json:"incident"` // of the node's, from 1 on
	Revision uint64        `json:"revision"` // grows with each change of it
	Subject  string        `json:"subject"`  // for example nftables, link, net.ipv4.ip_forward, hub
	State    IncidentState `json:"state"`
	Since    time.Time     `json:"since"`
	Until    time.Time     `json:"until,omitzero"` // zero: it lasts
	Found    []string      `json:"found"`          // what differed, one a line; '- ' missing, '+ ' not planned
	Reason   string        `json:"reason"`         // why, or who did it
	Action   string        `json:"action"`         // what was done about it
	Repairs  int           `json:"repairs"`        // how often it was mended
	Seconds  float64       `json:"seconds"`        // how long things were not as planned, all in all
	// Received and sent by the tunnel in that time.
	RxBytes uint64 `json:"rx_bytes"`
	TxBytes uint64 `json:"tx_bytes"`
	Felt    string `json:"felt"` // what that meant for whoever uses the node
}

// KeptIncidentSubject is where the hub keeps the incidents of node n of site.
func KeptIncidentSubject(site string, n NodeNumber) string {
	return fmt.Sprintf("causeway.v1.incident.%s.%d", site, n)
}

// Clean checks an incident that came from elsewhere, and makes its text fit for a
// terminal.
func (i *Incident) Clean() error {
	switch {
	case i.Version < 1 || i.Version > Version+1:
		return errors.New("incident without a version that is known")
	case i.Number == 0 || i.Revision == 0:
		return errors.New("incident without a number or revision")
	case i.State != IncidentOpen && i.State != IncidentStopped && i.State != IncidentOver:
		return errors.New("incident in no known state")
	case i.Subject == "" || i.Since.IsZero():
		return errors.New("incident without subject or begin")
	case i.Since.Year() > 9999 || i.Until.Year() > 9999 || i.Since.Year() < 0 || i.Until.Year() < 0:
		return errors.New("incident at no time")
	case !(i.Seconds >= 0) || i.Repairs < 0:
		return errors.New("incident with a negative length")
	}
	if len(i.Found) > MaxIncidentLines {
		i.Found = i.Found[:MaxIncidentLines]
	}
	if i.Found == nil {
		i.Found = []string{}
	}
	for n := range i.Found {
		i.Found[n] = OneLine(i.Found[n], MaxIncidentText)
	}
	for _, t := range []*string{&i.Subject, &i.Reason, &i.Action, &i.Felt} {
		*t = OneLine(*t, MaxIncidentText)
	}
	if (i.State == IncidentOver) == i.Until.IsZero() {
		return errors.New("incident whose end and state differ")
	}
	return nil
}
