package hub

import (
	"fmt"
	"time"

	"causeway/hub/join"
	"causeway/protocol"
)

// RotateKey gives a hub that does not run a new WireGuard key, which its next
// start publishes in a new hub list. The old one stays good for overlap: data is
// relayed for agents that know no other, and they ask for the list over HTTPS. Run again before that
// start it replaces the new key, and leaves the old one no longer good than before. It returns the
// new key and until when the old one is good.
func RotateKey(dir string, overlap time.Duration) (key protocol.WireGuardPublicKey, until time.Time, err error) {
	unlock, err := openDataDir(dir)
	if err != nil {
		return key, until, err
	}
	defer unlock()
	if key, until, err = join.RotateHubKey(dir, overlap); err != nil {
		err = fmt.Errorf("rotate the hub key: %w", err)
	}
	return key, until, err
}
