package lab

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// Slow is what Delay makes of a direction through a router.
type Slow struct {
	Delay  time.Duration // of each packet
	Jitter time.Duration // up to this much more, which reorders
	Loss   float64       // percent of packets dropped
}

// Delay holds back what the router forwards from one interface to another, in
// this direction alone, until the process it returns is stopped. tool is the
// path of labtool. Packets are delayed as they come: super-packets whole.
func (h *Host) Delay(ctx context.Context, tool, from, to string, s Slow) (*Process, error) {
	h.lab.mu.Lock()
	h.queues++
	queue := h.queues
	h.lab.mu.Unlock()
	// Packets pass where no program listens at the queue any more.
	for _, ipt := range []string{"iptables", "ip6tables"} {
		h.sh(fmt.Sprintf("%s -w -t mangle -A FORWARD -i %s -o %s -j NFQUEUE --queue-num %d --queue-bypass", ipt, from, to, queue))
	}
	p, err := h.Start(Program{Name: fmt.Sprintf("delay-%d", queue), Args: []string{tool, "delay", "-queue", strconv.Itoa(queue),
		"-delay", s.Delay.String(), "-jitter", s.Jitter.String(), "-loss", strconv.FormatFloat(s.Loss, 'f', -1, 64)}})
	if err != nil {
		return nil, err
	}
	return p, p.WaitOutput(ctx, "delaying")
}

// DelayBoth is Delay in both directions, and returns what ends it.
func (h *Host) DelayBoth(ctx context.Context, tool, a, b string, s Slow) (end func(), err error) {
	there, err := h.Delay(ctx, tool, a, b, s)
	if err != nil {
		return nil, err
	}
	back, err := h.Delay(ctx, tool, b, a, s)
	if err != nil {
		there.Kill()
		return nil, err
	}
	return func() {
		there.Kill()
		back.Kill()
		h.sh("iptables -w -t mangle -F FORWARD; ip6tables -w -t mangle -F FORWARD")
	}, nil
}
