package debug

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	probing "github.com/prometheus-community/pro-bing"

	"causeway/protocol"
)

// pingInterval is the time between two echo requests.
const pingInterval = 200 * time.Millisecond

// Ping sends echo requests from src (the zero one: whatever the host takes) to dst
// and waits for each answer for timeout: over a raw socket, or where that takes
// a right that is not there over an ICMP socket (net.ipv4.ping_group_range).
func Ping(ctx context.Context, src, dst netip.Addr, count int, timeout time.Duration) PingResult {
	p := Echo(ctx, src, dst, count, timeout)
	return PingResult{Addr: dst, Sent: p.Sent, Received: p.Received, MinRTT: Duration(p.MinRTT), AvgRTT: Duration(p.AvgRTT), MaxRTT: Duration(p.MaxRTT), Error: p.Error}
}

// Echo is Ping in the form of a trace.
func Echo(ctx context.Context, src, dst netip.Addr, count int, timeout time.Duration) protocol.Pinged {
	st, err := echo(ctx, src, dst, count, timeout, true)
	if errors.Is(err, fs.ErrPermission) {
		if st, err = echo(ctx, src, dst, count, timeout, false); errors.Is(err, fs.ErrPermission) {
			err = errors.New("neither raw sockets (CAP_NET_RAW, docs/SYSTEMD.md) nor ICMP sockets (net.ipv4.ping_group_range) are allowed to this agent")
		}
	}
	r := protocol.Pinged{Addr: dst}
	if st != nil {
		r.Sent, r.Received, r.MinRTT, r.AvgRTT, r.MaxRTT = st.PacketsSent, st.PacketsRecv, st.MinRtt, st.AvgRtt, st.MaxRtt
	}
	switch {
	case err != nil && ctx.Err() == nil:
		r.Error = fmt.Sprintf("ping %s: %v", dst, err)
	case r.Received == 0:
		r.Error = fmt.Sprintf("no answer from %s", dst)
	}
	return r
}

func echo(ctx context.Context, src, dst netip.Addr, count int, timeout time.Duration, raw bool) (*probing.Statistics, error) {
	p := probing.New(dst.String())
	p.SetLogger(probing.NoopLogger{})
	p.SetPrivileged(raw)
	if dst.Is4() {
		p.SetNetwork("ip4")
	} else {
		p.SetNetwork("ip6")
	}
	if src.IsValid() {
		p.Source = src.String()
	}
	p.Count = count
	p.Interval = pingInterval
	p.Timeout = time.Duration(count-1)*pingInterval + timeout
	p.RecordRtts = false
	err := p.RunWithContext(ctx)
	return p.Statistics(), err
}
