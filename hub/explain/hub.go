package explain

import (
	"slices"

	"causeway/hub/api"
	"causeway/protocol"
)

// hubNATS reports whether the hub's own NATS is away.
func (j *judge) hubNATS() bool {
	return slices.ContainsFunc(j.Conditions, func(c protocol.Condition) bool { return c.Name == "nats" && !c.OK })
}

// hub judges the hub's own conditions.
func (j *judge) hub() {
	for _, c := range j.Conditions {
		if c.OK {
			continue
		}
		f := api.Fault{Cause: "hub-" + c.Name, Hop: HopHealth, Summary: "the hub is not well: " + c.Name, Evidence: []string{c.Cause}, Mend: "causeway status"}
		if c.Name == "nats" {
			f.Cause, f.Summary = "nats-away", "the hub's NATS is away: what passes goes on, changes and inventory wait"
			f.Mend = "start the NATS servers of --nats-url"
		}
		j.add(f)
	}
}
