package hub

import (
	"fmt"
	"time"

	"causeway/hub/join"
	"causeway/protocol"
)

// RotateKey gives a hub that does not run a new WireGuard key, which its next
// start publishes in a new hub list. The old one stays good for overlap: data is
// relayed for agents that know no other, and they ask for the list over HTTPS.
func RotateKey(dir string, overlap time.Duration) (protocol.WireGuardPublicKey, error) {
	unlock, err := openDataDir(dir)
	if err != nil {
		return protocol.WireGuardPublicKey{}, err
	}
	defer unlock()
	key, err := join.RotateHubKey(dir, overlap)
	if err != nil {
		return key, fmt.Errorf("rotate the hub key: %w", err)
	}
	return key, nil
}
