package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flynn/noise"
	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// impostor stands in the way of a host to the hub, with a hub key that was taken out of use
// and the hub list of that time.
type impostor struct {
	key  protocol.WireGuardPrivateKey
	list protocol.SignedHubList
	// answer is what it makes of the hub's own answer to the question for the list.
	answer func(protocol.HubListAnswer) protocol.HubListAnswer
	client *http.Client // to the hub

	mu      sync.Mutex
	asked   int      // for the list
	posted  int      // joins
	secrets []string // that it read
}

func (i *impostor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if r.URL.Path == protocol.PathHubList {
		i.asked++
		resp, err := i.client.Get("https://" + HubAddr + r.URL.RequestURI())
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		var a protocol.HubListAnswer
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		json.NewEncoder(w).Encode(i.answer(a))
		return
	}
	i.posted++
	b, _ := io.ReadAll(io.LimitReader(r.Body, protocol.MaxJoinMessage))
	pub := i.key.Public()
	hs, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s), Pattern: noise.HandshakeIK,
		Prologue: []byte(protocol.JoinPrologue), StaticKeypair: noise.DHKey{Private: i.key[:], Public: pub[:]},
	})
	if err == nil {
		var plain []byte
		if plain, _, _, err = hs.ReadMessage(nil, b); err == nil {
			var req protocol.JoinRequest
			if json.Unmarshal(plain, &req) == nil {
				i.secrets = append(i.secrets, string(req.Secret))
			}
		}
	}
	w.WriteHeader(http.StatusInternalServerError)
}

// counts returns asked, posted and the secrets read since the last call.
func (i *impostor) counts() (asked, posted int, secrets []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	asked, posted, secrets = i.asked, i.posted, i.secrets
	i.asked, i.posted, i.secrets = 0, 0, nil
	return asked, posted, secrets
}

// Whoever has a hub key that 'rotate-key --overlap 0' took out of use, and the hub list of
// that time, and sits in the way of a join, reads no token's secret: whatever he answers,
// nothing is sent to him.
func TestJoinPastOldHubKey(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	s, nodes := newSmall(t, 2)
	victim, way := nodes[0].Host, nodes[1].Host
	client := &http.Client{Timeout: stepTimeout, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			derr := way.Do(func() error {
				c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
				return err
			})
			return c, derr
		}}}
	i := &impostor{client: client}
	// What was stolen.
	b, err := os.ReadFile(filepath.Join(s.Hub.Dir, "hub.key"))
	require.NoError(t, err)
	i.key, err = protocol.ParseWireGuardPrivateKey(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	resp, err := client.Get("https://" + HubAddr + protocol.PathHubList)
	require.NoError(t, err)
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&i.list))
	resp.Body.Close()
	for _, odd := range []string{"x", strings.Repeat("A", 44), strings.Repeat("%2f", 43)} {
		resp, err := client.Get("https://" + HubAddr + protocol.PathHubList + "?" + protocol.NonceParameter + "=" + odd)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, odd)
	}
	before, err := s.Token(step(t), "s1") // by the list that names the old key
	require.NoError(t, err)

	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	_, err = s.Hub.Host.RunAs(step(t), lab.Nobody, s.Bin.Hub, "rotate-key", "--data-dir", s.Hub.Dir, "--overlap", "0")
	require.NoError(t, err)
	require.NoError(t, s.StartHub(step(t)))
	after, err := s.Token(step(t), "s1")
	require.NoError(t, err)

	// Who stands in the way.
	var l net.Listener
	require.NoError(t, way.Do(func() (err error) {
		l, err = net.Listen("tcp", ":443")
		return err
	}))
	srv := httptest.NewUnstartedServer(i)
	srv.Listener.Close()
	srv.Listener = l
	srv.StartTLS()
	defer srv.Close()
	victim.Nft("table ip way {\nchain out {\ntype nat hook output priority -100\nip daddr " + HubAddr + " tcp dport 443 dnat to " + nodes[1].LAN + "\n}\n}")

	n, err := s.Prepare(NodeSpec{Name: "n1", Site: "s1", Host: victim})
	require.NoError(t, err)
	var earlier *protocol.Freshness // said to somebody who asked before
	for _, c := range []struct {
		name, want string
		token      string
		answer     func(protocol.HubListAnswer) protocol.HubListAnswer
	}{
		{"the old list", "the answer says nothing of it", after, func(protocol.HubListAnswer) protocol.HubListAnswer {
			return protocol.HubListAnswer{SignedHubList: i.list}
		}},
		{"the old list, to a token of that time", "the answer says nothing of it", before, func(protocol.HubListAnswer) protocol.HubListAnswer {
			return protocol.HubListAnswer{SignedHubList: i.list}
		}},
		{"the old list beside the hub's word for the new one", "and list 1 was shown", after, func(a protocol.HubListAnswer) protocol.HubListAnswer {
			earlier = a.Fresh
			return protocol.HubListAnswer{SignedHubList: i.list, Fresh: a.Fresh}
		}},
		{"the same to a token of that time", "and list 1 was shown", before, func(a protocol.HubListAnswer) protocol.HubListAnswer {
			return protocol.HubListAnswer{SignedHubList: i.list, Fresh: a.Fresh}
		}},
		{"a word said to another", "one to another question", after, func(a protocol.HubListAnswer) protocol.HubListAnswer {
			a.Fresh = earlier
			return a
		}},
	} {
		i.answer = c.answer
		_, err = n.Redeem(step(t), c.token)
		requireOneLine(t, err, c.want)
		require.ErrorContains(t, err, "nothing secret was sent to it")
		require.ErrorContains(t, err, "run the same command again")
		require.ErrorContains(t, err, "'causeway token create'")
		asked, posted, secrets := i.counts()
		t.Logf("%s: %d questions for the list, %d joins, %d secrets read", c.name, asked, posted, len(secrets))
		require.Equal(t, 1, asked)
		require.Zero(t, posted)
		require.NoDirExists(t, n.StateDir, "nothing half done")
	}
	// Without the requirement, as tokens were before, he reads the secret: the test would see it.
	plain, err := protocol.ParseToken(after)
	require.NoError(t, err)
	plain.Secret[0]++
	i.answer = func(protocol.HubListAnswer) protocol.HubListAnswer {
		return protocol.HubListAnswer{SignedHubList: i.list}
	}
	_, err = n.Redeem(step(t), plain.Text(), "--wait", "0")
	require.Error(t, err)
	_, _, secrets := i.counts()
	require.Equal(t, []string{string(plain.Secret[:])}, slices.Compact(secrets), "each try has the same one")

	// What he only passes on helps him nothing: the join goes to the new key.
	i.answer = func(a protocol.HubListAnswer) protocol.HubListAnswer { return a }
	_, err = n.Redeem(step(t), after, "--wait", "0")
	require.Error(t, err)
	_, posted, secrets := i.counts()
	require.Positive(t, posted)
	require.Empty(t, secrets)

	// The way is free again: what the error says to do, does it.
	victim.Sh("nft delete table ip way")
	_, err = n.Redeem(step(t), after)
	require.NoError(t, err)
	require.NoError(t, n.Start())
	require.NoError(t, s.WaitReady(step(t), "n1"))
}
