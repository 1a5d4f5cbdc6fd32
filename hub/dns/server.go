package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"

	"causeway/hub/conns"
)

// Bounds of TCP.
const (
	maxConns     = 256
	connsOf      = 16 // of one source
	perConn      = 1000
	questionWait = 5 * time.Second
	answerWait   = 5 * time.Second
)

// Config is what a Server is made of.
type Config struct{ Zone Zone }

// Server answers by the view that was set last; before the first one everybody is told to ask again. Its methods may be called
// concurrently, Serve once.
type Server struct {
	name Zone
	zone atomic.Pointer[zone]
	udp  *limiter
	tcp  *limiter

	questions *prometheus.CounterVec
	limited   *prometheus.CounterVec
	bytes     *prometheus.CounterVec
}

// New opens nothing.
func New(cfg Config) *Server {
	s := &Server{name: cfg.Zone, udp: newLimiter(1), tcp: newLimiter(tcpFactor),
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_hub_dns_questions_total", Help: "Questions for public names, by kind and by the answer's code; dropped: it was no question."}, []string{"kind", "code"}),
		limited:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_hub_dns_limited_total", Help: "Questions for public names of networks that ask too much: told to come by TCP, or dropped."}, []string{"how"}),
		bytes:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_hub_dns_udp_bytes_total", Help: "Bytes of questions for public names by UDP, and of their answers."}, []string{"direction"}),
	}
	for _, how := range []string{limitedTCP, limitedDropped} {
		s.limited.WithLabelValues(how)
	}
	for _, d := range []string{"in", "out"} {
		s.bytes.WithLabelValues(d)
	}
	s.questions.WithLabelValues("A", "noerror")
	return s
}

// What becomes of a question that is too many.
const (
	limitedTCP     = "tcp"
	limitedDropped = "dropped"
)

// Metrics counts questions and answers.
func (s *Server) Metrics() []prometheus.Collector {
	return []prometheus.Collector{s.questions, s.limited, s.bytes}
}

// Set has what follows answered by v.
func (s *Server) Set(v View) { s.zone.Store(newZone(s.name, v)) }

// Serve answers on both sockets, which it closes, until ctx ends, which is no error.
func (s *Server) Serve(ctx context.Context, udp *net.UDPConn, tcp net.Listener) error {
	g, gctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(gctx, func() {
		udp.Close()
		tcp.Close()
	})
	defer stop()
	g.Go(func() error { return s.serveUDP(udp) })
	g.Go(func() error { return s.serveTCP(gctx, conns.New(tcp, maxConns, connsOf)) })
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("answer public names: %w", err)
}

// serveUDP answers one question after the other: each takes microseconds. An answer leaves from the address that was asked,
// which on a host with several is not the one that the kernel would take.
func (s *Server) serveUDP(c *net.UDPConn) error {
	err6 := ipv6.NewPacketConn(c).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	err4 := ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	if err6 != nil && err4 != nil { // of the other family one always fails
		return err4
	}
	in, out := s.bytes.WithLabelValues("in"), s.bytes.WithLabelValues("out")
	buf, oob := make([]byte, maxQuery+1), make([]byte, 128)
	for {
		n, nc, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // of a datagram before: nobody listens there
		}
		in.Add(float64(n))
		if a := s.overUDP(buf[:n], from.Addr(), time.Now()); a != nil {
			if sent, _, err := c.WriteMsgUDPAddrPort(a, asked(oob[:nc]), from); err == nil { // who gets none asks again
				out.Add(float64(sent))
			}
		}
	}
}

// asked is the control message by which an answer leaves from where its question went to; nil: the kernel knows.
func asked(oob []byte) []byte {
	var m6 ipv6.ControlMessage
	var dst net.IP
	index := 0
	if m6.Parse(oob) == nil && m6.Dst != nil {
		dst, index = m6.Dst, m6.IfIndex
	} else {
		var m4 ipv4.ControlMessage
		if m4.Parse(oob) == nil {
			dst, index = m4.Dst, m4.IfIndex
		}
	}
	switch a, ok := netip.AddrFromSlice(dst); {
	case !ok:
		return nil
	case a.Unmap().Is4():
		return (&ipv4.ControlMessage{Src: dst.To4()}).Marshal()
	case a.IsLinkLocalUnicast():
		return (&ipv6.ControlMessage{Src: dst, IfIndex: index}).Marshal()
	default:
		return (&ipv6.ControlMessage{Src: dst}).Marshal()
	}
}

// overUDP answers a datagram within the bounds; nil: not at all.
func (s *Server) overUDP(query []byte, from netip.Addr, now time.Time) []byte {
	if ok, slips := s.udp.take(from, now); !ok {
		if slips {
			if out := again(query); out != nil {
				s.limited.WithLabelValues(limitedTCP).Inc()
				return out
			}
		}
		s.limited.WithLabelValues(limitedDropped).Inc()
		return nil
	}
	return s.answer(query, false)
}

func (s *Server) answer(query []byte, tcp bool) []byte {
	out, what := s.zone.Load().answer(query, tcp, rand.Uint64())
	s.questions.WithLabelValues(what.kind, what.code).Inc()
	return out
}

// acceptPause keeps a shortage of files from being a loop.
const acceptPause = 100 * time.Millisecond

func (s *Server) serveTCP(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // too few open files: those that are open end soon
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(acceptPause):
			}
			continue
		}
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			s.serveConn(c)
		})
	}
}

// serveConn answers what comes by a connection, in order, until it is idle, asked enough, or has said what is no question.
func (s *Server) serveConn(c net.Conn) {
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return
	}
	var head [2]byte
	buf := make([]byte, maxQuery)
	for range perConn {
		_ = c.SetDeadline(time.Now().Add(questionWait))
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if n > maxQuery {
			return
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return
		}
		if ok, _ := s.tcp.take(from.Addr(), time.Now()); !ok {
			s.limited.WithLabelValues(limitedDropped).Inc()
			return
		}
		out := s.answer(buf[:n], true)
		if out == nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(answerWait))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}
