package protocol

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// A trial of policies: a hub asks two agents, one to send packets that policies close and one to say whether they
// come. Agents make the packets, of what is here alone; nothing of them is the hub's but addresses, protocol and port.

// Bounds of a trial at one agent.
const (
	MaxProvePackets = 32 // to send, and as many to look for, at once
	MaxProveFrom    = 4  // addresses of a packet
	MaxProveTime    = 9 * time.Second
	MaxProveBody    = 64 << 10
	// ProveEvery is between two packets of one agent: at most 200 a second.
	ProveEvery = 5 * time.Millisecond
)

// ProvePacket is a packet of a trial: the SYN of a connection, a datagram of 16 bytes or an echo request with as many.
type ProvePacket struct {
	// Token is what it is known by: its sequence number of TCP, or the first bytes of what it carries. Behind is the
	// second one's, which does not pass the sender's own wall.
	Token  uint32     `json:"token"`
	Behind uint32     `json:"behind"`
	Proto  Proto      `json:"proto"`
	Port   uint16     `json:"port,omitempty"`
	From   netip.Addr `json:"from,omitzero"` // an address of the sender's own; else Among says
	// Among are addresses behind the sender: it takes the first that somebody may have.
	Among []netip.Addr `json:"among,omitempty"`
	To    netip.Addr   `json:"to"`
}

// ProveWatch asks an agent to count packets for MaxProveTime, or until the request ends. The answer is two lines:
// ProveReady at once, and nothing more.
type ProveWatch struct {
	Secret  uint32        `json:"secret"` // in each packet beside its token
	Send    []ProvePacket `json:"send,omitempty"`
	Receive []ProvePacket `json:"receive,omitempty"`
}

// ProveReady is the first line of the answer to ProveWatch.
type ProveReady struct {
	Ready bool   `json:"ready"`
	Error string `json:"error,omitempty"`
}

// ProveNow asks for what a ProveWatch with that secret is for: to send its packets, or what was seen.
type ProveNow struct {
	Secret uint32 `json:"secret"`
}

// ProveSent is what became of sending a packet.
type ProveSent struct {
	Token   uint32     `json:"token"`
	From    netip.Addr `json:"from,omitzero"`
	Forward bool       `json:"forward,omitempty"` // as one that came by a link behind the host; else as the host's own
	Peer    bool       `json:"peer,omitempty"`    // the netmap has a peer for where it goes
	Sent    bool       `json:"sent,omitempty"`
	NoRoute bool       `json:"no_route,omitempty"` // the kernel has no way there, and said so
	Behind  bool       `json:"behind,omitempty"`   // the second one was sent
	Error   string     `json:"error,omitempty"`
}

// ProveSeen is what a host's kernel saw of a packet, and of the second one.
type ProveSeen struct {
	Token uint32 `json:"token"`
	// At the sender: before the wall; about to enter the tunnel, past it; about to go elsewhere, where it was dropped.
	Began     bool `json:"began,omitempty"`
	Entered   bool `json:"entered,omitempty"`
	Elsewhere bool `json:"elsewhere,omitempty"`
	// At the receiver: out of the tunnel, before the wall; past it, where it was dropped.
	Came         bool `json:"came,omitempty"`
	Passed       bool `json:"passed,omitempty"`
	BehindCame   bool `json:"behind_came,omitempty"`
	BehindPassed bool `json:"behind_passed,omitempty"`
}

// ProveSents and ProveSeens are answers to ProveNow.
type ProveSents struct {
	Sent []ProveSent `json:"sent"`
}

// ProveSeens says what was seen. Counts: a packet that the agent gave its kernel as one that came out of the tunnel was counted.
type ProveSeens struct {
	Counts bool        `json:"counts"`
	Seen   []ProveSeen `json:"seen"`
}

// Check says what is wrong with what somebody asks an agent to watch.
func (w ProveWatch) Check() error {
	if len(w.Send) > MaxProvePackets || len(w.Receive) > MaxProvePackets {
		return fmt.Errorf("more than %d packets at once", MaxProvePackets)
	}
	seen := map[uint32]bool{0: true, w.Secret: true}
	for i, p := range append(append([]ProvePacket{}, w.Send...), w.Receive...) {
		if err := p.check(i < len(w.Send)); err != nil {
			return fmt.Errorf("packet %d: %w", i+1, err)
		}
		if seen[p.Token] || seen[p.Behind] || p.Token == p.Behind {
			return fmt.Errorf("packet %d: its tokens are 0, or another's", i+1)
		}
		seen[p.Token], seen[p.Behind] = true, true
	}
	return nil
}

func (p ProvePacket) check(send bool) error {
	ported := p.Proto == ProtoTCP || p.Proto == ProtoUDP
	plain := func(a netip.Addr) bool { return a.IsValid() && a.Zone() == "" && !a.Is4In6() && a.Is4() == p.To.Is4() }
	switch {
	case !ported && p.Proto != ProtoICMP, ported != (p.Port != 0):
		return errors.New("it is of TCP or UDP with a port, or of ICMP")
	case !plain(p.To) || p.To.IsMulticast() || p.To.IsUnspecified():
		return errors.New("it goes to no address")
	case len(p.Among) > MaxProveFrom || !send && (p.From.IsValid() || len(p.Among) > 0):
		return errors.New("it has too many addresses that it may come from")
	case send && p.From.IsValid() == (len(p.Among) > 0):
		return errors.New("it comes from one address, or from one among some")
	}
	for _, a := range append(append([]netip.Addr{}, p.Among...), p.To) {
		if !plain(a) {
			return errors.New("its addresses are not of one family")
		}
	}
	if p.From.IsValid() && !plain(p.From) {
		return errors.New("its addresses are not of one family")
	}
	return nil
}
