package hublink

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/identity"
	"causeway/protocol"
)

func TestKeyDue(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	id := identity.Identity{Number: 5, KeyEpoch: 3, KeyMade: now.Add(-20 * time.Hour)}
	due := func(change func(*identity.Identity), self protocol.NetmapSelf) bool {
		i := id
		if change != nil {
			change(&i)
		}
		_, due := keyDue(now, i, self)
		return due
	}
	require.False(t, due(nil, protocol.NetmapSelf{}))
	require.False(t, due(nil, protocol.NetmapSelf{KeyEpoch: 3}))
	require.True(t, due(nil, protocol.NetmapSelf{KeyEpoch: 4}))
	require.False(t, due(func(i *identity.Identity) { i.Next = &identity.NextKey{} }, protocol.NetmapSelf{KeyEpoch: 4}), "one is under way")
	require.False(t, due(func(i *identity.Identity) { i.KeyMade = now }, protocol.NetmapSelf{KeyEpoch: 4}), "a hub that asks without end")
	require.False(t, due(func(i *identity.Identity) { i.KeyEpoch = ^uint32(0) }, protocol.NetmapSelf{RotateKeys: time.Hour}))
	require.False(t, due(nil, protocol.NetmapSelf{RotateKeys: 24 * time.Hour}))
	require.True(t, due(nil, protocol.NetmapSelf{RotateKeys: 20 * time.Hour}))
	require.False(t, due(func(i *identity.Identity) { i.KeyMade = now.Add(-time.Minute) }, protocol.NetmapSelf{RotateKeys: 1}), "never more often than each hour")
	require.Empty(t, keysCause(now, id, protocol.NetmapSelf{RotateKeys: 20 * time.Hour}, ""))
	require.NotEmpty(t, keysCause(now, id, protocol.NetmapSelf{RotateKeys: 15 * time.Hour}, ""))
	waits := id
	waits.Next = &identity.NextKey{Made: now.Add(-time.Hour)}
	require.Contains(t, keysCause(now, waits, protocol.NetmapSelf{}, ""), "waits for a hub")
}
