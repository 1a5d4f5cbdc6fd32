package debug

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where root made a link, the socket is made where it leads: no other user of the directory
// can take its name. Anybody else's link is refused.
func TestListenBehindLink(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root makes root's links
	}
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "agent"), 0o755))
	link := filepath.Join(dir, "agent.sock")
	require.NoError(t, os.Symlink("agent/agent.sock", link))
	for range 2 { // one that is left over, too
		l, err := Listen(t.Context(), link)
		require.NoError(t, err)
		c, err := net.Dial("unix", link)
		require.NoError(t, err)
		c.Close()
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
		to, err := os.Readlink(link)
		require.NoError(t, err)
		require.Equal(t, "agent/agent.sock", to)
	}
	require.NoError(t, os.Lchown(link, 65534, 65534))
	_, err := Listen(t.Context(), link)
	require.ErrorContains(t, err, "a file that is no socket is there")
}
