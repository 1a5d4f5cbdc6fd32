// Package join redeems a one-time token: it fetches the hub list, checks it
// against the token's pin, proves possession of a fresh WireGuard key by
// Noise IK and stores the identity that the hub gave.
//
// TLS is transport only here. Nothing in it is trusted, so that load balancers
// and intercepting proxies do not matter; the pin authenticates the hub, and
// the token's secret leaves the host only inside Noise, to a hub key that the
// pinned cluster key signed.
package join

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/flynn/noise"

	"causeway/agent/identity"
	"causeway/agent/netmapcheck"
	"causeway/internal/retry"
	"causeway/protocol"
)

// Config says how to join.
type Config struct {
	Token   protocol.Token
	Name    string // wanted node name, a DNS label
	Replace bool   // ask for an existing node's name; take an existing identity's place
	Version string // of this agent
	// Wait is how long what passes by itself is tried again; 0: not at all. Progress, if not
	// nil, is told of each such try.
	Wait     time.Duration
	Progress func(Progress)
	// Proxy chooses an HTTP proxy; nil: from the environment.
	Proxy func(*http.Request) (*url.URL, error)
	// ProxyFrom says where Proxy is named; empty: in the environment.
	ProxyFrom string
}

// timeout bounds one request: dial, TLS and answer each, and the whole.
const timeout = 10 * time.Second

// ErrAlreadyJoined says that the state directory holds an identity.
var ErrAlreadyJoined = errors.New("this host has joined already")

// AlreadyJoined is the error of a join onto dir, which holds id.
func AlreadyJoined(dir string, id identity.Identity) error {
	return fmt.Errorf("%w: %s holds node %s (number %d, site %s); 'causeway-agent leave' ends it, 'join --replace' takes its place",
		ErrAlreadyJoined, dir, id.Name, id.Number, id.Site)
}

// Join redeems the token and stores the identity in s. If it fails before a
// hub can have redeemed the token, or with a refusal, it leaves nothing
// behind; if the answer was lost, it leaves the keys, and the same token given
// again gets the same answer.
func Join(ctx context.Context, s *identity.Store, c Config) (identity.Identity, error) {
	old, err := s.Identity()
	madeDir := s.Made() || err == nil && old.MadeDir
	switch {
	case err == nil && !c.Replace:
		return identity.Identity{}, AlreadyJoined(s.Dir(), old)
	case err != nil && !errors.Is(err, identity.ErrNotJoined) && !c.Replace:
		return identity.Identity{}, err
	}
	if !protocol.ValidName(c.Name) {
		return identity.Identity{}, fmt.Errorf("name %q cannot name a node; give one of 1 to 63 lower case letters, digits and '-' with --name", c.Name)
	}
	cl := newClient(c)
	defer cl.CloseIdleConnections()
	w := newWaiter(c)
	var list shownList
	err = w.do(ctx, func() (err error) { list, err = fetchList(ctx, cl, c.Token); return err })
	if err != nil {
		return identity.Identity{}, err
	}

	p, ok := s.Pending()
	if !ok || p.TokenID != c.Token.ID {
		if p, err = newPending(c.Token.ID); err != nil {
			return identity.Identity{}, err
		}
	}
	p.MadeDir = p.MadeDir || madeDir
	if err := s.SavePending(p); err != nil {
		return identity.Identity{}, err
	}
	var ans protocol.JoinAnswer
	joined := how(c)
	ctx = joined.trace(ctx)
	err = w.do(ctx, func() (err error) { ans, err = redeem(ctx, cl, list.HubList, p, c); return err })
	if err != nil {
		var r *RefusedError
		if errors.As(err, &r) && r.Code != protocol.RefusedBusy && r.Code != protocol.RefusedHalted {
			if e := s.RemovePending(); e != nil {
				err = fmt.Errorf("%w (and %v)", err, e)
			}
		}
		return identity.Identity{}, err
	}
	id, err := checkAnswer(ans, p, c.Token, list.Serial)
	if err != nil {
		return identity.Identity{}, err
	}
	if !list.fresh.IsZero() {
		id.HubListConfirmed = list.fresh
	}
	// Netmap and pins of an earlier identity say nothing about this one.
	if err := s.RemoveNetmap(); err != nil {
		return identity.Identity{}, err
	}
	id.Joined = joined.record()
	if host, addr, ok := joined.named(); ok {
		if err := s.SaveAddrs(map[string][]netip.Addr{host: {addr}}); err != nil {
			return identity.Identity{}, err
		}
	}
	if err := s.SaveIdentity(id); err != nil {
		return identity.Identity{}, err
	}
	return id, s.RemovePending()
}

func newPending(t protocol.TokenID) (p identity.Pending, err error) {
	p.TokenID = t
	if p.WireGuardKey, err = protocol.NewWireGuardPrivateKey(); err != nil {
		return p, fmt.Errorf("make key: %w", err)
	}
	if p.IdentityKey, err = protocol.NewIdentityPrivateKey(); err != nil {
		return p, fmt.Errorf("make key: %w", err)
	}
	return p, nil
}

func newClient(c Config) *http.Client {
	proxy := c.Proxy
	if proxy == nil {
		proxy = http.ProxyFromEnvironment
	}
	choose := func(r *http.Request) (*url.URL, error) {
		u, err := proxy(r)
		if err != nil { // it quotes the setting, and with it a password
			return nil, errors.New("the proxy setting (HTTPS_PROXY) is no URL; write http://HOST:PORT")
		}
		return u, nil
	}
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			Proxy: choose,
			// The certificate is not looked at: whoever presents it may be a
			// load balancer or an intercepting proxy. The hub is
			// authenticated by the token's pin and by Noise.
			TLSClientConfig:     &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: timeout, OnProxyConnectResponse: retry.ProxyAnswer,
		},
		// The paths are fixed; a redirect comes from something that is no hub.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// shownList is a hub list that the pinned key signed.
type shownList struct {
	protocol.HubList
	fresh time.Time // when it was shown to be the newest, by this host's clock; zero: nobody says so
}

// fetchList gets the hub list and checks the pin, and that it is the newest where
// the token requires that, or the hub says so. Nothing secret has been sent when it returns.
func fetchList(ctx context.Context, cl *http.Client, t protocol.Token) (shownList, error) {
	nonce, err := protocol.NewListNonce()
	if err != nil {
		return shownList{}, fmt.Errorf("make a nonce: %w", err)
	}
	asked := time.Now().UTC()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+t.Addr+protocol.PathHubList+"?"+protocol.NonceParameter+"="+nonce.String(), nil)
	if err != nil {
		return shownList{}, fmt.Errorf("%w: its address: %v", protocol.ErrMalformedToken, err)
	}
	b, err := ask(cl, req, t, protocol.MaxHubList)
	if err != nil {
		return shownList{}, err
	}
	if len(b) > protocol.MaxHubList {
		return shownList{}, notAHub(t.Addr, "a hub list longer than 256 KiB")
	}
	var answer protocol.HubListAnswer
	if err := json.Unmarshal(b, &answer); err != nil {
		return shownList{}, notAHub(t.Addr, "something that is no hub list")
	}
	least, required := t.Required()
	shown := shownList{fresh: asked}
	if required || answer.Fresh != nil {
		shown.HubList, err = answer.OpenFresh(t.Pin, nonce)
	} else { // a hub of before
		shown.fresh = time.Time{}
		shown.HubList, err = answer.Open(t.Pin)
	}
	if err == nil && required && shown.Serial < least {
		err = fmt.Errorf("%w: list %d was shown, and the hub had list %d when it made the token", protocol.ErrNotFresh, shown.Serial, least)
	}
	switch {
	case errors.Is(err, protocol.ErrPinMismatch):
		return shownList{}, fmt.Errorf("%w: %s is not the hub that made the token; nothing secret was sent to it; check the token's address, or make a token there with 'causeway token create'", err, t.Addr)
	case errors.Is(err, protocol.ErrNotFresh):
		return shownList{}, fmt.Errorf("hub at %s: %w; nothing secret was sent to it: somebody who holds an old key of the hub may stand in the way. Look at where %s leads, run the same command again, or make a new token with 'causeway token create' if the hub was set back to an older version", t.Addr, err, t.Addr)
	case err != nil:
		return shownList{}, fmt.Errorf("hub at %s: %w; look at the hub's log", t.Addr, err)
	}
	if err := shown.ValidAt(time.Now()); err != nil {
		return shownList{}, fmt.Errorf("hub at %s: %w; check this host's clock, then the hub's", t.Addr, err)
	}
	return shown, nil
}

func notAHub(addr, what string) error {
	return fmt.Errorf("%s answers with %s: no Causeway hub is there; check the token's address and any proxy between", addr, what)
}

// RefusedError is a hub's refusal.
type RefusedError struct {
	Code    string
	Message string
}

// Error says what the hub said and what to do.
func (e *RefusedError) Error() string {
	todo := map[string]string{
		protocol.RefusedToken:   "'causeway audit' on the hub has the reason; 'causeway token create' makes a new token",
		protocol.RefusedBusy:    "try again with the same token",
		protocol.RefusedHalted:  "then try again with the same token",
		protocol.RefusedVersion: "install the agent version that fits the hub",
	}[e.Code]
	msg := "the hub refused to join this host"
	if m := clean(e.Message); m != "" {
		msg += ": " + m
	}
	if todo != "" {
		msg += "; " + todo
	}
	return msg
}

// clean makes text from the network fit for one line on a terminal.
func clean(s string) string {
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return strings.TrimRight(strings.TrimSpace(protocol.Printable(strings.ToValidUTF8(s, ""))), ".;")
}

// redeem runs Noise IK with a listed hub. The hub behind the token's address
// is the one that lists it; behind a load balancer it may be any, so that a
// hub that cannot open the message is no end.
func redeem(ctx context.Context, cl *http.Client, list protocol.HubList, p identity.Pending, c Config) (protocol.JoinAnswer, error) {
	hubs := slices.Clone(list.Hubs)
	slices.SortStableFunc(hubs, func(a, b protocol.Hub) int {
		return boolInt(slices.Contains(b.HTTPS, c.Token.Addr)) - boolInt(slices.Contains(a.HTTPS, c.Token.Addr))
	})
	err := errors.New("no hub")
	for _, h := range hubs {
		var ans protocol.JoinAnswer
		ans, err = redeemAt(ctx, cl, h, p, c)
		if !errors.Is(err, errNotOpened) {
			return ans, err
		}
	}
	return protocol.JoinAnswer{}, err
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

var errNotOpened = errors.New("the hub could not read the join message")

func redeemAt(ctx context.Context, cl *http.Client, h protocol.Hub, p identity.Pending, c Config) (ans protocol.JoinAnswer, err error) {
	pub := p.WireGuardKey.Public()
	hs, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s),
		Random:      rand.Reader, Pattern: noise.HandshakeIK, Initiator: true, Prologue: []byte(protocol.JoinPrologue),
		StaticKeypair: noise.DHKey{Private: p.WireGuardKey[:], Public: pub[:]}, PeerStatic: h.WireGuardKey[:],
	})
	if err != nil {
		return ans, fmt.Errorf("join handshake: %w", err)
	}
	payload, err := json.Marshal(protocol.JoinRequest{
		Version: protocol.Version, TokenID: c.Token.ID, Secret: c.Token.Secret[:], Name: c.Name,
		IdentityKey: p.IdentityKey.Public(), Replace: c.Replace, AgentVersion: c.Version, Proves: true,
	})
	if err != nil {
		return ans, fmt.Errorf("join handshake: %w", err)
	}
	msg, _, _, err := hs.WriteMessage(nil, payload)
	if err != nil {
		return ans, fmt.Errorf("join handshake: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.Token.Addr+protocol.PathJoin, bytes.NewReader(msg))
	if err != nil {
		return ans, fmt.Errorf("%w: its address: %v", protocol.ErrMalformedToken, err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	b, err := ask(cl, req, c.Token, protocol.MaxJoinMessage)
	var status *retry.StatusError
	switch {
	case errors.As(err, &status) && status.Proxy == "" && status.Code == http.StatusBadRequest:
		return ans, fmt.Errorf("%w; hub and agent may be of different versions, or a proxy changes what passes", errNotOpened)
	case err != nil:
		return ans, err
	}
	if len(b) > protocol.MaxJoinMessage {
		return ans, notAHub(c.Token.Addr, "a join answer that is too long")
	}
	plain, _, _, err := hs.ReadMessage(nil, b)
	if err != nil {
		return ans, fmt.Errorf("the answer of %s is not from the listed hub %d; look for a proxy between, then try again with the same token", c.Token.Addr, h.Number)
	}
	if err := json.Unmarshal(plain, &ans); err != nil {
		return ans, fmt.Errorf("decode the hub's join answer: %w; hub and agent may be of different versions", err)
	}
	if ans.Refused != nil {
		return ans, &RefusedError{ans.Refused.Code, ans.Refused.Message}
	}
	return ans, nil
}

// checkAnswer makes an identity of the answer, if all of it fits together. Its hub list
// has at least this serial.
func checkAnswer(a protocol.JoinAnswer, p identity.Pending, t protocol.Token, least uint64) (identity.Identity, error) {
	bad := func(format string, args ...any) (identity.Identity, error) {
		return identity.Identity{}, fmt.Errorf("the hub's join answer is wrong: %s; look at the hub's log", fmt.Sprintf(format, args...))
	}
	if a.HubList == nil {
		return bad("it has no hub list")
	}
	list, err := a.HubList.Open(t.Pin)
	if err != nil {
		return bad("%v", err)
	}
	if list.Serial < least {
		return bad("its hub list %d is older than list %d, by which it was asked", list.Serial, least)
	}
	if !a.Number.Valid() {
		return bad("number %d is no node number", a.Number)
	}
	for _, h := range list.Hubs {
		if h.Number == a.Number {
			return bad("number %d is a hub's", a.Number)
		}
	}
	if !protocol.ValidName(a.Name) || !protocol.ValidName(a.Site) {
		return bad("name or site is no DNS label")
	}
	if len(a.Overlay) == 0 {
		return bad("it has no overlay address")
	}
	if why := netmapcheck.Overlay(list.Overlay, a.Number, a.Overlay); why != "" {
		return bad("%s", why)
	}
	if len(a.Routes) > protocol.MaxNodeRoutes {
		return bad("it has %d routes", len(a.Routes))
	}
	for _, r := range a.Routes {
		if !r.IsValid() || r != r.Masked() {
			return bad("a route is no prefix")
		}
	}
	if a.Mark != nil && a.Mark.Check(t.Pin) != nil {
		return bad("its mark of the state is not the cluster's")
	}
	return identity.Identity{
		Granted: a.Routes, Mark: a.Mark,
		KeyMade: time.Now().UTC(),
		Number:  a.Number, Name: a.Name, Site: a.Site, Overlay: a.Overlay,
		WireGuardKey: p.WireGuardKey, IdentityKey: p.IdentityKey, KeyEpoch: protocol.FirstKeyEpoch,
		Pin: t.Pin, HubList: *a.HubList, MadeDir: p.MadeDir, Shields: true,
	}, nil
}
