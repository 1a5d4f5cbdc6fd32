// Package jointest redeems tokens as a joining host does, for tests that have
// many hosts, or odd ones.
package jointest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/flynn/noise"

	"causeway/protocol"
)

// Client makes an HTTP client that, like a joining host, looks at no
// certificate. dial may be nil.
func Client(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}

// StatusError is an HTTP status other than 200.
type StatusError int

// Error names the status.
func (e StatusError) Error() string { return fmt.Sprintf("http status %d", int(e)) }

// HubList fetches the hub list and checks the token's pin.
func HubList(c *http.Client, tok protocol.Token) (list protocol.HubList, err error) {
	resp, err := c.Get("https://" + tok.Addr + protocol.PathHubList)
	if err != nil {
		return list, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return list, StatusError(resp.StatusCode)
	}
	var signed protocol.SignedHubList
	if err := json.NewDecoder(resp.Body).Decode(&signed); err != nil {
		return list, err
	}
	if list, err = signed.Open(tok.Pin); err != nil {
		return list, err
	}
	return list, list.ValidAt(time.Now())
}

// Redeem sends req to the hub with key hub at the token's address.
func Redeem(c *http.Client, tok protocol.Token, hub protocol.WireGuardPublicKey, key protocol.WireGuardPrivateKey, req protocol.JoinRequest) (ans protocol.JoinAnswer, err error) {
	pub := key.Public()
	hs, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s), Pattern: noise.HandshakeIK, Initiator: true,
		Prologue: []byte(protocol.JoinPrologue), StaticKeypair: noise.DHKey{Private: key[:], Public: pub[:]}, PeerStatic: hub[:],
	})
	if err != nil {
		return ans, err
	}
	b, err := json.Marshal(req)
	if err != nil {
		return ans, err
	}
	msg, _, _, err := hs.WriteMessage(nil, b)
	if err != nil {
		return ans, err
	}
	resp, err := c.Post("https://"+tok.Addr+protocol.PathJoin, "application/octet-stream", bytes.NewReader(msg))
	if err != nil {
		return ans, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return ans, StatusError(resp.StatusCode)
	}
	if b, err = io.ReadAll(resp.Body); err != nil {
		return ans, err
	}
	if b, _, _, err = hs.ReadMessage(nil, b); err != nil {
		return ans, err
	}
	return ans, json.Unmarshal(b, &ans)
}
