package uapi

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"causeway/protocol"
)

// Bounds of one request: what wg(8) sends for the largest configurations is
// far below. A line is bounded by the reader's buffer before anything is
// made of it.
const (
	maxLine  = 512
	maxLines = 1 << 20
)

// NewReader returns a reader whose buffer is the bound of a line.
func NewReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, maxLine) }

// Read reads one request up to the empty line that ends it. The error is io.EOF
// if there is none, and an *Error if it is wrong. Keys and values are taken
// strictly; r is one of NewReader.
func Read(r *bufio.Reader) (Request, error) {
	var q Request
	first, err := line(r)
	if err != nil {
		return q, err
	}
	switch string(first) {
	case "get=1":
		q.Get = true
	case "set=1":
	default:
		return q, invalid("request %q is neither get=1 nor set=1", first)
	}
	p := parser{change: &q.Set}
	for range maxLines {
		l, err := line(r)
		switch {
		case errors.Is(err, io.EOF):
			return q, io.ErrUnexpectedEOF
		case err != nil:
			return q, err
		case len(l) == 0:
			return q, nil
		case q.Get:
			return q, invalid("get=1 with %q behind it", l)
		}
		if err := p.line(l); err != nil {
			return q, err
		}
	}
	return q, &Error{unix.E2BIG, errors.New("request has too many lines")}
}

// line returns a line without its end. It is valid until the next call.
func line(r *bufio.Reader) ([]byte, error) {
	l, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, invalid("line is longer than %d bytes", maxLine)
	case errors.Is(err, io.EOF) && len(l) > 0:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return l[:len(l)-1], nil
}

type parser struct {
	change *Change
	peer   *PeerChange // nil: before the first
}

func (p *parser) line(l []byte) error {
	k, v, ok := bytes.Cut(l, []byte{'='})
	if !ok {
		return invalid("line without '='")
	}
	key, value := string(k), string(v)
	if key == "public_key" {
		var n protocol.WireGuardPublicKey
		if err := hexKey(n[:], key, value); err != nil {
			return err
		}
		p.change.Peers = append(p.change.Peers, PeerChange{Key: n})
		p.peer = &p.change.Peers[len(p.change.Peers)-1]
		return nil
	}
	if p.peer != nil {
		return p.peerLine(key, value)
	}
	switch key {
	case "private_key":
		var n protocol.WireGuardPrivateKey
		if err := hexKey(n[:], key, value); err != nil {
			return err
		}
		if !n.IsZero() { // as every implementation keeps it
			n[0] &= 248
			n[31] = n[31]&127 | 64
		}
		p.change.PrivateKey = &n
	case "listen_port":
		n, err := number(key, value, 16)
		port := uint16(n)
		p.change.ListenPort = &port
		return err
	case "fwmark":
		n, err := number(key, value, 32)
		mark := uint32(n)
		p.change.Mark = &mark
		return err
	case "replace_peers":
		return yes(&p.change.ReplacePeers, key, value)
	default:
		return invalid("key %q is not known", key)
	}
	return nil
}

func (p *parser) peerLine(key, value string) error {
	c := p.peer
	switch key {
	case "remove":
		return yes(&c.Remove, key, value)
	case "update_only":
		return yes(&c.UpdateOnly, key, value)
	case "replace_allowed_ips":
		return yes(&c.ReplaceAllowedIPs, key, value)
	case "preshared_key":
		c.PresharedKey = new([32]byte)
		return hexKey(c.PresharedKey[:], key, value)
	case "endpoint":
		a, err := netip.ParseAddrPort(value)
		if err != nil {
			return invalid("endpoint %q is not ADDRESS:PORT", value)
		}
		c.Endpoint = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	case "persistent_keepalive_interval":
		if value == "off" {
			value = "0"
		}
		n, err := number(key, value, 16)
		d := time.Duration(n) * time.Second
		c.Keepalive = &d
		return err
	case "allowed_ip":
		remove := len(value) > 0 && value[0] == '-'
		if remove {
			value = value[1:]
		}
		a, err := netip.ParsePrefix(value)
		if err != nil || a.Addr().Is4In6() {
			return invalid("allowed_ip %q is not a prefix", value)
		}
		c.AllowedIPs = append(c.AllowedIPs, AllowedIP{a.Masked(), remove})
	case "protocol_version":
		if value != "1" {
			return &Error{unix.EPROTONOSUPPORT, errors.New("protocol_version is not 1")}
		}
	default:
		return invalid("key %q is not known", key)
	}
	return nil
}

// hexKey reads a key. Its text is in no error.
func hexKey(to []byte, key, value string) error {
	if len(value) != 2*len(to) {
		return invalid("%s is not %d hexadecimal digits", key, 2*len(to))
	}
	if _, err := hex.Decode(to, []byte(value)); err != nil {
		return invalid("%s is not hexadecimal", key)
	}
	return nil
}

func number(key, value string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(value, 10, bits)
	if err != nil {
		return 0, invalid("%s %q is not a number of %d bits", key, value, bits)
	}
	return n, nil
}

func yes(to *bool, key, value string) error {
	if value != "true" {
		return invalid("%s is not true", key)
	}
	*to = true
	return nil
}
