package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// What root says of an upgrade does not read, and then there is nothing of it any more: the hub hears
// of the one, and no more of it after the other.
func TestUpgradeResultDoesNotRead(t *testing.T) {
	w := newWorld(t)
	a, err := w.build()
	require.NoError(t, err)
	u := a.upgrades
	u.dir = t.TempDir()
	file := filepath.Join(u.dir, "result.json")
	require.NoError(t, os.WriteFile(file, []byte("{"), 0o644))
	n := testNetmap(1)
	n.Self.Upgrade = &protocol.UpgradeWish{ID: 7, Version: "v9"}
	_, refusal := a.want.Take(n)
	require.Nil(t, refusal)
	require.Zero(t, u.due().ID, "not begun")
	require.Equal(t, protocol.UpgradeFailed, u.told.Load().State)

	require.NoError(t, os.Remove(file))
	_, refusal = a.want.Take(testNetmap(2))
	require.Nil(t, refusal)
	require.Zero(t, u.due().ID)
	require.Nil(t, u.told.Load())

	n.Version = 3
	_, refusal = a.want.Take(n)
	require.Nil(t, refusal)
	require.Equal(t, uint64(7), u.due().ID, "now it may begin")
}
