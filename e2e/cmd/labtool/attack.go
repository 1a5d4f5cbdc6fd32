package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"time"
)

// Attacked is what attack prints.
type Attacked struct {
	Recorded int `json:"recorded"` // datagrams in the capture
	Sent     int `json:"sent"`
	Answers  int `json:"answers"`
}

// attack is a stranger who has recorded others' datagrams: it sends each as it
// was, with another sender's number, cut short, and with one bit changed; and
// then garbage of every message type and length. It counts what comes back.
func attack(file string, targets []string) (Attacked, error) {
	var r Attacked
	recorded, err := datagrams(file)
	if err != nil {
		return r, err
	}
	r.Recorded = len(recorded)
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return r, err
	}
	defer c.Close()
	var all [][]byte
	for _, d := range recorded {
		all = append(all, d)
		if len(d) < 8 {
			continue
		}
		for _, n := range []byte{0, 1, 2, 3, 9} { // numbers of hub, nodes and nobody
			f := slices.Clone(d)
			f[1], f[2], f[3] = 0, 0, n
			all = append(all, f)
		}
		all = append(all, d[:len(d)/2], d[:len(d)-1], append(slices.Clone(d), 0))
		f := slices.Clone(d)
		f[rand.IntN(len(f))] ^= 1 << rand.IntN(8)
		all = append(all, f)
	}
	for kind := range 256 {
		for _, size := range []int{0, 1, 4, 31, 32, 92, 148, 600, 1400} {
			g := make([]byte, size)
			for i := range g {
				g[i] = byte(rand.Uint32())
			}
			if size > 0 {
				g[0] = byte(kind)
			}
			all = append(all, g)
		}
	}
	for _, target := range targets {
		to, err := net.ResolveUDPAddr("udp4", target)
		if err != nil {
			return r, err
		}
		for i, d := range all {
			if _, err := c.WriteToUDP(d, to); err != nil {
				return r, fmt.Errorf("send to %s: %w", target, err)
			}
			if r.Sent++; i%50 == 49 { // sockets are not to overflow: every one is to be judged
				time.Sleep(5 * time.Millisecond)
			}
		}
	}
	buf := make([]byte, 2048)
	for c.SetReadDeadline(time.Now().Add(time.Second)); ; r.Answers++ {
		if _, _, err := c.ReadFromUDP(buf); err != nil {
			return r, nil
		}
	}
}

// datagrams reads the payloads of IPv4 UDP from a capture of Ethernet frames
// (pcap, little-endian; https://wiki.wireshark.org/Development/LibpcapFileFormat).
func datagrams(file string) (out [][]byte, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(b) < 24 || le.Uint32(b) != 0xa1b2c3d4 || le.Uint32(b[20:]) != 1 {
		return nil, fmt.Errorf("%s is no capture of Ethernet frames", file)
	}
	for b = b[24:]; len(b) >= 16; {
		n := int(le.Uint32(b[8:]))
		if n > len(b)-16 {
			break
		}
		f := b[16 : 16+n]
		b = b[16+n:]
		const eth, ip, udp = 14, 20, 8
		if len(f) >= eth+ip+udp && f[12] == 8 && f[13] == 0 && f[eth] == 0x45 && f[eth+9] == 17 {
			size := int(binary.BigEndian.Uint16(f[eth+ip+4:])) - udp
			if d := f[eth+ip+udp:]; size >= 0 && size <= len(d) && size <= 1472 {
				out = append(out, d[:size])
			}
		}
	}
	return out, nil
}
