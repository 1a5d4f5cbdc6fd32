package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// The rules of Docker 29 come to a host with an agent: with its iptables backend pods go on reaching each
// other both ways, with nobody's help; with its nftables backend the hub is told what mends it, and
// that does. Each time its rules come anew, as with a restart of Docker or of a container. Docker itself is in
// TestDocker29Engine.
func TestDocker29Rules(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	one, two := nodes[0].Pod, nodes[1].Pod
	root, err := moduleRoot(step(t))
	require.NoError(t, err)
	rules := func(backend string) string {
		b, err := os.ReadFile(filepath.Join(root, "netns/look/testdata/docker29", backend))
		require.NoError(t, err)
		return strings.ReplaceAll(string(b), "10.1.0.", "10.1.1.")
	}
	both := func() {
		t.Helper()
		require.NoError(t, Ping(step(t), one.Host, two.V4))
		require.NoError(t, Ping(step(t), two.Host, one.V4))
		require.NoError(t, s.WaitReady(step(t), "n1"))
	}
	both()
	for range 2 {
		nodes[0].Host.Sh("iptables-nft-restore <<'X'\n" + rules("iptables") + "X")
		both()
	}
	nodes[0].Host.Sh("for t in raw filter nat; do nft delete table ip $t; done; nft -f - <<'X'\n" + rules("nftables") + "X")
	require.NoError(t, Wait(t, func() error {
		list, err := s.Nodes(step(t))
		if err == nil && !strings.Contains(strings.Join(list["n1"].Reasons, " "), protocol.DockerMend()) {
			err = fmt.Errorf("the hub says of n1: %v", list["n1"].Reasons)
		}
		return err
	}))
	require.Error(t, PingOnce(step(t), two.Host, one.V4))
	// As Docker writes them with what the mend says in its daemon.json.
	var mended strings.Builder
	for l := range strings.Lines(rules("nftables")) {
		if strings.Contains(l, "DROP DIRECT ACCESS") {
			continue
		}
		if strings.Contains(l, `comment "ICC"`) {
			fmt.Fprintf(&mended, "meta mark and %d == %d counter accept comment \"ALLOW FW MARK\"\n", protocol.DockerMark, protocol.DockerMark)
		}
		mended.WriteString(l)
	}
	nodes[0].Host.Sh("nft delete table ip docker-bridges; nft -f - <<'X'\n" + mended.String() + "X")
	both()
}
