package doctor

import (
	"fmt"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// Refused is a flow that a node refuses again and again, and why it does.
type Refused struct {
	Node string
	protocol.RefusedFlow
	Why string // what policies say of it now
	// Nobodys: no node has one of the two addresses, so policies know nothing of it.
	Nobodys bool
}

// maxRefusedFindings bounds the findings on what one node refuses.
const maxRefusedFindings = 5

// refused names what somebody tries again and again and no rule opens: a rule is missing, or who tries has no
// business there.
func (e *examination) refused() {
	of := map[string]int{}
	for _, r := range e.Facts.Refused {
		if of[r.Node]++; of[r.Node] > maxRefusedFindings {
			continue
		}
		port := protocol.PortText(r.Proto, r.Port)
		flow := fmt.Sprintf("%s to %s, %s", r.From, r.To, port)
		if r.Nobodys {
			e.find(api.SeverityWarning, "policy-refuses", r.Node, r.Since, "causeway route list", "%s was refused %d times and more in 10 minutes: %s", flow, r.Count, r.Why)
			continue
		}
		if _, err := protocol.ParsePorts(port); err != nil {
			port = "any"
		}
		e.find(api.SeverityWarning, "policy-refuses", r.Node, r.Since, fmt.Sprintf("causeway policy test %s %s %s", r.From, r.To, port),
			"%s was refused %d times and more in 10 minutes: %s", flow, r.Count, r.Why)
	}
	for node, n := range of {
		if n > maxRefusedFindings {
			e.find(api.SeverityWarning, "policy-refuses", node, time.Time{}, "causeway flows --denied", "%d more flows are refused again and again", n-maxRefusedFindings)
		}
	}
}
