package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsServer answers questions for addresses over UDP at addr, by a file of lines 'NAME ADDRESS TTL',
// which is read again for each; what it does not name does not exist. It logs each question.
func dnsServer(ctx context.Context, addr, file string) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	fmt.Println("serving")
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		answer, err := dnsAnswer(buf[:n], file)
		if err != nil {
			fmt.Println("bad question:", err)
			continue
		}
		if _, err := c.WriteTo(answer, from); err != nil {
			fmt.Println(err)
		}
	}
}

func dnsAnswer(question []byte, file string) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(question)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	fmt.Println("asked for", q.Name, q.Type)
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: dnsmessage.RCodeNameError},
		Questions: []dnsmessage.Question{q}}
	for l := range strings.Lines(string(text)) {
		f := strings.Fields(l)
		if len(f) != 3 || !strings.EqualFold(f[0]+".", q.Name.String()) {
			continue
		}
		m.RCode = dnsmessage.RCodeSuccess
		a, err := netip.ParseAddr(f[1])
		if err != nil {
			return nil, err
		}
		ttl, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return nil, err
		}
		r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: uint32(ttl)}}
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			r.Body = &dnsmessage.AResource{A: a.As4()}
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			r.Body = &dnsmessage.AAAAResource{AAAA: a.As16()}
		default:
			continue
		}
		m.Answers = append(m.Answers, r)
	}
	return m.Pack()
}
