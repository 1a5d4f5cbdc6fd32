package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"

	"causeway/netns/lab"
)

// Transfer is what labtool says of a transfer whose checksum was right.
type Transfer struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Mbits   float64 `json:"mbit_per_s"`
	Resent  int64   `json:"resent_datagrams"`
}

// Serve starts the traffic server on a host or pod.
func (s *System) Serve(ctx context.Context, h *lab.Host) (*lab.Process, error) {
	p, err := h.Start(lab.Program{Name: "serve", Args: []string{s.Bin.Labtool, "serve"}})
	if err != nil {
		return nil, err
	}
	return p, lab.Wait(ctx, "the server on "+h.Name, func(ctx context.Context) error {
		if !p.Running() {
			return lab.Permanent(errors.New(p.Output()))
		}
		_, err := h.Run(ctx, s.Bin.Labtool, "http", "http://127.0.0.1:7080/ready")
		return err
	})
}

// Ping waits until a host reaches an address by ICMP.
func Ping(ctx context.Context, from *lab.Host, addr string) error {
	return lab.Wait(ctx, fmt.Sprintf("ping from %s to %s", from.Name, addr), func(ctx context.Context) error {
		_, err := from.Run(ctx, "ping", "-nqc1", "-W1", addr)
		return err
	})
}

// PingOnce pings once, within a second.
func PingOnce(ctx context.Context, from *lab.Host, addr string) error {
	_, err := from.Run(ctx, "ping", "-nqc1", "-W1", addr)
	return err
}

// Send sends bytes from a host to a server by "tcp" or "udp" and compares
// checksums.
func (s *System) Send(ctx context.Context, proto string, from *lab.Host, addr string, bytes int64, args ...string) (Transfer, error) {
	var t Transfer
	out, err := from.Run(ctx, append([]string{s.Bin.Labtool, proto, addr, "-bytes", fmt.Sprint(bytes)}, args...)...)
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal([]byte(out), &t); err != nil {
		return t, fmt.Errorf("read result: %w\n%s", err, out)
	}
	if t.Bytes != bytes {
		return t, fmt.Errorf("%d of %d bytes", t.Bytes, bytes)
	}
	return t, nil
}

// PingAll pings every address from a host at once and returns the ones that
// did not answer.
func (s *System) PingAll(ctx context.Context, from *lab.Host, addrs ...string) (rtt map[string]float64, missing []string, err error) {
	out, err := from.Run(ctx, append([]string{s.Bin.Labtool, "ping"}, addrs...)...)
	if err != nil {
		return nil, nil, err
	}
	var ps []struct {
		Addr string  `json:"addr"`
		OK   bool    `json:"ok"`
		RTT  float64 `json:"rtt_ms"`
	}
	if err := json.Unmarshal([]byte(out), &ps); err != nil {
		return nil, nil, fmt.Errorf("read result: %w\n%s", err, out)
	}
	rtt = map[string]float64{}
	for _, p := range ps {
		if p.OK {
			rtt[p.Addr] = p.RTT
		} else {
			missing = append(missing, p.Addr)
		}
	}
	return rtt, missing, nil
}

// Held is a TCP connection between two hosts that has to survive.
type Held struct{ p *lab.Process }

// Hold opens a TCP connection that sends a line every 50 ms and wants it back; args
// are further ones of 'labtool hold'.
func (s *System) Hold(ctx context.Context, from *lab.Host, addr string, args ...string) (*Held, error) {
	p, err := from.Start(lab.Program{Name: "hold", Args: append([]string{s.Bin.Labtool, "hold", addr}, args...)})
	if err != nil {
		return nil, err
	}
	return &Held{p}, p.WaitOutput(ctx, "connected")
}

// Alive reports whether the connection has not broken.
func (h *Held) Alive() bool { return h.p.Running() }

// Broken waits until the connection breaks, and returns what is said of it.
func (h *Held) Broken(ctx context.Context) (string, error) {
	if err := h.p.Wait(ctx); ctx.Err() != nil || err == nil {
		return "", errors.Join(ctx.Err(), errors.New("it has not broken"))
	}
	return h.p.Output(), nil
}

// End ends the connection and says how many lines came back, all in order, and
// the longest time without one.
func (h *Held) End(ctx context.Context) (lines int, maxGap float64, err error) {
	h.p.Signal(syscall.SIGTERM)
	if err := h.p.Wait(ctx); err != nil {
		return 0, 0, fmt.Errorf("%w\n%s", err, h.p.Output())
	}
	out := strings.TrimSpace(h.p.Output())
	var r struct {
		Lines  int     `json:"lines"`
		MaxGap float64 `json:"max_gap_seconds"`
	}
	if err := json.Unmarshal([]byte(out[strings.LastIndexByte(out, '\n')+1:]), &r); err != nil {
		return 0, 0, fmt.Errorf("read result: %w\n%s", err, out)
	}
	return r.Lines, r.MaxGap, nil
}

// Client is a labtool that runs until it is told to end, and prints then what it saw.
type Client struct{ *lab.Process }

// Gaps is what 'labtool gaps' and 'labtool datagrams' print.
type Gaps struct {
	Connected, Failed   int
	Cut                 int // were connected and had no answer yet
	Errors, By, Sources map[string]int
	MaxGap              float64 `json:"max_gap_seconds"`
	Slowest             float64 `json:"slowest_seconds"`
}

var clients atomic.Int64

// Client starts a labtool on a host, and waits until it prints ready.
func (s *System) Client(ctx context.Context, from *lab.Host, ready string, args ...string) (Client, error) {
	// Programs of one name share a log, in which the words of an earlier one would count.
	p, err := from.Start(lab.Program{Name: fmt.Sprintf("%s-%d", args[0], clients.Add(1)), Args: append([]string{s.Bin.Labtool}, args...)})
	if err != nil {
		return Client{}, err
	}
	return Client{p}, p.WaitOutput(ctx, ready)
}

// End ends it and reads its result.
func (c Client) End(ctx context.Context, v any) error {
	c.Signal(syscall.SIGTERM)
	if err := c.Wait(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, c.Output())
	}
	out := strings.TrimSpace(c.Output())
	if err := json.Unmarshal([]byte(out[strings.LastIndexByte(out, '\n')+1:]), v); err != nil {
		return fmt.Errorf("read result: %w\n%s", err, out)
	}
	return nil
}

// Silence has a host send and hear nothing any more by its underlay link eth0, which stays up.
func Silence(ctx context.Context, h *lab.Host) error { return cut(ctx, h, "in", "out") }

// cut has a host hear ("in") or send ("out") nothing any more by its link, which stays up, until Heal.
func cut(ctx context.Context, h *lab.Host, ways ...string) error {
	text := "table inet silent {\n"
	for _, w := range ways {
		text += map[string]string{"in": "chain in { type filter hook prerouting priority -500; iifname eth0 drop; }\n", "out": "chain out { type filter hook postrouting priority 500; oifname eth0 drop; }\n"}[w]
	}
	_, err := h.Run(ctx, "nft", text+"}")
	return err
}

// Heal ends it.
func Heal(ctx context.Context, h *lab.Host) error {
	_, err := h.Run(ctx, "nft", "delete table inet silent")
	return err
}
