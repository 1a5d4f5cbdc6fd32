package debug

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"time"

	probing "github.com/prometheus-community/pro-bing"

	"causeway/protocol"
)

// EchoRequest are echo requests that SendEcho sends.
type EchoRequest struct {
	From, To netip.Addr
	Size     int // of the IP packet, in bytes; 0: a small one
	Count    int
	Wait     time.Duration // for the last answer
	Mark     uint32        // of the socket; 0: none
}

// smallEcho is an IPv6 header, an ICMP header and 24 bytes.
const smallEcho = 72

// SendEcho counts the answers to echo requests. Root sends them over a raw socket,
// others over a datagram socket, as net.ipv4.ping_group_range allows.
func SendEcho(ctx context.Context, q EchoRequest) protocol.TunnelPing {
	if q.Size == 0 {
		q.Size = smallEcho
	}
	out := protocol.TunnelPing{Size: q.Size}
	p := probing.New(q.To.String())
	p.SetLogger(probing.NoopLogger{})
	p.SetPrivileged(os.Geteuid() == 0)
	headers := 28 // IPv4, ICMP
	p.SetNetwork("ip4")
	if q.To.Is6() {
		headers = 48
		p.SetNetwork("ip6")
	}
	p.Size = max(q.Size-headers, 24)
	if q.From.IsValid() {
		p.Source = q.From.String()
	}
	if q.Mark != 0 {
		p.SetMark(uint(q.Mark))
	}
	p.Count, p.Interval, p.RecordRtts = q.Count, 100*time.Millisecond, false
	p.Timeout = time.Duration(q.Count-1)*p.Interval + q.Wait
	if err := p.RunWithContext(ctx); err != nil && ctx.Err() == nil {
		out.Error = protocol.OneLine(err.Error(), 200)
	}
	st := p.Statistics()
	out.Sent, out.Received = st.PacketsSent, st.PacketsRecv
	return out
}

// evidence tells what is seen of a flow, within evidenceWait.
func (s *Server) evidence(w http.ResponseWriter, r *http.Request) {
	release, ok := take(w, s.slow)
	if !ok {
		return
	}
	defer release()
	var q protocol.EvidenceRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&q); err != nil {
		fail(w, http.StatusBadRequest, "body is no request for evidence: "+err.Error())
		return
	}
	known := q.Proto == protocol.FlowTCP || q.Proto == protocol.FlowUDP || q.Proto == protocol.FlowICMP
	if !q.Local.IsValid() || !q.Remote.IsValid() || q.Local.Is4() != q.Remote.Is4() || !known || q.Local.Zone() != "" || q.Remote.Zone() != "" {
		fail(w, http.StatusBadRequest, "local and remote have to be addresses of one family, proto tcp, udp or icmp")
		return
	}
	e, err := s.cfg.Evidence(r.Context(), q)
	if err != nil {
		fail(w, http.StatusForbidden, err.Error())
		return
	}
	reply(w, http.StatusOK, e)
}
