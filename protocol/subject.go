package protocol

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// FactKind is the last word of a subject on which a node tells of itself.
type FactKind string

// Values of FactKind.
const (
	FactSnapshot FactKind = "snapshot" // Inventory
	FactDelta    FactKind = "delta"    // InventoryDelta
	FactIncident FactKind = "incident" // Incident
	FactSwitches FactKind = "switches" // SwitchReport
)

// FactOrigin is whose message it is and of what: its subject says so. The server lets only
// that node's session publish there.
type FactOrigin struct {
	Site string
	Node NodeNumber
	Kind FactKind
}

const factPrefix = "causeway.v1.inventory."

// String is the subject.
func (o FactOrigin) String() string {
	return fmt.Sprintf("%s%s.%d.%s", factPrefix, o.Site, o.Node, o.Kind)
}

// ParseFactSubject reads what String writes, and nothing else. Every byte is a stranger's.
func ParseFactSubject(subject string) (FactOrigin, error) {
	rest, ok := strings.CutPrefix(subject, factPrefix)
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != 3 || !ValidName(parts[0]) {
		return FactOrigin{}, errors.New("it is no subject of a node's facts")
	}
	n, err := strconv.ParseUint(parts[1], 10, 24)
	if err != nil || !NodeNumber(n).Valid() || strconv.FormatUint(n, 10) != parts[1] {
		return FactOrigin{}, errors.New("no node number is in the subject")
	}
	o := FactOrigin{parts[0], NodeNumber(n), FactKind(parts[2])}
	if o.Kind != FactSnapshot && o.Kind != FactDelta && o.Kind != FactIncident && o.Kind != FactSwitches {
		return FactOrigin{}, errors.New("it is no subject of a node's facts")
	}
	return o, nil
}

// InventorySubject is where node n of site publishes its snapshots.
func InventorySubject(site string, n NodeNumber) string {
	return FactOrigin{site, n, FactSnapshot}.String()
}

// DeltaSubject is where node n of site publishes its deltas.
func DeltaSubject(site string, n NodeNumber) string { return FactOrigin{site, n, FactDelta}.String() }

// IncidentSubject is where node n of site publishes its incidents.
func IncidentSubject(site string, n NodeNumber) string {
	return FactOrigin{site, n, FactIncident}.String()
}
