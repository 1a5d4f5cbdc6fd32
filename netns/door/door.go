// Package door is the way to the agent's DNS on its host: a part of the plan. At the address of names port 53 leads to the port
// that the agent may open, for this host's own programs and its containers; for nobody by the tunnel, nor from a LAN.
package door

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/netns/table"
)

// Kind names the part's table.
const Kind = "dns"

// Port is the one that the agent listens at: below those that the kernel gives to programs that ask for none.
const Port = 4753

// port is that of DNS.
const port = 53

// Config is who comes in.
type Config struct {
	Address netip.Addr // link-local, IPv4
	UID     uint32     // the agent's: nobody else answers there, while it is away
	Inside  []string   // interfaces from where containers ask
}

// Priorities. Source and port are judged as they came; the way to the port is chosen before Docker, which has port 53 of
// each of the host's addresses lead into a container that publishes it.
const (
	judge  = -150
	lead   = -110
	answer = 0
)

// NewPart is the part.
func NewPart(c Config) (*table.Table, error) {
	if !c.Address.Is4() || !c.Address.IsLinkLocalUnicast() {
		return nil, fmt.Errorf("the door of names: %v is no link-local IPv4 address", c.Address)
	}
	if len(c.Inside) > netns.MaxInside {
		return nil, errors.New("the door of names: too many interfaces")
	}
	addr := c.Address.AsSlice()
	elsewhere := append([]expr.Any{family(), family4()}, header(16, addr, expr.CmpOpNeq)...)
	in := []table.Rule{
		{Text: "meta nfproto != ipv4 accept", Exprs: verdict(expr.VerdictAccept, family(), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}})},
		{Text: fmt.Sprintf("ip daddr != %s accept", c.Address), Exprs: verdict(expr.VerdictAccept, elsewhere...)},
		{Text: `iifname "lo" accept`, Exprs: verdict(expr.VerdictAccept, from("lo")...)},
	}
	for _, dev := range c.Inside {
		for _, p := range protos {
			in = append(in, table.Rule{Text: fmt.Sprintf("iifname %q %s dport %d accept", dev, p.name, port), Exprs: verdict(expr.VerdictAccept, append(from(dev), p.port(2, port)...)...)})
		}
	}
	in = append(in, table.Rule{Text: "counter drop", Exprs: verdict(expr.VerdictDrop, &expr.Counter{})})
	var leads, out []table.Rule
	for _, p := range protos {
		to := append(append([]expr.Any{family(), family4()}, header(16, addr, expr.CmpOpEq)...), p.port(2, port)...)
		leads = append(leads, table.Rule{Text: fmt.Sprintf("ip daddr %s %s dport %d dnat ip to %s:%d", c.Address, p.name, port, c.Address, Port),
			Exprs: append(to, &expr.Immediate{Register: 1, Data: addr}, &expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, Port)},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2})})
		own := append(append([]expr.Any{family(), family4()}, header(12, addr, expr.CmpOpEq)...), p.port(0, Port)...)
		own = append(own, &expr.Meta{Key: expr.MetaKeySKUID, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, c.UID)}, &expr.Counter{})
		out = append(out, table.Rule{Text: fmt.Sprintf("ip saddr %s %s sport %d meta skuid != %d counter drop", c.Address, p.name, Port, c.UID), Exprs: verdict(expr.VerdictDrop, own...)})
	}
	return table.New(table.Config{Kind: Kind, Chains: []table.Chain{
		{Name: "in", Hook: nftables.ChainHookPrerouting, HookName: "prerouting", Priority: judge, Rules: in},
		{Name: "lead-in", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, HookName: "prerouting", Priority: lead, Rules: leads},
		{Name: "lead-own", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput, HookName: "output", Priority: lead, Rules: leads},
		{Name: "answers", Hook: nftables.ChainHookOutput, HookName: "output", Priority: answer, Rules: out},
	}})
}

// proto is a protocol that DNS has.
type proto struct {
	name   string
	number byte
}

var protos = []proto{{"udp", unix.IPPROTO_UDP}, {"tcp", unix.IPPROTO_TCP}}

// port matches the protocol, and a port at an offset of its header.
func (p proto) port(offset uint32, n uint16) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p.number}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, n)}}
}

func family() expr.Any { return &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1} }

func family4() expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}}
}

// header compares an address of the IPv4 header.
func header(offset uint32, addr []byte, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}, &expr.Cmp{Op: op, Register: 1, Data: addr}}
}

// from matches the interface that a packet came by.
func from(dev string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, dev)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name}}
}

func verdict(k expr.VerdictKind, of ...expr.Any) []expr.Any {
	return append(of, &expr.Verdict{Kind: k})
}
