package inline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/flynn/noise"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"causeway/protocol"
)

// The handshake is Noise IK with the preshared key at position 2. Messages
// (little endian, section 5.4 of the paper):
//
//	initiation  type 1 (4) | sender (4) | ephemeral (32) | static (32+16) | timestamp (12+16) | mac1 (16) | mac2 (16)
//	response    type 2 (4) | sender (4) | receiver (4) | ephemeral (32) | empty (16) | mac1 (16) | mac2 (16)
//	cookie      type 3 (4) | receiver (4) | nonce (24) | cookie (16+16)
//	transport   type 4 (4) | receiver (4) | counter (8) | packet, padded (n) | tag (16)
const (
	initiationSize = device.MessageInitiationSize
	responseSize   = device.MessageResponseSize
	cookieSize     = device.MessageCookieReplySize

	initiationNoise = 8  // where the Noise message begins
	responseNoise   = 12 //
	macsSize        = 32
)

var suite = noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s)

var (
	errHandshake = errors.New("handshake message does not authenticate")
	errLowOrder  = errors.New("ephemeral key is a low-order point")
)

// identity is the device's static key pair.
type identity struct{ static noise.DHKey }

func newIdentity(k protocol.WireGuardPrivateKey) identity {
	pub := k.Public()
	return identity{noise.DHKey{Private: append([]byte{}, k[:]...), Public: pub[:]}}
}

func (id identity) config(initiator bool, peer, psk []byte) noise.Config {
	return noise.Config{
		CipherSuite: suite, Pattern: noise.HandshakeIK, Initiator: initiator,
		Prologue:     []byte(device.WGIdentifier),
		PresharedKey: psk, PresharedKeyPlacement: 2,
		StaticKeypair: id.static, PeerStatic: peer,
	}
}

// sessionKeys is the outcome of a handshake.
type sessionKeys struct {
	send, receive [32]byte
	remote        uint32 // the peer's index
	initiator     bool
}

func (k *sessionKeys) erase() { clear(k.send[:]); clear(k.receive[:]) }

// initiation is an initiation that waits for its response.
type initiation struct {
	state *noise.HandshakeState
	entry *entry
	own   *ownKey
}

// erase forgets the ephemeral private key. The chaining key inside the Noise
// library is out of reach and goes with the garbage.
func (i *initiation) erase() { clear(i.state.LocalEphemeral().Private) }

// newInitiation writes an initiation without its MACs.
func (id identity) newInitiation(peer protocol.WireGuardPublicKey, psk [32]byte, index uint32, stamp tai64n.Timestamp) (*noise.HandshakeState, []byte, error) {
	hs, err := noise.NewHandshakeState(id.config(true, peer[:], psk[:]))
	if err != nil {
		return nil, nil, fmt.Errorf("start handshake: %w", err)
	}
	m := make([]byte, initiationNoise, initiationSize)
	binary.LittleEndian.PutUint32(m, device.MessageInitiationType)
	binary.LittleEndian.PutUint32(m[4:], index)
	if m, _, _, err = hs.WriteMessage(m, stamp[:]); err != nil {
		return nil, nil, fmt.Errorf("write initiation: %w", err)
	}
	return hs, m[:initiationSize], nil
}

// received is an initiation that was read and whose sender is known. The
// response is made from it.
type received struct {
	state  *noise.HandshakeState
	key    protocol.WireGuardPublicKey
	stamp  tai64n.Timestamp
	remote uint32
}

// readInitiation opens an initiation of the right size. It holds no state
// beyond what it returns.
func (id identity) readInitiation(m []byte) (r received, err error) {
	r.state, err = noise.NewHandshakeState(id.config(false, nil, nil))
	if err != nil {
		return r, fmt.Errorf("start handshake: %w", err)
	}
	payload, _, _, err := r.state.ReadMessage(nil, m[initiationNoise:initiationSize-macsSize])
	if err != nil || len(payload) != len(r.stamp) {
		return r, errHandshake
	}
	copy(r.stamp[:], payload)
	copy(r.key[:], r.state.PeerStatic())
	r.remote = binary.LittleEndian.Uint32(m[4:])
	return r, nil
}

// respond writes the response, without its MACs, and returns the keys.
func (r received) respond(psk [32]byte, index uint32) ([]byte, sessionKeys, error) {
	if err := r.state.SetPresharedKey(psk[:]); err != nil {
		return nil, sessionKeys{}, fmt.Errorf("set preshared key: %w", err)
	}
	m := make([]byte, responseNoise, responseSize)
	binary.LittleEndian.PutUint32(m, device.MessageResponseType)
	binary.LittleEndian.PutUint32(m[4:], index)
	binary.LittleEndian.PutUint32(m[8:], r.remote)
	m, toUs, fromUs, err := r.state.WriteMessage(m, nil)
	if err != nil {
		return nil, sessionKeys{}, fmt.Errorf("write response: %w", err)
	}
	clear(r.state.LocalEphemeral().Private)
	return m[:responseSize], sessionKeys{send: fromUs.UnsafeKey(), receive: toUs.UnsafeKey(), remote: r.remote}, nil
}

// readResponse finishes a handshake of ours. If it fails, the initiation goes
// on waiting: a forged response changes nothing.
func (id identity) readResponse(i *initiation, m []byte) (sessionKeys, error) {
	// The Noise library rolls back after a failed tag but not after a failed
	// DH, which anybody could cause by a low-order point.
	if _, err := curve25519.X25519(id.static.Private, m[responseNoise:responseNoise+32]); err != nil {
		return sessionKeys{}, errLowOrder
	}
	_, fromUs, toUs, err := i.state.ReadMessage(nil, m[responseNoise:responseSize-macsSize])
	if err != nil {
		return sessionKeys{}, errHandshake
	}
	return sessionKeys{
		send: fromUs.UnsafeKey(), receive: toUs.UnsafeKey(),
		remote: binary.LittleEndian.Uint32(m[4:]), initiator: true,
	}, nil
}

// readCookie reads a cookie reply of the right size.
func readCookie(m []byte) *device.MessageCookieReply {
	r := &device.MessageCookieReply{Type: device.MessageCookieReplyType, Receiver: binary.LittleEndian.Uint32(m[4:])}
	copy(r.Nonce[:], m[8:32])
	copy(r.Cookie[:], m[32:64])
	return r
}

func writeCookie(r *device.MessageCookieReply) []byte {
	m := make([]byte, 8, cookieSize)
	binary.LittleEndian.PutUint32(m, r.Type)
	binary.LittleEndian.PutUint32(m[4:], r.Receiver)
	m = append(m, r.Nonce[:]...)
	return append(m, r.Cookie[:]...)
}

// stampGranularity hides the clock's finer bits, as wireguard-go's tai64n does.
const stampGranularity = 1 << 24 // ns

// timestamp is t in TAI64N, later than last in any case: a clock that was set
// back must not make the peer refuse us.
func timestamp(t time.Time, last tai64n.Timestamp) (s tai64n.Timestamp) {
	const base = 0x400000000000000a
	put := func(sec uint64, nano uint32) {
		binary.BigEndian.PutUint64(s[:], sec)
		binary.BigEndian.PutUint32(s[8:], nano)
	}
	put(base+uint64(t.Unix()), uint32(t.Nanosecond())&^(stampGranularity-1))
	if s.After(last) {
		return s
	}
	sec, nano := binary.BigEndian.Uint64(last[:]), binary.BigEndian.Uint32(last[8:])+stampGranularity
	if nano >= 1e9 {
		sec, nano = sec+1, 0
	}
	put(sec, nano)
	return s
}
