package debug

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	probing "github.com/prometheus-community/pro-bing"
)

// pingInterval is the time between two echo requests.
const pingInterval = 200 * time.Millisecond

// Ping sends echo requests from src to dst over a raw socket, which needs root
// or CAP_NET_RAW. It fills in all but From, To and Path of the result.
func Ping(ctx context.Context, src, dst netip.Addr, count int, timeout time.Duration) PingResult {
	r := PingResult{Addr: dst}
	p := probing.New(dst.String())
	p.SetLogger(probing.NoopLogger{})
	p.SetPrivileged(true)
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
	if err := p.RunWithContext(ctx); err != nil && ctx.Err() == nil {
		r.Error = fmt.Sprintf("ping %s from %s: %v", dst, src, err)
	}
	st := p.Statistics()
	r.Sent, r.Received = st.PacketsSent, st.PacketsRecv
	r.MinRTT, r.AvgRTT, r.MaxRTT = Duration(st.MinRtt), Duration(st.AvgRtt), Duration(st.MaxRtt)
	if r.Error == "" && r.Received == 0 {
		r.Error = fmt.Sprintf("no answer from %s", dst)
	}
	return r
}
