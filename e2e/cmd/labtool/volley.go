package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Volley is what volley prints: packets that were sent, those that the own host refused too.
type Volley struct {
	UDP  int `json:"udp"`
	TCP  int `json:"tcp"`
	ICMP int `json:"icmp"`
}

// volley sends n UDP datagrams, n SYNs of TCP that belong to no socket, and n ICMP echoes to an IPv4 address, each to or
// from another port. Ports from 5000 on are nobody's and no exception of any policy.
func volley(ctx context.Context, addr string, n int) (v Volley, err error) {
	to, err := netip.ParseAddr(addr)
	if err != nil || !to.Is4() {
		return v, fmt.Errorf("%q is no IPv4 address", addr)
	}
	from := sourceTo(to)
	open := func(typ, proto int) int {
		fd, e := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, proto)
		err = errors.Join(err, e)
		return fd
	}
	udp, tcp, echo := open(unix.SOCK_DGRAM, 0), open(unix.SOCK_RAW, unix.IPPROTO_TCP), open(unix.SOCK_RAW, unix.IPPROTO_ICMP)
	if err != nil {
		return v, fmt.Errorf("open sockets: %w", err)
	}
	for i := range n {
		port := 5000 + i%20000
		at := &unix.SockaddrInet4{Addr: to.As4(), Port: port}
		// What the host refuses or has no route for counts, too: it was tried.
		unix.Sendto(udp, []byte("volley"), unix.MSG_DONTWAIT, at)
		v.UDP++
		unix.Sendto(tcp, syn(from, to, uint16(30000+i%20000), uint16(port)), unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to.As4()})
		v.TCP++
		b, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 7, Seq: i, Data: []byte("volley")}}).Marshal(nil)
		if err != nil {
			return v, err
		}
		unix.Sendto(echo, b, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to.As4()})
		v.ICMP++
		if i%10 == 9 { // sockets and queues are not to overflow: each is to be judged
			select {
			case <-ctx.Done():
				return v, ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
	}
	return v, nil
}

// sourceTo is the address that the host sends from; where it has no route, any.
func sourceTo(to netip.Addr) netip.Addr {
	c, err := net.Dial("udp4", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return netip.IPv4Unspecified()
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
}

// syn is a segment that asks for a connection.
func syn(from, to netip.Addr, source, port uint16) []byte {
	t := make([]byte, 20)
	binary.BigEndian.PutUint16(t, source)
	binary.BigEndian.PutUint16(t[2:], port)
	binary.BigEndian.PutUint32(t[4:], uint32(source)<<16|uint32(port))
	t[12], t[13] = 5<<4, 2
	binary.BigEndian.PutUint16(t[14:], 64000)
	sum := uint32(unix.IPPROTO_TCP) + uint32(len(t))
	for _, b := range [][]byte{from.AsSlice(), to.AsSlice(), t} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(t[16:], ^uint16(sum))
	return t
}

// Dialled is what dial prints.
type Dialled struct {
	Connected int `json:"connected"`
	Refused   int `json:"refused"`
	Other     int `json:"other"`
}

// dial begins a new connection now and again until it is told to end.
func dial(ctx context.Context, addr string, every time.Duration) (d Dialled, err error) {
	fmt.Println("dialling")
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return d, nil
		case <-tick.C:
		}
		c, err := (&net.Dialer{Timeout: time.Second}).Dial("tcp", addr)
		switch {
		case err == nil:
			d.Connected++
			c.Close()
		case errors.Is(err, unix.ECONNREFUSED):
			d.Refused++
		default:
			d.Other++
		}
	}
}
