package fleet

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// FuzzMessages: a node that was taken over sends the hub whatever it likes on its
// control stream. What the hub keeps of it is bounded and fit for a terminal, and
// the state takes no more of a Hello than its rules allow.
func FuzzMessages(f *testing.F) {
	id := protocol.IdentityPrivateKey{7}
	tok := protocol.TokenID{1}
	changes := []state.Change{
		state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}},
		state.HubAdded{Number: 1}, state.SiteCreated{Name: "a", Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}},
		state.TokenCreated{ID: tok, Hash: make([]byte, 32), Site: "a", Expires: time.Unix(1000, 0)},
		state.TokenRedeemed{ID: tok, Node: 2},
		state.NodeJoined{Number: 2, Name: "n", Site: "a", WireGuardKey: protocol.WireGuardPublicKey{2}, IdentityKey: id.Public(), Token: tok},
	}
	draft := func() *state.Draft {
		d := &state.Draft{State: state.New(), Now: time.Unix(1, 0)}
		for _, c := range changes {
			if err := d.Add(c); err != nil {
				panic(err)
			}
		}
		return d
	}
	base := draft().State
	statement := protocol.NodeStatement{Number: 2, WireGuardKey: protocol.WireGuardPublicKey{2}, Epoch: 1}.Sign(id)
	seed := func(v any) {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(protocol.Hello{Statement: statement, Routes: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}, Labels: map[string]string{"a": "b"}, Features: []string{"x"}})
	seed(protocol.Status{Candidates: []netip.AddrPort{netip.MustParseAddrPort("[fe80::1%x]:5")}, Paths: []protocol.PathStatus{{Peer: 3, Name: "x", Path: protocol.PathRelay}},
		Conditions: []protocol.Condition{{Name: "x", Cause: "y", Note: "z", DependsOn: []string{"w"}}}})
	seed(protocol.NetmapAck{Refused: []protocol.RefusedPart{{Peer: 1 << 30, Prefix: "x", Reason: "y"}}, Errors: []string{"z"}})
	f.Fuzz(func(t *testing.T, b []byte) {
		plain := func(limit int, texts ...string) {
			for _, s := range texts {
				if len(s) > limit || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Fatalf("kept %q", s)
				}
			}
		}
		var h protocol.Hello
		if json.Unmarshal(b, &h) == nil {
			CleanHello(&h)
			plain(64, h.AgentVersion, h.Engine)
			plain(64, h.Features...)
			if len(h.Features) > maxParts || len(h.Labels) > protocol.MaxNodeLabels {
				t.Fatalf("kept %d features, %d labels", len(h.Features), len(h.Labels))
			}
			for k, v := range h.Labels {
				plain(protocol.MaxLabelLength, k, v)
			}
			for _, s := range []protocol.SignedNodeStatement{h.Statement, statement} { // as it came, and as the node itself would sign
				fork := draft()
				if state.Announce(fork, 2, s, h.Routes) != nil {
					continue
				}
				if n := fork.Nodes.Get(2); n.Statement == nil || n.Statement.WireGuardKey != statement.WireGuardKey {
					t.Fatal("took a statement that the node did not sign")
				}
				if l := fork.NodeRoutes(2); len(l) > protocol.MaxNodeRoutes {
					t.Fatalf("kept %d routes", len(l))
				}
				for _, r := range fork.NodeRoutes(2) {
					if r.Carried() && (r.Prefix != r.Prefix.Masked() || !netip.MustParsePrefix("10.0.0.0/16").Contains(r.Prefix.Addr()) || r.Prefix.Bits() < 16) {
						t.Fatalf("approved %s", r.Prefix)
					}
				}
			}
		}
		var st protocol.Status
		if json.Unmarshal(b, &st) == nil {
			CleanStatus(&st)
			if len(st.Candidates) > maxAddrs || len(st.Paths) > maxPaths || len(st.Conditions) > maxConditions {
				t.Fatal("kept too much of a status")
			}
			for _, p := range st.Paths {
				plain(64, p.Name, string(p.Path))
				if p.Addr.IsValid() {
					plain(64, p.Addr.String())
				}
			}
			for _, c := range st.Conditions {
				plain(MaxText, c.Name, c.Cause, c.Note)
				plain(64, c.DependsOn...)
			}
			for _, a := range plan.Candidates(st.Candidates, base.Overlay) {
				if ip := a.Addr(); ip.Zone() != "" || ip.IsLoopback() || protocol.DefaultOverlay4.Contains(ip) {
					t.Fatalf("candidate %s", a)
				}
			}
			plain(2*MaxText, complaints(&record{status: st, heard: true})...)
		}
		var a protocol.NetmapAck
		if json.Unmarshal(b, &a) == nil {
			CleanAck(&a)
			if len(a.Refused) > maxParts || len(a.Errors) > maxConditions {
				t.Fatal("kept too much of an answer")
			}
			for _, r := range a.Refused {
				plain(MaxText, r.Prefix, r.Reason)
			}
			plain(MaxText, a.Errors...)
		}
	})
}

// FuzzTold: whoever may write into the account of the state log, which is to be hubs alone, sends what he likes
// where hubs tell each other what waits. It decides nothing, and what is kept is bounded by the nodes of the state.
func FuzzTold(f *testing.F) {
	st := state.New()
	st.HubNumbers.Set(1, true)
	st.HubNumbers.Set(2, true)
	st.Nodes.Set(3, state.Node{Number: 3, Name: "n", Site: "a"})
	good, err := json.Marshal(told{protocol.Version, 2, []toldNode{{3, true, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}}})
	if err != nil {
		f.Fatal(err)
	}
	if hub, nodes := readTold(good, st, 1); hub != 2 || len(nodes) != 1 {
		f.Fatalf("%d %v", hub, nodes)
	}
	if _, nodes := readTold(good, st, 2); nodes != nil {
		f.Fatal("its own word")
	}
	f.Add(good)
	f.Add([]byte(`{"v":1,"hub":2,"nodes":[{"n":3,"waiting":["10.1.0.1/24","::/0",null]},{"n":4},{"n":3}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		hub, nodes := readTold(b, st, 1)
		if hub != 0 && hub != 2 {
			t.Fatal(hub)
		}
		for _, n := range nodes {
			if n.Node != 3 || len(n.Waiting) > protocol.MaxNodeRoutes {
				t.Fatalf("%v", n)
			}
			for _, r := range st.Waiting(n.Node, n.Waiting) {
				if !r.Prefix.IsValid() {
					t.Fatal(r)
				}
			}
		}
	})
}
