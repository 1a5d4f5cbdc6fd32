package identity

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// What readers see is on disk; what the disk does not take is not seen, or holds for the run; and
// after a leave nothing brings the identity back.
func TestOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := Create(dir)
	require.NoError(t, err)
	defer s.Close()
	id := sample(t)
	require.NoError(t, s.SaveIdentity(id))
	var told []error
	o := NewOwn(s, id, func(err error) { told = append(told, err) })

	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { o.Change(func(id *Identity) { id.KeyEpoch++ }) })
	}
	wg.Wait()
	stored, err := s.Identity()
	require.NoError(t, err)
	require.Equal(t, id.KeyEpoch+20, o.Now().KeyEpoch, "none is lost")
	require.Equal(t, o.Now().KeyEpoch, stored.KeyEpoch)
	require.Len(t, told, 20)

	require.NoError(t, os.Rename(dir, dir+".away"))
	require.Error(t, o.Change(func(id *Identity) { id.KeyEpoch = 1000 }))
	require.Error(t, told[20])
	require.Equal(t, stored.KeyEpoch, o.Now().KeyEpoch)
	require.Error(t, o.Hold(func(id *Identity) { id.KeyEpoch = 2000 }))
	require.Equal(t, uint32(2000), o.Now().KeyEpoch)
	require.NoError(t, os.Rename(dir+".away", dir))

	require.NoError(t, o.Leave())
	require.True(t, o.Left())
	require.ErrorIs(t, o.Change(func(*Identity) {}), errLeft)
	require.ErrorIs(t, o.Hold(func(*Identity) {}), errLeft)
	_, err = s.Identity()
	require.ErrorIs(t, err, ErrNotJoined)
}

func TestPublicKeys(t *testing.T) {
	id := sample(t)
	require.Equal(t, []protocol.WireGuardPublicKey{id.WireGuardKey.Public()}, id.PublicKeys())
	next, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	id.Next = &NextKey{Key: next}
	id.Take(id.KeyMade)
	require.Len(t, id.PublicKeys(), 1, "no overlap")
	id.Old = next
	require.Len(t, id.PublicKeys(), 2)
}
