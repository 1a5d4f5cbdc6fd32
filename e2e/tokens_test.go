package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// What becomes of tokens that are not (or no longer) good: one clear line,
// status 1, and nothing half done.
func TestTokens(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	host := nodes[1].Host
	clean := snapshot(host)
	hubSays := map[string]bool{} // what the hub let these hosts read
	refused := func(t *testing.T, name, token string, want ...string) string {
		t.Helper()
		n, err := s.Prepare(NodeSpec{Name: name, Site: "s2", Host: host})
		require.NoError(t, err)
		_, err = n.Redeem(step(t), token, "--wait", "0")
		requireOneLine(t, err, want...)
		require.Equal(t, 1, exitCode(t, failed(t, err)))
		requireNoSecret(t, err.Error(), token)
		_, runErr := n.Host.Run(step(t), n.bin, "run", "--state-dir", n.StateDir, "--config", n.Config, "--debug-socket", n.Socket)
		requireOneLine(t, runErr, "join")
		require.NoFileExists(t, filepath.Join(n.StateDir, "identity.json"))
		require.Equal(t, clean, snapshot(host))
		list, listErr := s.Nodes(step(t))
		require.NoError(t, listErr)
		require.NotContains(t, list, name)
		return failed(t, err).Stderr
	}
	refusedByHub := func(t *testing.T, name, token string) {
		t.Helper()
		hubSays[refused(t, name, token, "the hub refused", "token")] = true
	}

	good, err := s.Token(step(t), "s1")
	require.NoError(t, err)
	parsed, err := protocol.ParseToken(good)
	require.NoError(t, err)

	t.Run("malformed", func(t *testing.T) {
		for i, bad := range []string{"x", "cw1.a.b.c.d", good[1:], "cw2" + good[3:], good + "x", strings.Repeat("cw1.", 300), parsed.String()} {
			refused(t, "malformed"+string(rune('a'+i)), bad, "token")
		}
	})
	t.Run("foreign", func(t *testing.T) {
		// Made by no hub: the right pin, but an id that nobody knows.
		x, err := protocol.NewToken(parsed.Pin, parsed.Addr)
		require.NoError(t, err)
		refusedByHub(t, "foreign", x.Text())
		// The right id with another secret.
		y := x
		y.ID = parsed.ID
		refusedByHub(t, "secret", y.Text())
		// Made by another cluster: the pin does not fit the hub's key.
		z := parsed
		z.Pin[0] ^= 1
		refused(t, "pin", z.Text(), "pin")
	})
	t.Run("no hub there", func(t *testing.T) {
		x := parsed
		x.Addr = "203.0.113.99:443"
		refused(t, "nohub", x.Text(), "203.0.113.99:443")
		x.Addr = HubAddr + ":444"
		refused(t, "noport", x.Text(), HubAddr+":444")
	})
	t.Run("expired", func(t *testing.T) {
		old, err := s.Token(step(t), "s1", "--ttl", "1s")
		require.NoError(t, err)
		require.NoError(t, Wait(t, func() error {
			var list []api.Token
			if err := s.Ask(step(t), &list, "token", "list"); err != nil {
				return err
			}
			for _, x := range list {
				if strings.Contains(old, x.ID) && x.State == "expired" {
					return nil
				}
			}
			return errState("not expired")
		}))
		refusedByHub(t, "expired", old)
	})
	t.Run("revoked", func(t *testing.T) {
		x, err := s.Token(step(t), "s1")
		require.NoError(t, err)
		p, err := protocol.ParseToken(x)
		require.NoError(t, err)
		_, err = s.CLI(step(t), "token", "revoke", p.ID.String())
		require.NoError(t, err)
		refusedByHub(t, "revoked", x)
	})
	t.Run("used", func(t *testing.T) {
		n, err := s.Prepare(NodeSpec{Name: "n1", Site: "s1", Host: nodes[0].Host})
		require.NoError(t, err)
		_, err = n.Redeem(step(t), good)
		require.NoError(t, err, "the refused ones did not use it up")
		refusedByHub(t, "second", good)
		require.NoError(t, n.Start())
		require.NoError(t, s.WaitReady(step(t), "n1"), "the first one is not harmed")
	})
	t.Run("from a file and standard input", func(t *testing.T) {
		x, err := s.Token(step(t), "s2")
		require.NoError(t, err)
		f := filepath.Join(nodes[1].Host.Dir(), "token")
		require.NoError(t, os.WriteFile(f, []byte(x+"\n"), 0o600))
		n, err := s.Prepare(NodeSpec{Name: "n2", Site: "s2", Host: host})
		require.NoError(t, err)
		_, err = n.Redeem(step(t), "@"+f)
		require.NoError(t, err)
		x, err = s.Token(step(t), "s2")
		require.NoError(t, err)
		n, err = s.Prepare(NodeSpec{Name: "n3", Site: "s2", Host: host})
		require.NoError(t, err)
		_, err = host.Run(step(t), "sh", "-c", "echo "+x+" | "+n.bin+" join - --state-dir "+n.StateDir+" --name n3")
		require.NoError(t, err)
	})
	require.Len(t, hubSays, 1, "told alike whatever the reason: %v", hubSays)
	out, err := s.CLI(step(t), "audit")
	require.NoError(t, err)
	for _, reason := range []string{"unknown token", "wrong secret", "expired at", "revoked", "used already by node n1"} {
		require.Contains(t, out, "join refused: "+reason)
	}
	require.NotContains(t, s.Hub.Proc.Output(), secretOf(good), "never logged")
}

func secretOf(token string) string {
	if f := strings.SplitN(token, ".", 5); len(f) == 5 {
		return f[2]
	}
	return token
}

func requireNoSecret(t *testing.T, text, token string) {
	t.Helper()
	if s := secretOf(token); len(s) == 43 {
		// The command line of the test itself is part of the error.
		require.NotContains(t, strings.ReplaceAll(text, token, ""), s)
	}
}
