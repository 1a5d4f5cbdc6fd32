package doctor

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"causeway/internal/cause"
	"causeway/internal/retry"
	"causeway/netns"
	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
)

const (
	hubTime  = 8 * time.Second
	udpTries = 4
	udpWait  = 500 * time.Millisecond
	// clockOff is how far the clock may be from the hub's.
	clockOff = 30 * time.Second
)

// hubs looks at how hubs are reached.
func hubs(ctx context.Context, c Config) []Check {
	https := slices.Clone(c.Hubs)
	var listed protocol.HubList
	if c.Identity != nil {
		if l, err := c.Identity.HubList.Open(c.Identity.Pin); err == nil {
			listed = l
		}
	}
	for _, h := range listed.Hubs {
		https = append(https, h.HTTPS...)
	}
	slices.Sort(https)
	https = slices.Compact(https)
	if len(https) == 0 {
		return []Check{{Name: "hub", Status: Warn, What: "not looked for", Why: "this host has not joined, and no hub was named", Do: "name it: causeway-agent doctor --hub HOST:443"}}
	}
	var out []Check
	reached := false
	for _, at := range https {
		l := overHTTPS(ctx, c, at)
		reached = reached || l[0].Status == OK
		out = append(out, l...)
	}
	if c.Identity == nil {
		return append(out, Check{Name: "udp", Status: Warn, What: "whether UDP reaches the hub cannot be told yet", Why: "a hub answers over UDP to its nodes alone; without UDP the tunnel runs over TCP, slower", Do: "join, and run this again"})
	}
	return append(out, overUDP(ctx, c, listed, reached)...)
}

// overHTTPS looks at name, TCP, proxy and clock by asking for the hub list.
func overHTTPS(ctx context.Context, c Config, at string) []Check {
	name := "hub " + at + " tcp"
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return []Check{{Name: name, Status: Fail, What: "not a HOST:PORT"}}
	}
	ctx, cancel := context.WithTimeout(ctx, hubTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+at+protocol.PathHubList, nil)
	if err != nil {
		return []Check{{Name: name, Status: Fail, What: "not a HOST:PORT"}}
	}
	via := ""
	if c.Proxy != nil {
		if u, err := c.Proxy(req); err == nil && u != nil {
			via = u.Host
		}
	}
	resolver := sock.Resolver(mark())
	if _, err := netip.ParseAddr(host); err != nil && via == "" {
		if _, err := resolver.LookupNetIP(ctx, "ip", host); err != nil {
			return []Check{{Name: name, Status: Fail, What: "the name " + host + " is not found: " + cause.Innermost(err).Error(), Why: "the agent cannot reach the hub without its address", Do: "mend DNS on this host (/etc/resolv.conf), or the hub's --public-host"}}
		}
	}
	d := net.Dialer{Control: sock.MarkControl(mark()), Resolver: resolver}
	client := http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true, Proxy: c.Proxy,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}, // as the agent: TLS is transport only
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	asked := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		do := "let TCP out to " + at
		if via != "" {
			do = "let the proxy " + via + " connect to " + at
		}
		return []Check{{Name: name, Status: Fail, What: "no answer: " + cause.Innermost(err).Error(), Why: "joining, and the tunnel where UDP does not pass, go over it", Do: do}}
	}
	defer resp.Body.Close()
	if retry.Status(resp.StatusCode) {
		return []Check{{Name: name, Status: Warn, What: fmt.Sprintf("it is busy or away, or a proxy before it finds none: HTTP status %d", resp.StatusCode), Why: "joining, and the tunnel where UDP does not pass, go over it", Do: "look again in a minute; if it stays, check that causeway-hub runs and what is before it"}}
	}
	var s protocol.SignedHubList
	b, err := io.ReadAll(io.LimitReader(resp.Body, protocol.MaxHubList+1))
	if err != nil || resp.StatusCode != http.StatusOK || len(b) > protocol.MaxHubList || json.Unmarshal(b, &s) != nil {
		return []Check{{Name: name, Status: Fail, What: fmt.Sprintf("something answers with status %d, and is no hub", resp.StatusCode), Why: "a proxy or portal in between answers for it", Do: "check the address, and what intercepts TLS on the way"}}
	}
	what := "it answers"
	if via != "" {
		what += " through the proxy " + via
	}
	out := []Check{{Name: name, Status: OK, What: what}}
	if there, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		off := asked.Add(time.Since(asked) / 2).Sub(there).Round(time.Second)
		k := Check{Name: "clock", Status: OK, What: "as the hub's"}
		if off.Abs() > clockOff {
			k = Check{Name: "clock", Status: Warn, What: fmt.Sprintf("%s off the hub's", off), Why: "netmaps and tokens expire by the clock, and logs of several hosts do not fit together", Do: "set the clock, and keep it by chrony or systemd-timesyncd"}
		}
		out = append(out, k)
	}
	return out
}

// mark is that of the tunnel's own sockets, so that the tunnel's routes are not taken; 0
// where the process may not set one.
func mark() uint32 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, netns.DefaultMark) != nil {
		return 0
	}
	return netns.DefaultMark
}

// overUDP asks each hub as a node does, from one socket: the answers say at which address
// this host is seen. A question changes nothing at the hub.
func overUDP(ctx context.Context, c Config, list protocol.HubList, tcp bool) (out []Check) {
	lc := net.ListenConfig{Control: sock.MarkControl(mark())}
	pc, err := lc.ListenPacket(ctx, "udp", ":0")
	if err != nil {
		return []Check{{Name: "udp", Status: Fail, What: "no UDP socket: " + cause.Innermost(err).Error()}}
	}
	conn := pc.(*net.UDPConn)
	defer conn.Close()
	var seen []netip.AddrPort
	for _, h := range list.Hubs {
		for _, at := range h.UDP {
			name := "hub " + at + " udp"
			a, err := askUDP(ctx, conn, c, h, at)
			switch {
			case err == nil:
				seen = append(seen, a)
				out = append(out, Check{Name: name, Status: OK, What: "it answers"})
			case tcp:
				out = append(out, Check{Name: name, Status: Warn, What: err.Error(), Why: "the tunnel runs over TCP then, slower, and no direct path is found", Do: "let UDP out to " + at + ", and its answers in"})
			default:
				out = append(out, Check{Name: name, Status: Fail, What: err.Error(), Why: "TCP does not reach the hub either", Do: "let UDP out to " + at + ", and its answers in"})
			}
		}
	}
	if len(seen) > 0 {
		out = append(out, nat(conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(), seen, ownAddrs()))
	}
	return out
}

func ownAddrs() (out []netip.Addr) {
	l, _ := net.InterfaceAddrs()
	for _, a := range l {
		if n, ok := a.(*net.IPNet); ok {
			x, _ := netip.AddrFromSlice(n.IP)
			out = append(out, x.Unmap())
		}
	}
	return out
}

// nat says what is between this host and where it was seen, from one socket.
func nat(port uint16, seen []netip.AddrPort, own []netip.Addr) Check {
	var v4 []netip.AddrPort
	for _, s := range seen {
		if slices.Contains(own, s.Addr()) {
			if s.Port() == port {
				return Check{Name: "nat", Status: OK, What: "none: hubs see this host's own address " + s.Addr().String()}
			}
		}
		if s.IsValid() && s.Addr().Is4() && !slices.Contains(v4, s) {
			v4 = append(v4, s)
		}
	}
	switch {
	case len(v4) > 1:
		return Check{Name: "nat", Status: Warn, What: fmt.Sprintf("symmetric: hubs see %s and %s", v4[0], v4[1]), Why: "no direct path to a node behind another such NAT: traffic goes over the relay", Do: "nothing has to be done; a NAT with endpoint-independent mapping gives direct paths"}
	case len(v4) == 1 && len(seen) > 1:
		return Check{Name: "nat", Status: OK, What: fmt.Sprintf("endpoint-independent: every hub sees %s", v4[0])}
	case len(v4) == 1:
		kept := "the port is another one"
		if v4[0].Port() == port {
			kept = "the port is kept"
		}
		return Check{Name: "nat", Status: OK, What: fmt.Sprintf("there is one: the hub sees %s, %s; of which kind takes a second hub to tell", v4[0], kept)}
	}
	return Check{Name: "nat", Status: OK, What: "the hub does not say where it sees this host (an older hub)"}
}

// askUDP sends hub questions to at until a challenge comes, and returns where the hub
// sees the socket.
func askUDP(ctx context.Context, conn *net.UDPConn, c Config, h protocol.Hub, at string) (seen netip.AddrPort, err error) {
	keys, err := protocol.NewProbeKeys(c.Identity.WireGuardKey, h.WireGuardKey)
	if err != nil {
		return seen, errors.New("the hub's key is none")
	}
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return seen, errors.New("not a HOST:PORT")
	}
	n, err := net.LookupPort("udp", port)
	if err != nil {
		return seen, errors.New("not a HOST:PORT")
	}
	lookup, cancel := context.WithTimeout(ctx, hubTime)
	defer cancel()
	addrs, err := sock.Resolver(mark()).LookupNetIP(lookup, "ip", host)
	if err != nil || len(addrs) == 0 {
		return seen, fmt.Errorf("the name %s is not found", host)
	}
	boot, err := protocol.NewBootID()
	if err != nil {
		return seen, err
	}
	var refused error
	buf := make([]byte, 2048)
	for range udpTries {
		var nonce [8]byte
		rand.Read(nonce[:])
		q := protocol.Probe{Kind: protocol.ProbeHubQuestion, From: c.Identity.Number, To: h.Number, KeyEpoch: c.Identity.KeyEpoch, Boot: boot, Nonce: binary.BigEndian.Uint64(nonce[:])}
		for _, a := range addrs {
			if _, err := conn.WriteToUDPAddrPort(q.Append(nil, &keys.Send), netip.AddrPortFrom(a, uint16(n))); err != nil {
				refused = cause.Innermost(err)
			}
		}
		conn.SetReadDeadline(time.Now().Add(udpWait))
		for {
			m, _, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				break
			}
			p, err := protocol.ParseProbe(buf[:m])
			if err == nil && p.Kind == protocol.ProbeChallenge && p.Nonce == q.Nonce && keys.Receive.Verify(buf[:m]) {
				return p.Observed, nil
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	if refused != nil {
		return seen, fmt.Errorf("this host does not let it out: %w", refused)
	}
	return seen, errors.New("no answer: UDP is dropped on the way, the hub is down, or it does not know this node any more")
}
