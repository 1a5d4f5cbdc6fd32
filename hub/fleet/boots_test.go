package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/protocol"
)

func boot(r rune) protocol.BootID { return protocol.BootID{byte(r)} }

// Of what single machines do, nothing is taken for a clone; what two do, is.
func TestBoots(t *testing.T) {
	for name, c := range map[string]struct {
		runs   string // boot ids as they are proven
		cloned bool
	}{
		"one start":               {"A", false},
		"restarts":                {"ABCDEFGH", false},
		"many restarts":           {"ABCDEFGHIJKLMNOPQRSTUVWXYZ", false},
		"snapshot of memory":      {"ABA", false},
		"snapshot, then restarts": {"ABACDE", false},
		"snapshot, twice":         {"ABACA", false},
		"snapshot of a disk":      {"ABC", false},
		"two machines":            {"ABAB", true},
		"two, one restarts":       {"ABACAC", true},
		"three machines":          {"ABCAB", true},
		"clone appears late":      {"ABCDED" + "E", true},
	} {
		var b boots
		now, cloned := time.Unix(0, 0), false
		for _, r := range c.runs {
			now = now.Add(5 * time.Second)
			cloned = b.next(boot(r), now) || cloned
			cloned = b.next(boot(r), now) || cloned // said again
		}
		require.Equal(t, c.cloned, cloned, name)
	}
	// Signs that lie far apart do not add up.
	var b boots
	now := time.Unix(0, 0)
	for _, r := range "ABAB" {
		require.False(t, b.next(boot(r), now))
		now = now.Add(cloneWindow + time.Second)
	}
}

// A single machine: starts are new, and at any time it may be set back to one
// snapshot of its memory. It is never taken for two. What is kept stays bounded.
func TestBootsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b boots
		now, next, snap := time.Unix(0, 0), 1, 0
		for _, back := range rapid.SliceOfN(rapid.Bool(), 1, 100).Draw(t, "back") {
			id := snap
			if !back {
				next++
				id = next
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 600).Draw(t, "s")) * time.Second)
			require.False(t, b.next(protocol.BootID{byte(id), byte(id >> 8), 1}, now))
			require.LessOrEqual(t, len(b.seen), maxBoots)
			require.LessOrEqual(t, len(b.back), maxBoots)
		}
	})
}
