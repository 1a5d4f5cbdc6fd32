package protocol

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestJudge(t *testing.T) {
	began := func(f func(*ProofSeen)) ProofSeen {
		s := ProofSeen{Peer: true, Behind: true}
		s.Began, s.BehindCame = true, true
		f(&s)
		return s
	}
	for _, c := range []struct {
		name, want string
		seen       ProofSeen
		got        string // result, layer, second
	}{
		{"both walls", ProofClosed, began(func(*ProofSeen) {}), "closed sender receiver"},
		{"no peer", ProofClosed, began(func(s *ProofSeen) { s.Peer, s.BehindCame = false, false }), "closed sender peers"},
		{"no way", ProofClosed, began(func(s *ProofSeen) { s.Began, s.NoRoute, s.Peer, s.BehindCame = false, true, false, false }), "closed sender peers"},
		{"the sender's wall is open", ProofClosed, began(func(s *ProofSeen) { s.Entered, s.Came = true, true }), "closed receiver receiver"},
		{"the tunnel's peers alone", ProofClosed, began(func(s *ProofSeen) { s.Entered, s.Peer, s.BehindCame = true, false, false }), "closed peers peers"},
		{"the second was not sent", ProofClosed, began(func(s *ProofSeen) { s.Behind, s.BehindCame = false, false }), "closed sender "},
		{"all is open", ProofClosed, began(func(s *ProofSeen) { s.Entered, s.Came, s.Passed = true, true, true }), "ARRIVED  "},
		{"the receiver's is open", ProofClosed, began(func(s *ProofSeen) { s.BehindPassed = true }), "ARRIVED  "},
		{"it arrived, whatever else", ProofClosed, ProofSeen{ProveSeen: ProveSeen{Passed: true}, Error: "x"}, "ARRIVED  "},
		{"nothing is seen", ProofClosed, ProofSeen{}, "not tried  "},
		{"an error", ProofClosed, began(func(s *ProofSeen) { s.Error = "x" }), "not tried  "},
		{"lost in the tunnel", ProofClosed, began(func(s *ProofSeen) { s.Entered = true }), "not tried  "},
		{"the second is lost", ProofClosed, began(func(s *ProofSeen) { s.BehindCame = false }), "not tried sender "},
		{"open", ProofOpen, began(func(s *ProofSeen) { s.Entered, s.Came, s.Passed = true, true, true }), "open  "},
		{"open, by its second alone", ProofOpen, began(func(s *ProofSeen) { s.BehindPassed = true }), "lost sender "},
		{"open and refused", ProofOpen, began(func(s *ProofSeen) { s.Entered, s.Came = true, true }), "lost receiver "},
		{"open and lost", ProofOpen, began(func(s *ProofSeen) { s.Entered = true }), "lost  "},
		{"open, not sent", ProofOpen, ProofSeen{Error: "x"}, "not tried  "},
	} {
		result, layer, second, why := ProofPair{Want: c.want, Seen: c.seen}.Judge()
		require.Equal(t, c.got, strings.Join([]string{result, layer, second}, " "), c.name)
		require.Equal(t, result == c.want, why == "", c.name)
	}
}

// proven is a proof with a closed pair and an open one.
func proven(k ClusterPrivateKey) PolicyProof {
	pin := k.Public().Pin()
	p := PolicyProof{Version: PolicyProofVersion, Cluster: hex.EncodeToString(pin[:]), Hub: 1, HubVersion: "v1", Who: "unix:<root>", Begun: time.Unix(1800000000, 0).UTC(), Ended: time.Unix(1800000001, 0).UTC(),
		Mark:    StateMark{Epoch: 1, Sequence: 7, Hash: make([]byte, 32), Time: time.Unix(1800000000, 0), NextNumber: 9}.Sign(k),
		Classes: []ProofClass{{Class: 1, Sides: []string{"site a"}, Sites: []string{"a"}}, {Class: 2, Segment: "prod"}}}
	closed := ProofPair{From: 1, To: 2, Probe: "tcp/22", Want: ProofClosed, Tried: ProofEnds{"n1", "n2", netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.2.0.2")}}
	closed.Seen.Began, closed.Seen.Peer, closed.Seen.Behind, closed.Seen.BehindCame = true, true, true, true
	open := closed
	open.Probe, open.Want, open.Seen = "icmp", ProofOpen, ProofSeen{Peer: true}
	open.Seen.Began, open.Seen.Entered, open.Seen.Came, open.Seen.Passed = true, true, true, true
	for _, x := range []ProofPair{closed, open} {
		x.Result, x.Layer, x.Second, x.Why = x.Judge()
		p.Pairs = append(p.Pairs, x)
	}
	p.Summary = p.Conclude()
	return p
}

func TestConclude(t *testing.T) {
	k := ClusterPrivateKey{1}
	require.Equal(t, ProofSummary{Closed: 1, Open: 1, Proven: true}, proven(k).Summary)
	for _, c := range []struct {
		do   func(*PolicyProof)
		want string
	}{
		{func(p *PolicyProof) { p.Pairs = p.Pairs[:1] }, "the probe itself does not arrive: nothing that is open was seen to"},
		{func(p *PolicyProof) { p.Left = 3 }, "3 could not be tried"},
		{func(p *PolicyProof) { p.Changed = true }, "who may talk to whom changed meanwhile; run it again"},
		{func(p *PolicyProof) { p.Broken = "x" }, "it was broken off: x"},
		{func(p *PolicyProof) { p.Pairs[0].Result = ProofArrived }, "1 that policies close ARRIVED"},
		{func(p *PolicyProof) { p.Pairs[0].Result = ProofNotTried }, "1 could not be tried"},
		{func(p *PolicyProof) { // what is open does not get to n2, and elsewhere it does
			lost, other := p.Pairs[1], p.Pairs[1]
			other.Tried.ToNode, lost.Result, lost.Seen.Came = "n3", ProofLost, false
			p.Pairs = []ProofPair{p.Pairs[0], lost, other}
		}, "1 could not be tried; node n2: nothing that is open arrives there, so what does not arrive shows nothing"},
	} {
		p := proven(k)
		c.do(&p)
		s := p.Conclude()
		require.False(t, s.Proven)
		require.Equal(t, c.want, strings.Join(s.Reasons, "; "))
	}
}

// Nothing but what the cluster key signed opens, and it says nothing that does not follow from what was seen.
func TestSignedPolicyProof(t *testing.T) {
	k := ClusterPrivateKey{1}
	sign := func(p PolicyProof) SignedPolicyProof {
		s, err := SignPolicyProof(p, k)
		require.NoError(t, err)
		return s
	}
	s := sign(proven(k))
	got, err := s.Open()
	require.NoError(t, err)
	require.Equal(t, proven(k).Summary, got.Summary)
	nice, err := json.MarshalIndent(s, "", "\t")
	require.NoError(t, err)
	var again SignedPolicyProof
	require.NoError(t, json.Unmarshal(nice, &again))
	_, err = again.Open()
	require.NoError(t, err, "spaces do not matter")
	require.Equal(t, s.SHA256(), again.SHA256())

	bad := s
	bad.Proof = bytes.Replace(s.Proof, []byte(`"tcp/22"`), []byte(`"tcp/23"`), 1)
	_, err = bad.Open()
	require.ErrorIs(t, err, ErrPolicyProofInvalid)
	bad = s
	bad.ClusterKey = ClusterPrivateKey{2}.Public()
	_, err = bad.Open()
	require.ErrorIs(t, err, ErrPolicyProofInvalid)
	for _, c := range []struct {
		do   func(*PolicyProof)
		want string
	}{
		{func(p *PolicyProof) { p.Pairs[0].Seen.Passed = true }, "pair 1: from what was seen follows ARRIVED"},
		{func(p *PolicyProof) { p.Summary.Closed++ }, "its summary does not follow"},
		{func(p *PolicyProof) { p.Pairs[0].From = 7 }, "a class that is not listed"},
		{func(p *PolicyProof) { p.Version++ }, "it is of version 2"},
		{func(p *PolicyProof) { p.Cluster = "00" }, "another cluster"},
		{func(p *PolicyProof) { p.Mark.Sequence++ }, "invalid mark"},
		{func(p *PolicyProof) { p.Pairs[0].Want = "x" }, "neither closed nor open"},
	} {
		p := proven(k)
		p.Pairs = slices.Clone(p.Pairs)
		c.do(&p)
		_, err := sign(p).Open()
		require.ErrorIs(t, err, ErrPolicyProofInvalid)
		require.ErrorContains(t, err, c.want)
	}
}

// FuzzPolicyProof: a file that somebody gives to an auditor. Nothing but what was signed opens.
func FuzzPolicyProof(f *testing.F) {
	k := ClusterPrivateKey{1}
	s, err := SignPolicyProof(proven(k), k)
	require.NoError(f, err)
	b, err := json.Marshal(s)
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(`{"proof":{"pairs":[{}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got SignedPolicyProof
		if json.Unmarshal(b, &got) != nil {
			return
		}
		if p, err := got.Open(); err == nil && got.ClusterKey == k.Public() {
			require.Equal(t, s.SHA256(), got.SHA256())
			require.True(t, p.Summary.Proven)
		}
	})
}

// FuzzProveWatch: a hub that was taken over asks an agent to send. What passes the check is bounded, and each packet known by words of its own.
func FuzzProveWatch(f *testing.F) {
	f.Add([]byte(`{"secret":7,"send":[{"token":1,"behind":2,"proto":6,"port":22,"from":"10.1.0.2","to":"10.2.0.2"}],"receive":[{"token":3,"behind":4,"proto":1,"to":"fd00::1"}]}`))
	f.Add([]byte(`{"send":[{"token":1,"behind":1,"proto":17,"port":1,"among":["::ffff:10.1.0.1"],"to":"10.2.0.2"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var w ProveWatch
		if json.Unmarshal(b, &w) != nil || w.Check() != nil {
			return
		}
		require.LessOrEqual(t, len(w.Send), MaxProvePackets)
		seen := map[uint32]bool{0: true, w.Secret: true}
		for _, p := range slices.Concat(w.Send, w.Receive) {
			require.False(t, seen[p.Token] || seen[p.Behind])
			seen[p.Token], seen[p.Behind] = true, true
			require.True(t, p.To.IsValid() && p.To.Zone() == "" && !p.To.IsMulticast())
			for _, a := range p.Among {
				require.Equal(t, p.To.Is4(), a.Is4())
			}
		}
	})
}
