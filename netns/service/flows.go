package service

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"causeway/netns/internal/conntrack"
	"causeway/netns/internal/prod"
)

// Of is what the flows of one service to one backend are counted by.
type Of struct {
	VIP     netip.Addr
	Proto   uint8
	Port    uint16
	Backend netip.AddrPort
}

// Count is how many flows there are.
type Count struct {
	Open      int // TCP: established and not ended; UDP: answered
	Unreplied int // not answered yet

	// Since the agent runs, as far as one list of flows followed the other within meterGap. What was refused at once is in none.
	Begun   uint64
	Bytes   uint64 // of both directions; 0 where Counted is not set
	Counted bool   // the kernel counts bytes (net.netfilter.nf_conntrack_acct)
}

// Plus is both counts together.
func (c Count) Plus(o Count) Count {
	return Count{c.Open + o.Open, c.Unreplied + o.Unreplied, c.Begun + o.Begun, c.Bytes + o.Bytes, c.Counted || o.Counted}
}

// each goes through the flows to services that were translated.
func (t *Table) each(ctx context.Context, f func(conntrack.Flow) error) error {
	t.mu.Lock()
	h, exposed := t.host, t.live.exposed // which are never changed
	t.mu.Unlock()
	if h == nil {
		return nil
	}
	return conntrack.Each(ctx, conntrack.Translated, func(x conntrack.Flow) error {
		if _, by := exposed[key{x.To.Addr(), x.Proto, x.To.Port()}]; x.To == x.Answers || !by && !h.inRange(x.To.Addr()) {
			return nil
		}
		return f(x)
	})
}

// open reports whether a TCP connection is established, and conntrack has seen it end in one direction at the most. A reset that the table
// made ends it there too (since Linux 6.3).
func open(f conntrack.Flow) bool {
	return f.Proto == unix.IPPROTO_TCP && (f.State == conntrack.Established || f.State == conntrack.FinWait || f.State == conntrack.CloseWait)
}

func setOf(l []Backend) map[Backend]bool {
	out := make(map[Backend]bool, len(l))
	for _, b := range l {
		out[b] = true
	}
	return out
}

// How connections are prodded.
const (
	prodRate = 5000 // a second
	// An end answers two prods a second (tcp_invalid_ratelimit), and a prod or its answer may be lost.
	prodRounds = 4
	prodAgain  = 600 * time.Millisecond
)

// Prod has clients of established connections to these backends, which are dead (Config.Dead), say something, so that they meet the
// reset: those that wait or are idle end at once. It returns how many it spoke to, once all are reset, or after some rounds; 5,000 a second.
// It needs CAP_NET_RAW.
func (t *Table) Prod(ctx context.Context, backends []Backend) (n int, err error) {
	of := setOf(backends)
	if len(of) == 0 {
		return 0, nil
	}
	p := &prodder{socks: [2]int{-1, -1}}
	defer p.close()
	for round := range prodRounds {
		began, spoken := time.Now(), 0
		err := t.each(ctx, func(f conntrack.Flow) error {
			if !open(f) || !of[Backend{f.Proto, f.Answers}] {
				return nil
			}
			if err := p.prod(f.To, f.From); err != nil {
				return err
			}
			spoken++
			return wait(ctx, time.Until(began.Add(time.Duration(spoken)*time.Second/prodRate)))
		})
		if round == 0 {
			n = spoken
		}
		if err != nil || spoken == 0 {
			return n, err
		}
		if err := wait(ctx, time.Until(began.Add(prodAgain))); err != nil {
			return n, err
		}
	}
	return n, nil
}

// wait waits for what is worth it.
func wait(ctx context.Context, d time.Duration) error {
	if d < 10*time.Millisecond {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// prodder has a raw socket for each family that it has met.
type prodder struct{ socks [2]int }

func (p *prodder) prod(from, to netip.AddrPort) error {
	i, family := 0, unix.AF_INET
	if from.Addr().Is6() {
		i, family = 1, unix.AF_INET6
	}
	if p.socks[i] < 0 {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("open a raw socket: %w", err)
		}
		p.socks[i] = fd
	}
	// One of the two is out of any window. Whom neither reaches is spoken to again, as all who have not ended.
	seq := rand.Uint32()
	_, _ = prod.Send(p.socks[i], from, to, seq), prod.Send(p.socks[i], from, to, seq+1<<31)
	return nil
}

func (p *prodder) close() {
	for _, fd := range p.socks {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
