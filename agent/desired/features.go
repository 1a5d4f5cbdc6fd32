package desired

import (
	"causeway/agent/config"
	"causeway/agent/items"
	"causeway/protocol"
)

// Features are what a netmap may require of an agent of this configuration, and a hub may ask of it.
func Features(c config.Config) []string {
	out := []string{protocol.FeatureMark, protocol.FeatureBulk, protocol.FeatureServiceFence}
	for _, k := range items.Kinds() {
		out = append(out, protocol.ItemFeature(k))
	}
	if c.Upgrade.Allow {
		out = append(out, protocol.FeatureUpgrade)
	}
	return out
}
