package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// ServiceWordPort is the UDP port at a node's overlay address at which its agent answers other nodes' agents how backends beside it
// are. It is asked inside the tunnel, so that an answer has come the way that data takes.
const ServiceWordPort = 4717

// Readiness is what a backend's node says of it.
type Readiness uint8

// What a backend's node says of it.
const (
	ReadyUnknown Readiness = 0 // not asked yet
	Ready        Readiness = 1
	NotReady     Readiness = 2
)

// String is the word.
func (r Readiness) String() string {
	switch r {
	case Ready:
		return "ready"
	case NotReady:
		return "not ready"
	}
	return "unknown"
}

// ServiceAsk is the question of one agent to another. All numbers are big-endian:
//
//	0  4  "CWsq"
//	4  4  sequence number
//	8  8  digest of the words that the asker has
//	16 2  page that it wants; of page 0 alone the digest is compared
//	18 …  zeros up to ServiceAskSize
//
// It is as long as an answer without words, and an answer with words goes to nobody but who has a session: nothing is
// amplified for strangers.
type ServiceAsk struct {
	Seq    uint32
	Digest uint64
	Page   uint16
}

// ServiceAnswer is the answer:
//
//	0  4  "CWsa"
//	4  4  sequence number of the question
//	8  8  digest of all words
//	16 2  page
//	18 2  number of pages
//	20 2  number of words; 0 if the asker's digest is the same
//	22 …  words, of ServiceWordSize bytes each
type ServiceAnswer struct {
	Seq         uint32
	Digest      uint64
	Page, Pages uint16
	Words       []ServiceWord
}

// ServiceWord is what a node says of a backend of a service beside it:
//
//	0  8  ServiceHash of the service's name
//	8  16 address; an IPv4 one is mapped into IPv6
//	24 1  Readiness
type ServiceWord struct {
	Service uint64
	Addr    netip.Addr
	Ready   Readiness
}

// Sizes of the messages, in bytes. An answer fits the smallest MTU of a tunnel.
const (
	ServiceAskSize   = 22
	ServiceWordSize  = 25
	serviceAnswerMin = 22
	// MaxServiceWords is how many words one answer has, MaxServicePages how many pages there are.
	MaxServiceWords = 45
	MaxServicePages = 256
)

var (
	askMagic    = [4]byte{'C', 'W', 's', 'q'}
	answerMagic = [4]byte{'C', 'W', 's', 'a'}
)

// ServiceHash is a service's name in words.
func ServiceHash(name string) uint64 { return hashString(name) }

// Append appends the message.
func (m ServiceAsk) Append(b []byte) []byte {
	b = append(b, askMagic[:]...)
	b = binary.BigEndian.AppendUint32(b, m.Seq)
	b = binary.BigEndian.AppendUint64(b, m.Digest)
	b = binary.BigEndian.AppendUint16(b, m.Page)
	return append(b, 0, 0, 0, 0)
}

// ParseServiceAsk reads a question.
func ParseServiceAsk(b []byte) (m ServiceAsk, err error) {
	if len(b) != ServiceAskSize || [4]byte(b) != askMagic {
		return m, errors.New("no question of services")
	}
	return ServiceAsk{binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint16(b[16:])}, nil
}

// Append appends the message. It has no more than MaxServiceWords words.
func (m ServiceAnswer) Append(b []byte) []byte {
	b = append(b, answerMagic[:]...)
	b = binary.BigEndian.AppendUint32(b, m.Seq)
	b = binary.BigEndian.AppendUint64(b, m.Digest)
	b = binary.BigEndian.AppendUint16(b, m.Page)
	b = binary.BigEndian.AppendUint16(b, m.Pages)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Words)))
	for _, w := range m.Words {
		b = binary.BigEndian.AppendUint64(b, w.Service)
		a := w.Addr.As16()
		b = append(append(b, a[:]...), byte(w.Ready))
	}
	return b
}

// ParseServiceAnswer reads an answer.
func ParseServiceAnswer(b []byte) (m ServiceAnswer, err error) {
	if len(b) < serviceAnswerMin || [4]byte(b) != answerMagic {
		return m, errors.New("no answer of services")
	}
	m = ServiceAnswer{Seq: binary.BigEndian.Uint32(b[4:]), Digest: binary.BigEndian.Uint64(b[8:]), Page: binary.BigEndian.Uint16(b[16:]), Pages: binary.BigEndian.Uint16(b[18:])}
	n := int(binary.BigEndian.Uint16(b[20:]))
	if b = b[serviceAnswerMin:]; n > MaxServiceWords || len(b) != n*ServiceWordSize || m.Pages > MaxServicePages || m.Page >= max(1, m.Pages) {
		return ServiceAnswer{}, fmt.Errorf("answer of services: %d bytes of %d words, page %d of %d", len(b), n, m.Page, m.Pages)
	}
	for ; len(b) > 0; b = b[ServiceWordSize:] {
		w := ServiceWord{binary.BigEndian.Uint64(b), netip.AddrFrom16([16]byte(b[8:])).Unmap(), Readiness(b[24])}
		if w.Ready > NotReady {
			return ServiceAnswer{}, fmt.Errorf("answer of services: %d is no readiness", w.Ready)
		}
		m.Words = append(m.Words, w)
	}
	return m, nil
}

// ServiceDigest is the digest of all words of a node, in any order.
func ServiceDigest(l []ServiceWord) (sum uint64) {
	for _, w := range l {
		sum += mix(w.Service ^ mix(hashAddr(w.Addr)^uint64(w.Ready)))
	}
	return sum
}
