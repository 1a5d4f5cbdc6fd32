package state

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var epoch0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func key(n byte) (k protocol.WireGuardPublicKey) { k[0], k[1] = n, 1; return k }

func identity(n byte) protocol.IdentityPrivateKey { return protocol.IdentityPrivateKey{n, 2} }

func secretOf(n byte) protocol.TokenSecret { return protocol.TokenSecret{n, 3} }

// draft is a draft on a cluster with one hub and sites a (10.1.0.0/16) and b.
func draft(t testing.TB) *Draft {
	t.Helper()
	d := &Draft{State: New(), Now: epoch0}
	add(t, d, ClusterCreated{protocol.ClusterPublicKey{1}, 1, []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}})
	add(t, d, HubAdded{1})
	add(t, d, SiteCreated{"a", []netip.Prefix{prefix("10.1.0.0/16")}})
	add(t, d, SiteCreated{"b", nil})
	return d
}

func add(t testing.TB, d *Draft, cs ...Change) {
	t.Helper()
	for _, c := range cs {
		require.NoError(t, d.Add(c), "%T", c)
	}
}

func token(t testing.TB, d *Draft, n byte, c TokenCreated) protocol.TokenID {
	t.Helper()
	h := secretOf(n).Hash()
	c.ID, c.Hash, c.Expires = protocol.TokenID{n}, h[:], d.Now.Add(time.Hour)
	add(t, d, c)
	return c.ID
}

func redeem(n byte, name string) RedeemRequest {
	return RedeemRequest{Token: protocol.TokenID{n}, Secret: secretOf(n), WireGuardKey: key(n), IdentityKey: identity(n).Public(), Name: name}
}

// node makes a live node of site with number n and key n.
func node(t testing.TB, d *Draft, n byte, site, name string) protocol.NodeNumber {
	t.Helper()
	token(t, d, n, TokenCreated{Site: site})
	num := d.NextNumber
	require.NoError(t, Redeem(d, redeem(n, name)))
	return num
}

func refusal(t *testing.T, err error) string {
	t.Helper()
	var r *Refusal
	require.ErrorAs(t, err, &r)
	return r.Reason
}

func TestRedeem(t *testing.T) {
	d := draft(t)
	token(t, d, 1, TokenCreated{Site: "a", Routes: []netip.Prefix{prefix("10.9.0.0/24")}, Labels: map[string]string{"rack": "r1"}})
	r := redeem(1, "sh-01")

	bad := r
	bad.Secret[31]++
	require.Contains(t, refusal(t, Redeem(d, bad)), "wrong secret")
	bad = r
	bad.Token = protocol.TokenID{99}
	require.Contains(t, refusal(t, Redeem(d, bad)), "unknown token")
	bad = r
	bad.Name = "Not A Label"
	require.Contains(t, refusal(t, Redeem(d, bad)), "is no node name")

	require.NoError(t, Redeem(d, r))
	n, err := d.FindNode("sh-01")
	require.NoError(t, err)
	require.Equal(t, protocol.NodeNumber(2), n.Number)
	require.Equal(t, "a", n.Site)
	require.Equal(t, "r1", n.Labels["rack"])
	require.True(t, d.Routes.Get(RouteKey{2, prefix("10.9.0.0/24")}).Carried())

	// The same key again: the same node, nothing added, long after the token expired.
	before := len(d.changes)
	d.Now = d.Now.Add(100 * time.Hour)
	require.NoError(t, Redeem(d, r))
	require.Len(t, d.changes, before)

	other := redeem(1, "sh-02")
	other.WireGuardKey = key(77)
	require.Contains(t, refusal(t, Redeem(d, other)), "used already by node sh-01")
	other = redeem(1, "sh-02")
	other.IdentityKey = identity(77).Public()
	require.Contains(t, refusal(t, Redeem(d, other)), "used already by node sh-01")

	// A node that is gone does not come back by its old token.
	require.NoError(t, Remove(d, 2, GoneLeft))
	require.Contains(t, refusal(t, Redeem(d, r)), "used already by node sh-01")
	require.Zero(t, d.Routes.Len())
}

func TestRedeemRefusesExpiredAndRevoked(t *testing.T) {
	d := draft(t)
	token(t, d, 1, TokenCreated{Site: "a"})
	id := token(t, d, 2, TokenCreated{Site: "a"})
	add(t, d, TokenCancelled{id})
	require.Contains(t, refusal(t, Redeem(d, redeem(2, "x"))), "revoked")
	d.Now = d.Now.Add(time.Hour)
	require.Contains(t, refusal(t, Redeem(d, redeem(1, "x"))), "expired at")
	require.True(t, IsKind(d.Add(TokenCancelled{id}), Conflict))
	require.True(t, IsKind(d.Add(TokenCancelled{protocol.TokenID{9}}), NotFound))
}

func TestRedeemKeysAndNames(t *testing.T) {
	d := draft(t)
	node(t, d, 1, "a", "one")
	token(t, d, 2, TokenCreated{Site: "a"})
	r := redeem(2, "one")
	require.Contains(t, refusal(t, Redeem(d, r)), "is taken by node 2 of site a; join with another --name, or")
	r.Replace = true // the token does not permit it
	require.Contains(t, refusal(t, Redeem(d, r)), "'causeway token create --site a --replace one'")
	r = redeem(2, "two")
	r.WireGuardKey = key(1)
	require.Contains(t, refusal(t, Redeem(d, r)), "keys belong to node one")
	require.Equal(t, TokenOpen, d.Tokens.Get(protocol.TokenID{2}).State(d.Now))

	token(t, d, 3, TokenCreated{Site: "a", Replace: "one"})
	r = redeem(3, "one")
	require.Contains(t, refusal(t, Redeem(d, r)), "join with --replace to take its place, as this token permits") // the host did not ask
	r.Replace = true
	require.NoError(t, Redeem(d, r))
	n, err := d.FindNode("one")
	require.NoError(t, err)
	require.Equal(t, protocol.NodeNumber(3), n.Number)
	require.Equal(t, GoneRevoked, d.Nodes.Get(2).Gone)

	require.True(t, IsKind(d.Add(TokenCreated{ID: protocol.TokenID{8}, Hash: make([]byte, 32), Site: "b", Replace: "one", Expires: d.Now.Add(1)}), Conflict))
	require.True(t, IsKind(d.Add(TokenCreated{ID: protocol.TokenID{8}, Hash: make([]byte, 32), Site: "b", Replace: "nobody", Expires: d.Now.Add(1)}), NotFound))
}

// A token permits to replace a node of its own site, whoever has the name later.
func TestRedeemReplacesWithinTheSite(t *testing.T) {
	d := draft(t)
	first := node(t, d, 1, "a", "one")
	token(t, d, 2, TokenCreated{Site: "a", Replace: "one"})
	require.NoError(t, Remove(d, first, GoneLeft))
	second := node(t, d, 3, "b", "one")
	r := redeem(2, "one")
	r.Replace = true
	require.Contains(t, refusal(t, Redeem(d, r)), "the token is for site a")
	require.True(t, d.Nodes.Get(second).Live())
	require.Equal(t, TokenOpen, d.Tokens.Get(protocol.TokenID{2}).State(d.Now))
}

func TestOverlayUsedUp(t *testing.T) {
	d := &Draft{State: New(), Now: epoch0}
	add(t, d, ClusterCreated{protocol.ClusterPublicKey{1}, 1, []netip.Prefix{prefix("198.18.0.0/30")}}, HubAdded{1}, SiteCreated{"a", nil})
	node(t, d, 1, "a", "one")
	node(t, d, 2, "a", "two")
	token(t, d, 3, TokenCreated{Site: "a"})
	require.Contains(t, refusal(t, Redeem(d, redeem(3, "three"))), "overlay range is used up")
	require.Equal(t, TokenOpen, d.Tokens.Get(protocol.TokenID{3}).State(d.Now))
}

// An overlay grows from the same address on, and in nobody's way.
func TestOverlayWidened(t *testing.T) {
	d := &Draft{State: New(), Now: epoch0}
	six := protocol.DefaultOverlay6
	add(t, d, ClusterCreated{protocol.ClusterPublicKey{1}, 1, []netip.Prefix{prefix("100.64.0.0/30"), six}}, HubAdded{1}, SiteCreated{"a", []netip.Prefix{prefix("100.64.8.0/24")}})
	node(t, d, 1, "a", "one")
	two := node(t, d, 2, "a", "two")
	before, err := d.OverlayOf(two)
	require.NoError(t, err)
	token(t, d, 3, TokenCreated{Site: "a"})
	require.Contains(t, refusal(t, Redeem(d, redeem(3, "three"))), "wider --overlay")
	for _, c := range []struct {
		to   []netip.Prefix
		want string
	}{
		{[]netip.Prefix{prefix("100.64.0.0/31"), six}, "no room"},
		{[]netip.Prefix{prefix("100.64.0.0/24")}, "cannot be changed"},
		{[]netip.Prefix{prefix("100.65.0.0/16"), six}, "cannot be changed"},
		{[]netip.Prefix{prefix("100.64.1.0/24"), six}, "cannot be changed"},
		{[]netip.Prefix{prefix("100.64.0.0/16"), six}, "range 100.64.8.0/24 of site a is in the way"},
		{nil, "no overlay range"},
	} {
		require.ErrorContains(t, d.Add(OverlayWidened{c.to}), c.want)
	}
	require.NoError(t, AnnounceRoutes(d, two, []netip.Prefix{prefix("100.64.8.0/25")}))
	require.ErrorContains(t, setRanges(d, "a"), "approved route 100.64.8.0/25 of node two")
	require.NoError(t, AnnounceRoutes(d, two, nil))
	require.NoError(t, setRanges(d, "a"))
	add(t, d, OverlayWidened{[]netip.Prefix{prefix("100.64.0.0/16"), six}})
	after, err := d.OverlayOf(two)
	require.NoError(t, err)
	require.Equal(t, before, after, "whoever has an address keeps it")
	require.NoError(t, Redeem(d, redeem(3, "three")))
}

// Ranges of a site change: what lies in a new one is approved, and what only an old one
// approved keeps that one.
func TestSetRanges(t *testing.T) {
	d := draft(t)
	n := node(t, d, 1, "a", "one")
	other := node(t, d, 2, "b", "two")
	require.NoError(t, AnnounceRoutes(d, n, []netip.Prefix{prefix("10.1.1.0/24"), prefix("10.1.2.0/24"), prefix("10.2.1.0/24")}))
	require.NoError(t, AnnounceRoutes(d, other, []netip.Prefix{prefix("10.3.1.0/24")}))
	require.NoError(t, DecideRoute(d, "two", prefix("10.3.1.0/24"), true, "admin:x"))
	route := func(p string) Route { return d.Routes.Get(RouteKey{n, prefix(p)}) }
	require.Empty(t, route("10.2.1.0/24").State, "it waits, and is no state")
	require.Len(t, d.Waiting(n, d.announced[n]), 1)

	require.ErrorContains(t, setRanges(d, "a", prefix("10.2.0.0/16")), "would go approved route 10.1.1.0/24 of node one and 1 more; first reject it, or keep it by 'causeway route approve one 10.1.1.0/24'")
	require.ErrorContains(t, setRanges(d, "a", prefix("10.1.0.0/16"), prefix("10.3.0.0/16")), "overlaps route 10.3.1.0/24 of node two")
	require.ErrorContains(t, setRanges(d, "b", prefix("10.1.0.0/24")), "overlaps")
	require.ErrorContains(t, setRanges(d, "a", prefix("198.18.0.0/24")), "overlay")
	require.Equal(t, []netip.Prefix{prefix("10.1.0.0/16")}, d.Sites.Get("a").Ranges, "a refusal changes nothing")

	require.NoError(t, setRanges(d, "a", prefix("10.1.0.0/16"), prefix("10.2.0.0/16")))
	require.Equal(t, protocol.RouteApproved, route("10.2.1.0/24").State)
	require.Equal(t, ByRange, route("10.2.1.0/24").By)

	// Kept by name, rejected: then the range may go.
	require.NoError(t, DecideRoute(d, "one", prefix("10.1.1.0/24"), true, "admin:x"))
	require.Equal(t, "admin:x", route("10.1.1.0/24").By)
	require.NoError(t, DecideRoute(d, "one", prefix("10.1.2.0/24"), false, "admin:x"))
	require.NoError(t, setRanges(d, "a", prefix("10.2.0.0/16")))
	require.Equal(t, protocol.RouteApproved, route("10.1.1.0/24").State)
}

func TestAnnounceAndDecide(t *testing.T) {
	d := draft(t)
	n := node(t, d, 1, "a", "one")
	st := protocol.NodeStatement{Number: n, WireGuardKey: key(1), Epoch: 1}
	routes := []netip.Prefix{prefix("10.1.2.0/24"), prefix("172.16.0.0/16"), prefix("127.0.0.0/8"), prefix("198.18.4.0/24"), prefix("0.0.0.0/0"), prefix("10.1.2.3/24")}
	require.NoError(t, Announce(d, n, st.Sign(identity(1)), routes))
	state := func(p string) string {
		r := d.WithWaiting(d.announced).Routes.Get(RouteKey{n, prefix(p)})
		return string(r.State) + " " + r.By
	}
	require.Equal(t, "approved range", state("10.1.2.0/24"))
	require.Equal(t, "pending ", state("172.16.0.0/16"))
	for _, p := range []string{"127.0.0.0/8", "198.18.4.0/24", "0.0.0.0/0", "10.1.2.3/24"} {
		require.Equal(t, "rejected rule", state(p))
		require.True(t, IsKind(DecideRoute(d, "one", prefix(p), true, "unix:root"), Invalid), p)
	}
	require.Len(t, d.NodeRoutes(n), 1, "what nobody approved is no state")
	before := len(d.changes)
	require.NoError(t, Announce(d, n, st.Sign(identity(1)), routes))
	require.Len(t, d.changes, before)

	require.NoError(t, DecideRoute(d, "one", prefix("172.16.0.0/16"), true, "unix:root"))
	require.True(t, d.Routes.Get(RouteKey{n, prefix("172.16.0.0/16")}).Carried())
	require.True(t, IsKind(DecideRoute(d, "one", prefix("172.17.0.0/16"), true, "unix:root"), NotFound))
	require.True(t, IsKind(DecideRoute(d, "two", prefix("172.17.0.0/16"), true, "unix:root"), NotFound))

	// A decision outlives the announcement.
	require.NoError(t, Announce(d, n, st.Sign(identity(1)), nil))
	require.False(t, d.Routes.Get(RouteKey{n, prefix("172.16.0.0/16")}).Carried())
	require.False(t, d.Routes.Has(RouteKey{n, prefix("10.1.2.0/24")}))
	require.NoError(t, Announce(d, n, st.Sign(identity(1)), routes))
	require.True(t, d.Routes.Get(RouteKey{n, prefix("172.16.0.0/16")}).Carried())
	require.NoError(t, DecideRoute(d, "one", prefix("172.16.0.0/16"), false, "unix:root"))
	require.False(t, d.Routes.Get(RouteKey{n, prefix("172.16.0.0/16")}).Carried())
}

func TestStatements(t *testing.T) {
	d := draft(t)
	n := node(t, d, 1, "a", "one")
	st := protocol.NodeStatement{Number: n, WireGuardKey: key(1), Epoch: 2}
	require.True(t, IsKind(Announce(d, n, st.Sign(identity(2)), nil), Refused))
	forged := st.Sign(identity(1))
	forged.Epoch = 3
	require.True(t, IsKind(Announce(d, n, forged, nil), Refused))
	wrong := st
	wrong.Number = 9
	require.True(t, IsKind(Announce(d, n, wrong.Sign(identity(1)), nil), Refused))
	wrong = st
	wrong.WireGuardKey, wrong.Epoch = key(5), 1
	require.True(t, IsKind(Announce(d, n, wrong.Sign(identity(1)), nil), Refused), "another key without a higher epoch")
	require.NoError(t, Announce(d, n, st.Sign(identity(1)), nil))
	wrong.Epoch = 2
	require.True(t, IsKind(Announce(d, n, wrong.Sign(identity(1)), nil), Refused), "another key without a higher epoch")
	bad := st.Sign(identity(1))
	bad.Signature = nil
	require.True(t, IsKind(Announce(d, n, bad, nil), Refused))
	wrong = st
	wrong.Epoch = 1
	require.True(t, IsKind(Announce(d, n, wrong.Sign(identity(1)), nil), Refused))
	require.NoError(t, Remove(d, n, GoneRevoked))
	require.True(t, IsKind(Announce(d, n, st.Sign(identity(1)), nil), NotFound))
}

func TestKeyRotation(t *testing.T) {
	d := draft(t)
	n, other := node(t, d, 1, "a", "one"), node(t, d, 2, "a", "two")
	say := func(k byte, epoch uint32, by byte) error {
		return Announce(d, n, protocol.NodeStatement{Number: n, WireGuardKey: key(k), Epoch: epoch}.Sign(identity(by)), nil)
	}
	require.NoError(t, say(1, 1, 1))
	require.NoError(t, WantKey(d, "one", time.Hour))
	require.Equal(t, uint32(2), d.Nodes.Get(n).KeyWanted)
	require.True(t, IsKind(WantKey(d, "one", -1), Invalid))
	require.True(t, IsKind(WantKey(d, "nobody", 0), NotFound))
	require.Empty(t, d.KeyOverdue(d.Nodes.Get(n), d.Now))
	require.NotEmpty(t, d.KeyOverdue(d.Nodes.Get(n), d.Now.Add(time.Hour)))

	require.True(t, IsKind(say(3, 2, 2), Refused), "another identity's word")
	require.True(t, IsKind(say(2, 2, 1), Refused), "another node's key")
	low := protocol.NodeStatement{Number: n, WireGuardKey: protocol.WireGuardPublicKey{1}, Epoch: 2}
	require.True(t, IsKind(Announce(d, n, low.Sign(identity(1)), nil), Refused), "a low-order key")
	require.Equal(t, key(1), d.Nodes.Get(n).WireGuardKey)
	require.NoError(t, say(3, 2, 1))
	require.NoError(t, say(3, 2, 1), "the same again, as after a crash")
	require.Equal(t, key(3), d.Nodes.Get(n).WireGuardKey)
	require.Equal(t, uint32(2), d.Nodes.Get(n).KeyEpoch())
	require.Empty(t, d.KeyOverdue(d.Nodes.Get(n), d.Now.Add(time.Hour)))
	require.True(t, IsKind(say(1, 1, 1), Refused), "the old key")
	require.True(t, IsKind(say(1, 3, 1), Refused), "a key that was in use")
	require.True(t, IsKind(say(4, 2, 1), Refused), "another key with the same epoch")
	require.True(t, IsKind(Announce(d, other, protocol.NodeStatement{Number: other, WireGuardKey: key(1), Epoch: 2}.Sign(identity(2)), nil), Refused), "another node's old key")

	require.True(t, IsKind(setSite(d, "a", protocol.SiteFields{RotateKeys: protocol.RotateKeys(time.Minute)}), Invalid))
	require.NoError(t, setSite(d, "a", protocol.SiteFields{RotateKeys: protocol.RotateKeys(24 * time.Hour)}))
	require.Empty(t, d.KeyOverdue(d.Nodes.Get(n), d.Now.Add(24*time.Hour)))
	require.NotEmpty(t, d.KeyOverdue(d.Nodes.Get(n), d.Now.Add(31*time.Hour)))
	require.NoError(t, setSite(d, "a", protocol.SiteFields{RotateKeys: protocol.Never}))
	require.Empty(t, d.KeyOverdue(d.Nodes.Get(n), d.Now.Add(31*time.Hour)))
}

func TestClaimsBetweenSites(t *testing.T) {
	d := draft(t)
	a, b := node(t, d, 1, "a", "one"), node(t, d, 2, "b", "two")
	a2 := node(t, d, 3, "a", "three")
	require.NoError(t, AnnounceRoutes(d, b, []netip.Prefix{prefix("10.1.5.0/24"), prefix("10.0.0.0/8"), prefix("192.168.0.0/16")}))
	require.NoError(t, AnnounceRoutes(d, a, []netip.Prefix{prefix("192.168.1.0/24")}))
	require.NoError(t, AnnounceRoutes(d, a2, []netip.Prefix{prefix("192.168.1.0/24"), prefix("192.168.1.128/25")}))
	for _, p := range []string{"10.1.5.0/24", "10.0.0.0/8"} { // inside and around site a's range
		require.True(t, IsKind(DecideRoute(d, "two", prefix(p), true, "x"), Conflict), p)
	}
	require.NoError(t, DecideRoute(d, "one", prefix("192.168.1.0/24"), true, "x"))
	require.NoError(t, DecideRoute(d, "three", prefix("192.168.1.0/24"), true, "x"), "same site: one HA group")
	require.NoError(t, DecideRoute(d, "three", prefix("192.168.1.128/25"), true, "x"), "same site: a longer prefix inside")
	require.True(t, IsKind(DecideRoute(d, "two", prefix("192.168.0.0/16"), true, "x"), Conflict))
	require.True(t, IsKind(d.Add(SiteCreated{"c", []netip.Prefix{prefix("192.168.1.0/25")}}), Conflict))
	require.True(t, IsKind(d.Add(SiteCreated{"c", []netip.Prefix{prefix("10.1.0.0/24")}}), Conflict))
	require.True(t, IsKind(d.Add(SiteDeleted{"b"}), Conflict))
	require.NoError(t, Remove(d, b, GoneRevoked))
	require.NoError(t, d.Add(SiteDeleted{"b"}))
}

func TestTransactionsSurviveTheLog(t *testing.T) {
	d := draft(t)
	n := node(t, d, 1, "a", "one")
	require.NoError(t, Announce(d, n, protocol.NodeStatement{Number: n, WireGuardKey: key(1), Epoch: 1}.Sign(identity(1)), []netip.Prefix{prefix("172.16.0.0/16"), prefix("172.17.0.0/16")}))
	require.NoError(t, DecideRoute(d, "one", prefix("172.16.0.0/16"), true, "unix:root"))
	require.NoError(t, Announce(d, n, protocol.NodeStatement{Number: n, WireGuardKey: key(1), Epoch: 1}.Sign(identity(1)), nil))
	require.NoError(t, Label(d, "one", map[string]string{"a": "b"}))
	require.NoError(t, setSite(d, "a", protocol.SiteFields{MaxAge: protocol.MaxAge(36 * time.Hour)}))
	require.Equal(t, 36*time.Hour, d.Sites.Get("a").MaxAge)
	require.NoError(t, setSite(d, "a", protocol.SiteFields{MaxAge: protocol.Forever}))
	require.True(t, IsKind(setSite(d, "a", protocol.SiteFields{MaxAge: protocol.MaxAge(time.Minute)}), Invalid))
	require.Equal(t, DefaultMaxAge, d.Sites.Get("b").MaxAge)
	add(t, d, TokenCancelled{token(t, d, 4, TokenCreated{Site: "b"})}, SiteDeleted{"b"})
	require.NoError(t, Remove(d, n, GoneLeft))
	tx := Transaction{Sequence: 1, ID: "x", Time: epoch0, Who: "hub", Why: "test", Changes: d.changes}
	b, err := tx.encode()
	require.NoError(t, err)
	require.NotContains(t, string(b), "secret\"")
	got, err := decodeTransaction(1, b)
	require.NoError(t, err)
	tx.hash = hashOf(b)
	require.Equal(t, tx, got)
	folded, err := Fold([]Transaction{got})
	require.NoError(t, err)
	want := *d.State
	want.Seq, want.Time, want.hash = 1, epoch0, hashOf(b)
	require.Empty(t, same(&want, folded))
	for _, c := range got.Changes {
		require.NotEmpty(t, c.Describe())
		require.NotContains(t, c.Describe(), "\n")
	}

	_, err = decodeTransaction(7, []byte(`{"v":1,"changes":[{"kind":"from_the_future","body":{}}]}`))
	require.ErrorContains(t, err, "from_the_future")
	_, err = decodeTransaction(7, []byte(`{"v":2}`))
	require.ErrorContains(t, err, "version 2")
}

func TestNodeByOverlay(t *testing.T) {
	d := draft(t)
	n := node(t, d, 1, "a", "one")
	as, err := d.OverlayOf(n)
	require.NoError(t, err)
	require.Equal(t, "[198.18.0.2 fd63:7761:7900::2]", jsonless(as))
	for _, a := range as {
		got, ok := d.NodeByOverlay(a)
		require.True(t, ok)
		require.Equal(t, n, got.Number)
	}
	for _, a := range []string{"198.18.0.1", "198.18.0.3", "198.17.255.255", "10.0.0.2", "fd63:7761:7900::1:0:2", "fd63:7761:7900::", "::2"} {
		_, ok := d.NodeByOverlay(netip.MustParseAddr(a))
		require.False(t, ok, a)
	}
}

func jsonless(as []netip.Addr) string {
	b, _ := json.Marshal(as)
	out := ""
	for _, c := range string(b) {
		switch c {
		case '"':
		case ',':
			out += " "
		default:
			out += string(c)
		}
	}
	return out
}

// What a restored log does not know of nodes that are gone, it is told: they are
// taken out, and their numbers are given to nobody.
func TestForget(t *testing.T) {
	d := draft(t)
	one, two := node(t, d, 1, "a", "one"), node(t, d, 2, "a", "two")
	require.NoError(t, Remove(d, one, GoneLeft))
	require.Equal(t, []protocol.NodeNumber{one}, d.Gone())
	require.NoError(t, Restore(d, 0, nil))
	require.True(t, d.Settling)
	before := len(d.changes)
	require.NoError(t, Forget(d, []protocol.NodeNumber{one}))
	require.Len(t, d.changes, before, "known")
	next := d.NextNumber
	require.NoError(t, Forget(d, []protocol.NodeNumber{one, two, next + 6}))
	require.Equal(t, GoneRevoked, d.Nodes.Get(two).Gone)
	require.Equal(t, next+7, d.NextNumber)
	require.Equal(t, next+7, node(t, d, 3, "a", "three"))
	require.ElementsMatch(t, []protocol.NodeNumber{one, two}, d.Gone())
	require.NoError(t, Settle(d, 1, 2))
	require.False(t, d.Settling)
	before = len(d.changes)
	require.NoError(t, Settle(d, 1, 2))
	require.Len(t, d.changes, before, "once")

	d = draft(t)
	two = node(t, d, 2, "a", "two")
	require.ErrorContains(t, Restore(d, 0, []string{"nobody"}), "no node")
	require.NoError(t, Restore(d, 0, []string{"two"}))
	require.Equal(t, GoneRevoked, d.Nodes.Get(two).Gone)
}
