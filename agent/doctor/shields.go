package doctor

import "fmt"

// shields says what of the host itself other nodes reach.
func shields(c Config) []Check {
	if c.Identity == nil {
		return nil
	}
	k := Check{Name: "shields", Status: OK, What: "up: of this host itself other nodes reach echo and Causeway's own ports"}
	s := c.Shields.On(c.Identity.Shields)
	switch {
	case s.Up && len(s.Allow) > 0:
		var l []string
		for _, p := range s.Allow {
			l = append(l, p.String())
		}
		k.What += ", and " + few(l)
	case s.Up:
	case c.Shields.State == "down":
		k.What = "down, as the configuration says: other nodes reach all that listens on this host"
	default:
		k.Status, k.What = Warn, "down: other nodes reach all that listens on this host"
		k.Why = fmt.Sprintf("node %s joined before there were shields, and an upgrade cuts nothing", c.Identity.Name)
		k.Do = "write into /etc/causeway/agent.yaml: shields: {state: up, allow: [tcp/22]}, with the ports that shall stay open; then: systemctl reload causeway-agent"
	}
	return []Check{k}
}
