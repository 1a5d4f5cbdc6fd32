package protocol

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/crypto/blake2s"
)

// ProbeKind says what a probe asks or answers.
type ProbeKind byte

// Kinds of probes. Agents ask each other directly and through relays; the
// exchange with a hub takes four steps, so that the hub keeps no state for an
// address before it is proven:
//
//	agent -> agent  question     a nonce
//	agent <- agent  answer       the same nonce, where the question came from
//
//	agent -> hub    hub question  a nonce
//	agent <- hub    challenge     the nonce, a stateless cookie over the agent's address
//	agent -> hub    confirm       nonce and cookie; a counter names the address to send to
//	agent <- hub    acknowledge   the nonce, the address now bound
const (
	ProbeQuestion    ProbeKind = 1
	ProbeAnswer      ProbeKind = 2
	ProbeHubQuestion ProbeKind = 3
	ProbeChallenge   ProbeKind = 4
	ProbeConfirm     ProbeKind = 5
	ProbeAcknowledge ProbeKind = 6
)

// String names the kind.
func (k ProbeKind) String() string {
	names := [...]string{"", "question", "answer", "hub question", "challenge", "confirm", "acknowledge"}
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("kind %d", byte(k))
	}
	return names[k]
}

// ProbeFlags are bits; unknown ones are ignored.
type ProbeFlags byte

// ProbeActive says that the asker has traffic for the asked, who should look
// for paths too.
const ProbeActive ProbeFlags = 1

// ProbeNoInterface says, in an answer to an agent, that the tunnel's interface is gone or
// down where the answer comes from: probes pass, and nothing else does.
const ProbeNoInterface ProbeFlags = 2

// ProbeCounts says, in an answer or an acknowledgement, that Counts are in it. Who knows
// nothing of them sends none and ignores them.
const ProbeCounts ProbeFlags = 4

// ProbeOverrun says beside Counts that the socket of who counts had no room for all that came
// lately: what did not arrive may have been lost there, and not on the way.
const ProbeOverrun ProbeFlags = 8

// ProbeLeft says, in a question, that the asker leaves this path alone: nothing of what it sent over it
// arrived. Who answers has no use for it either, as of what comes in by another path the answers
// would get lost.
const ProbeLeft ProbeFlags = 16

// DataClasses are the kinds of WireGuard's messages that are counted apart, because what is
// on the way may treat them apart: handshakes, and transport messages by their size.
const DataClasses = 4

// DataClass is the class of a message of WireGuard's of n bytes.
func DataClass(t MessageType, n int) int {
	switch {
	case t != MessageTransport:
		return 0
	case n <= 256:
		return 1
	case n <= 1000:
		return 2
	}
	return 3
}

// DataClassName says for a person what is in a class.
func DataClassName(class int) string {
	return [DataClasses]string{"handshake messages", "packets of up to 256 bytes", "packets of 257 to 1000 bytes", "packets of over 1000 bytes"}[class]
}

// CountMask is how far the numbers of ProbeCounts go before they start over.
const CountMask = 1<<24 - 1

// DataCounts counts messages by class, modulo CountMask+1.
type DataCounts [DataClasses]uint32

// PathCounts is what one end counted on a path since it knows it.
type PathCounts struct{ Received, Sent DataCounts }

// Layout of a probe, big endian. Every kind has the same size, so an answer is
// never longer than its question.
//
//	 0  1  MessageProbe
//	 1  3  node number, as on WireGuard's messages; the one part the MAC leaves out
//	 4  1  version of the format: 1
//	 5  1  kind
//	 6  1  flags
//	 7  1  zero
//	 8  4  from: number of the node or hub that sends
//	12  4  to
//	16  4  key epoch of the sender
//	20  2  path id, the asker's name for the path; answers repeat it
//	22  2  padding length
//	24  8  boot id of the sender
//	32  8  nonce of the asker; answers repeat it
//	40  8  counter: in a confirmation, names the address to send to
//	48  8  stamp: when the hub made the cookie, by its own clock
//	56 16  cookie
//	48 24  instead of stamp and cookie, with ProbeCounts in an answer or acknowledgement:
//	       4 x 3 received, 4 x 3 sent, by DataClass
//	72 16  observed address (IPv4 as ::ffff:a.b.c.d), zeros for none
//	88  2  observed port
//	90  6  zeros
//	96 16  MAC: BLAKE2s-128 over bytes 0 and 4 to 95
//	112    padding, zeros
const (
	ProbeSize    = 112
	probeVersion = 1
	probeMAC     = 96
	// MaxProbePadding bounds what a path MTU probe adds.
	MaxProbePadding = 9216 - ProbeSize
)

// Probe is one decoded probe. Whether its sender holds the key is another
// question: ProbeKey.Verify.
type Probe struct {
	Number   NodeNumber // the reserved bytes
	Kind     ProbeKind
	Flags    ProbeFlags
	From     NodeNumber
	To       NodeNumber
	KeyEpoch uint32
	PathID   uint16
	Padding  uint16
	Boot     BootID
	Nonce    uint64
	Counter  uint64
	Stamp    uint64
	Cookie   [16]byte
	Observed netip.AddrPort
	Counts   PathCounts // with HasCounts
}

// HasCounts reports whether p carries Counts.
func (p *Probe) HasCounts() bool {
	return p.Flags&ProbeCounts != 0 && (p.Kind == ProbeAnswer || p.Kind == ProbeAcknowledge)
}

func (c *PathCounts) put(b []byte) {
	for i, n := range append(c.Received[:len(c.Received):len(c.Received)], c.Sent[:]...) {
		b[3*i], b[3*i+1], b[3*i+2] = byte(n>>16), byte(n>>8), byte(n)
	}
}

func (c *PathCounts) read(b []byte) {
	for i := range DataClasses {
		r, s := b[3*i:], b[3*(DataClasses+i):]
		c.Received[i] = uint32(r[0])<<16 | uint32(r[1])<<8 | uint32(r[2])
		c.Sent[i] = uint32(s[0])<<16 | uint32(s[1])<<8 | uint32(s[2])
	}
}

// ErrMalformedProbe wraps every error of ParseProbe.
var ErrMalformedProbe = errors.New("malformed probe")

// ParseProbe decodes b, which has to be one probe and nothing else. It does
// not look at the MAC.
func ParseProbe(b []byte) (Probe, error) {
	bad := func(what string) (Probe, error) { return Probe{}, fmt.Errorf("%w: %s", ErrMalformedProbe, what) }
	if len(b) < ProbeSize || len(b) > ProbeSize+MaxProbePadding {
		return bad("wrong length")
	}
	be := binary.BigEndian
	p := Probe{
		Number: MessageNumber(b), Kind: ProbeKind(b[5]), Flags: ProbeFlags(b[6]),
		From: NodeNumber(be.Uint32(b[8:])), To: NodeNumber(be.Uint32(b[12:])), KeyEpoch: be.Uint32(b[16:]),
		PathID: be.Uint16(b[20:]), Padding: be.Uint16(b[22:]), Boot: BootID(b[24:32]), Nonce: be.Uint64(b[32:]),
		Counter: be.Uint64(b[40:]), Stamp: be.Uint64(b[48:]), Cookie: [16]byte(b[56:72]),
	}
	switch {
	case MessageType(b[0]) != MessageProbe:
		return bad("wrong type")
	case b[4] != probeVersion:
		return bad("unknown version")
	case p.Kind < ProbeQuestion || p.Kind > ProbeAcknowledge:
		return bad("unknown kind")
	case !p.From.Valid() || !p.To.Valid():
		return bad("no valid node number")
	case int(p.Padding) != len(b)-ProbeSize:
		return bad("padding length does not match")
	case b[7] != 0 || !zeros(b[90:probeMAC]) || !zeros(b[ProbeSize:]):
		return bad("reserved bytes or padding not zero")
	}
	addr, port := netip.AddrFrom16([16]byte(b[72:88])).Unmap(), be.Uint16(b[88:])
	switch none := zeros(b[72:88]); {
	case none && port != 0, !none && port == 0:
		return bad("half an observed address")
	case !none:
		p.Observed = netip.AddrPortFrom(addr, port)
	}
	if p.HasCounts() {
		p.Counts.read(b[48:72])
		p.Stamp, p.Cookie = 0, [16]byte{}
	}
	return p, nil
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Append appends the encoded probe with its MAC under key to b. Numbers must
// be valid and Padding at most MaxProbePadding.
func (p Probe) Append(b []byte, key *ProbeKey) []byte {
	start := len(b)
	b = append(b, make([]byte, ProbeSize+int(p.Padding))...)
	o, be := b[start:], binary.BigEndian
	o[0], o[4], o[5], o[6] = byte(MessageProbe), probeVersion, byte(p.Kind), byte(p.Flags)
	SetMessageNumber(o, p.Number)
	be.PutUint32(o[8:], uint32(p.From))
	be.PutUint32(o[12:], uint32(p.To))
	be.PutUint32(o[16:], p.KeyEpoch)
	be.PutUint16(o[20:], p.PathID)
	be.PutUint16(o[22:], p.Padding)
	copy(o[24:], p.Boot[:])
	be.PutUint64(o[32:], p.Nonce)
	be.PutUint64(o[40:], p.Counter)
	be.PutUint64(o[48:], p.Stamp)
	copy(o[56:], p.Cookie[:])
	if p.HasCounts() {
		p.Counts.put(o[48:72])
	}
	if p.Observed.IsValid() {
		a := p.Observed.Addr().As16()
		copy(o[72:], a[:])
		be.PutUint16(o[88:], p.Observed.Port())
	}
	mac := key.mac(o)
	copy(o[probeMAC:], mac[:])
	return b
}

// ProbeKey authenticates probes of one direction between two nodes.
type ProbeKey [32]byte

// String hides the key.
func (ProbeKey) String() string { return redacted }

// GoString hides the key.
func (ProbeKey) GoString() string { return redacted }

// ProbeKeys are the two directions' keys as one side sees them.
type ProbeKeys struct{ Send, Receive ProbeKey }

const probeKeyLabel = "causeway probe v1\n"

// NewProbeKeys derives both keys from the static keys: BLAKE2s-256 keyed with
// X25519(own, peer) over a label, the sender's public key and the receiver's.
// It fails with ErrLowOrderKey.
func NewProbeKeys(own WireGuardPrivateKey, peer WireGuardPublicKey) (ProbeKeys, error) {
	secret, err := own.SharedSecret(peer)
	if err != nil {
		return ProbeKeys{}, err
	}
	derive := func(from, to WireGuardPublicKey) (k ProbeKey) {
		h, err := blake2s.New256(secret[:])
		if err != nil { // only for a key longer than 32 bytes
			panic(err)
		}
		h.Write([]byte(probeKeyLabel))
		h.Write(from[:])
		h.Write(to[:])
		h.Sum(k[:0])
		return k
	}
	pub := own.Public()
	return ProbeKeys{Send: derive(pub, peer), Receive: derive(peer, pub)}, nil
}

func (k *ProbeKey) mac(b []byte) (m [16]byte) {
	h, err := blake2s.New128(k[:])
	if err != nil { // only for a key longer than 32 bytes
		panic(err)
	}
	h.Write(b[:1])
	h.Write(b[4:probeMAC])
	h.Sum(m[:0])
	return m
}

// Verify reports whether the encoded probe b carries k's MAC. b must have
// passed ParseProbe.
func (k *ProbeKey) Verify(b []byte) bool {
	if len(b) < ProbeSize {
		return false
	}
	m := k.mac(b)
	return subtle.ConstantTimeCompare(m[:], b[probeMAC:ProbeSize]) == 1
}
