package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"
)

// PolicyProof is what packets showed of policies: for each pair of classes and each probe what became of one. It is
// kept by who has to show it later, so fields are added, never renamed.
type PolicyProof struct {
	Version    int        `json:"version"`     // of this shape, 1
	Cluster    string     `json:"cluster"`     // SHA-256 of the cluster key, in hex
	Hub        NodeNumber `json:"hub"`         // that asked the agents
	HubVersion string     `json:"hub_version"` // of its program
	// Mark is the cluster key's word of the log as it was when the trial began: number and hash of the last transaction,
	// which vouches for all before.
	Mark   StateMark `json:"mark"`
	Digest string    `json:"digest"` // SHA-256, in hex, of all segments and policies as they were
	Who    string    `json:"who"`    // asked for it
	Begun  time.Time `json:"begun"`
	Ended  time.Time `json:"ended"`
	// Broken says why it ended early; Changed that who may talk to whom changed meanwhile.
	Broken  string `json:"broken,omitempty"`
	Changed bool   `json:"changed,omitempty"`
	// Behind are nodes that did not have the policies when it began.
	Behind  []string     `json:"behind,omitempty"`
	Classes []ProofClass `json:"classes"`
	Pairs   []ProofPair  `json:"pairs"`
	Left    int          `json:"left_out,omitempty"` // closed pairs beyond what was asked for at once
	Summary ProofSummary `json:"summary"`
}

// ProofClass is a set of addresses that rules do not tell apart.
type ProofClass struct {
	Class   uint32   `json:"class"`
	Segment string   `json:"segment,omitempty"`
	Sides   []string `json:"sides,omitempty"` // of rules, that mean it
	Sites   []string `json:"sites,omitempty"`
}

// ProofPair is one probe from one class to another, and what became of it.
type ProofPair struct {
	From   uint32    `json:"from"` // classes
	To     uint32    `json:"to"`
	Probe  string    `json:"probe"` // such as tcp/22
	Want   string    `json:"want"`  // closed or open, as policies say
	Rule   string    `json:"rule,omitempty"`
	Result string    `json:"result"`                 // closed, open, ARRIVED (wanted closed), lost (wanted open), not tried, or outside: no tunnel is between them
	Layer  string    `json:"layer,omitempty"`        // that stopped the packet: sender, peers (of the sender's tunnel) or receiver
	Second string    `json:"behind_layer,omitempty"` // that stopped the one which did not pass the sender's own wall
	Why    string    `json:"why,omitempty"`
	Tried  ProofEnds `json:"tried,omitzero"`
	Seen   ProofSeen `json:"seen,omitzero"`
}

// ProofEnds are between whom a packet was tried.
type ProofEnds struct {
	FromNode string     `json:"from_node,omitempty"`
	ToNode   string     `json:"to_node,omitempty"`
	From     netip.Addr `json:"from,omitzero"`
	To       netip.Addr `json:"to,omitzero"`
}

// ProofSeen is what both hosts saw.
type ProofSeen struct {
	ProveSeen
	Forward bool   `json:"forward,omitempty"`
	Peer    bool   `json:"peer,omitempty"`
	NoRoute bool   `json:"no_route,omitempty"`
	Behind  bool   `json:"behind,omitempty"`
	Error   string `json:"error,omitempty"`
}

// ProofSummary counts pairs, and concludes.
type ProofSummary struct {
	Closed   int      `json:"closed"`    // that are closed, and were seen to be
	Arrived  int      `json:"arrived"`   // that should be closed, and where a packet arrived
	NotTried int      `json:"not_tried"` // that should be closed, of which it is not known
	Open     int      `json:"open"`      // that are open, and where a packet arrived
	Lost     int      `json:"lost"`      // that are open, and where none did
	Outside  int      `json:"outside"`   // that no rule is about
	Proven   bool     `json:"proven"`
	Reasons  []string `json:"reasons,omitempty"` // why it is not
}

// PolicyProofVersion is that of PolicyProof.
const PolicyProofVersion = 1

// What policies want, and results.
const (
	ProofClosed   = "closed"    // as wanted: no packet arrived, and it is known where it was stopped
	ProofOpen     = "open"      // as wanted: a packet arrived
	ProofArrived  = "ARRIVED"   // wanted closed
	ProofLost     = "lost"      // wanted open
	ProofNotTried = "not tried" // nothing is known
	ProofOutside  = "outside"   // nothing of a tunnel is between the two, or rules are not about it
)

// Layers.
const (
	LayerSender   = "sender"   // the sender's own host: its wall, or it has no way there
	LayerPeers    = "peers"    // the sender's tunnel has no such peer
	LayerReceiver = "receiver" // the receiver's wall, or the shields of its host
)

// Judge says what became of a probe, of what was seen alone.
func (p ProofPair) Judge() (result, layer, second, why string) {
	s := p.Seen
	arrived := s.Passed
	if p.Want == ProofOpen {
		switch {
		case arrived:
			return ProofOpen, "", "", ""
		case s.Error != "":
			return ProofNotTried, "", "", s.Error
		case s.Came:
			return ProofLost, LayerReceiver, "", "it came out of the tunnel, and the receiver's wall refused it"
		case s.Entered:
			return ProofLost, "", "", "it went into the tunnel and did not come out"
		}
		return ProofLost, LayerSender, "", "it did not go into the tunnel"
	}
	switch {
	case arrived:
		return ProofArrived, "", "", "it passed both walls"
	case s.BehindPassed:
		return ProofArrived, "", "", "only the sender's own wall stops it: what was sent past that arrived"
	case s.Error != "":
		return ProofNotTried, "", "", s.Error
	case !s.Began && !s.NoRoute:
		return ProofNotTried, "", "", "the sender's kernel did not see the packet"
	case s.Came:
		layer = LayerReceiver
	case s.Entered && s.Peer:
		return ProofNotTried, "", "", "it went into the tunnel and did not come out, though the two are peers"
	case s.Entered:
		layer = LayerPeers
	default:
		layer = LayerSender
	}
	switch {
	case s.BehindCame:
		second = LayerReceiver
	case s.Behind && !s.Peer:
		second = LayerPeers
	case s.Behind:
		return ProofNotTried, layer, "", "what was sent past the sender's own wall did not come out of the tunnel, though the two are peers"
	}
	return ProofClosed, layer, second, ""
}

// Conclude counts, and says what is proven.
func (p *PolicyProof) Conclude() ProofSummary {
	var s ProofSummary
	works := map[string]bool{} // receivers that something which is open gets to
	lost := map[string]bool{}
	for _, x := range p.Pairs {
		if x.Want == ProofOpen {
			if x.Result == ProofOpen || x.Seen.Came { // shields of the host may refuse what policies open
				works[x.Tried.ToNode] = true
			} else {
				lost[x.Tried.ToNode] = true
			}
		}
	}
	deaf := map[string]bool{}
	for _, x := range p.Pairs {
		switch x.Result {
		case ProofClosed:
			if n := x.Tried.ToNode; lost[n] && !works[n] {
				s.NotTried++
				deaf[n] = true
				continue
			}
			s.Closed++
		case ProofArrived:
			s.Arrived++
		case ProofOpen:
			s.Open++
		case ProofLost:
			s.Lost++
		case ProofOutside:
			s.Outside++
		default:
			if x.Want == ProofClosed {
				s.NotTried++
			} else {
				s.Lost++
			}
		}
	}
	s.NotTried += p.Left
	s.Reasons = p.reasons(s, deaf)
	s.Proven = len(s.Reasons) == 0
	return s
}

func (p *PolicyProof) reasons(s ProofSummary, deaf map[string]bool) (out []string) {
	if s.Arrived > 0 {
		out = append(out, fmt.Sprintf("%d that policies close ARRIVED", s.Arrived))
	}
	if s.NotTried > 0 {
		out = append(out, fmt.Sprintf("%d could not be tried", s.NotTried))
	}
	for n := range deaf {
		out = append(out, fmt.Sprintf("node %s: nothing that is open arrives there, so what does not arrive shows nothing", n))
	}
	slices.Sort(out)
	if s.Open == 0 {
		out = append(out, "the probe itself does not arrive: nothing that is open was seen to")
	}
	if p.Changed {
		out = append(out, "who may talk to whom changed meanwhile; run it again")
	}
	if p.Broken != "" {
		out = append(out, "it was broken off: "+p.Broken)
	}
	return out
}

// Check says what in a proof does not follow from what was seen.
func (p *PolicyProof) Check() error {
	if p.Version != PolicyProofVersion {
		return fmt.Errorf("it is of version %d, and this program knows %d", p.Version, PolicyProofVersion)
	}
	classes := map[uint32]bool{}
	for _, c := range p.Classes {
		classes[c.Class] = true
	}
	for i, x := range p.Pairs {
		if !classes[x.From] || !classes[x.To] {
			return fmt.Errorf("pair %d is of a class that is not listed", i+1)
		}
		if x.Want != ProofClosed && x.Want != ProofOpen {
			return fmt.Errorf("pair %d: %.40q is neither closed nor open", i+1, x.Want)
		}
		if x.Result == ProofOutside || x.Result == ProofNotTried {
			continue // which claims nothing
		}
		if result, layer, second, _ := x.Judge(); result != x.Result || layer != x.Layer || second != x.Second {
			return fmt.Errorf("pair %d: from what was seen follows %s, and it says %.40s", i+1, result, x.Result)
		}
	}
	if s := p.Conclude(); !reflect.DeepEqual(s, p.Summary) {
		return errors.New("its summary does not follow from its pairs")
	}
	return nil
}

// SignedPolicyProof is a PolicyProof with the word of the cluster key. Spaces between its parts do not matter.
type SignedPolicyProof struct {
	Proof      json.RawMessage  `json:"proof"` // a PolicyProof
	ClusterKey ClusterPublicKey `json:"cluster_key"`
	Signature  []byte           `json:"signature"` // Ed25519 over policyProofLabel and the proof without spaces
}

const (
	policyProofLabel = "causeway policy proof v1\n"
	// MaxPolicyProof bounds a signed proof, in bytes.
	MaxPolicyProof = 48 << 20
)

// ErrPolicyProofInvalid says that a proof is not the cluster's, or damaged.
var ErrPolicyProofInvalid = errors.New("invalid proof of policies")

// SignPolicyProof makes the signed form.
func SignPolicyProof(p PolicyProof, k ClusterPrivateKey) (SignedPolicyProof, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return SignedPolicyProof{}, err
	}
	return SignedPolicyProof{b, k.Public(), k.Sign(append([]byte(policyProofLabel), b...))}, nil
}

// SHA256 is the hash of the proof, which the log has.
func (s SignedPolicyProof) SHA256() string {
	sum := sha256.Sum256(s.compact())
	return hex.EncodeToString(sum[:])
}

func (s SignedPolicyProof) compact() []byte {
	var b bytes.Buffer
	if json.Compact(&b, s.Proof) != nil {
		return nil
	}
	return b.Bytes()
}

// Open checks signature and form; whose the key is says its Pin.
func (s SignedPolicyProof) Open() (p PolicyProof, err error) {
	b := s.compact()
	if len(b) == 0 || len(b) > MaxPolicyProof || !s.ClusterKey.Verify(append([]byte(policyProofLabel), b...), s.Signature) {
		return p, fmt.Errorf("%w: bad signature", ErrPolicyProofInvalid)
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fmt.Errorf("%w: %w", ErrPolicyProofInvalid, err)
	}
	pin := s.ClusterKey.Pin()
	if p.Cluster != hex.EncodeToString(pin[:]) {
		return p, fmt.Errorf("%w: it names another cluster", ErrPolicyProofInvalid)
	}
	if err := p.Mark.Check(pin); err != nil {
		return p, fmt.Errorf("%w: %w", ErrPolicyProofInvalid, err)
	}
	if err := p.Check(); err != nil {
		return p, fmt.Errorf("%w: %w", ErrPolicyProofInvalid, err)
	}
	return p, nil
}
