package doctor

import (
	"time"

	"causeway/hub/api"
)

// notes names what an agent keeps out of the tunnel, or closed, by its host's right
// alone: no hub can change that.
func (e *examination) notes(n api.Node) {
	for _, c := range n.Conditions {
		switch {
		case !c.OK || c.Note == "":
		case c.Name == "held":
			e.find(api.SeverityInfo, "range-held", n.Name, time.Time{}, "on "+n.Name+": causeway-agent status", "%s", c.Note)
		case c.Name == "local":
			e.find(api.SeverityInfo, "range-excepted", n.Name, time.Time{}, "on "+n.Name+": causeway-agent status", "%s", c.Note)
		}
	}
}
