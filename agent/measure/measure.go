// Package measure sends test traffic between two agents through their tunnel: one offers
// to receive (Offer), the other sends (Run). It leaves to others who may ask for it.
//
// The receiver listens on its overlay address, for one sender's address, one connection
// and a bounded time. The sender shows a secret on that connection; then
//
//	tcp  it sends bytes until its time is over
//	udp  it sends numbered datagrams to the receiver's UDP port, paced
//	mtu  it sends datagrams of falling and rising sizes that may not be fragmented, each
//	     answered by a small one that names it
//
// and closes its half; the receiver answers with what it saw, as JSON.
//
// A datagram is: secret (16 bytes), number (8), instant (8, nanoseconds of the sender's
// clock), and zeros. An answer of mtu is the first 24 bytes and the length seen (4).
package measure

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"causeway/internal/cause"
	"causeway/protocol"
)

const (
	header = protocol.MeasureSecret + 8 + 8
	// dialTime is how long the sender has to come, and the receiver to answer.
	dialTime = 10 * time.Second
	// slack is for what is under way when the sender's time is over.
	slack = 500 * time.Millisecond
	// udpSize is the payload of a datagram: fits every path.
	udpSize = 1200
	// maxReport bounds a receiver's answer.
	maxReport = 4 << 10
	// tcpBuffer bounds what the kernel holds unsent: the rate is that of the path.
	tcpBuffer = 128 << 10
)

// Check says what is wrong with an offer.
func Check(o protocol.MeasureOffer) error {
	switch {
	case o.Kind != protocol.MeasureTCP && o.Kind != protocol.MeasureUDP && o.Kind != protocol.MeasureMTU:
		return fmt.Errorf("there is no measurement %.40q", o.Kind)
	case !o.Peer.Valid():
		return errors.New("no peer to measure with")
	case o.Time <= 0 || o.Time > protocol.MaxMeasureTime:
		return fmt.Errorf("a measurement takes up to %s", protocol.MaxMeasureTime)
	case o.Rate < 1000 || o.Rate > protocol.MaxMeasureRate:
		return errors.New("the rate is from 1 kbit/s to 10 Gbit/s")
	}
	return nil
}

// Receiver waits for one sender.
type Receiver struct {
	offer  protocol.MeasureOffer
	from   netip.Addr
	secret []byte
	tcp    *net.TCPListener
	udp    *net.UDPConn
}

// Offer opens a receiver on the address own for the sender at from. The caller runs it.
func Offer(o protocol.MeasureOffer, own, from netip.Addr) (*Receiver, error) {
	if err := Check(o); err != nil {
		return nil, err
	}
	r := &Receiver{offer: o, from: from, secret: make([]byte, protocol.MeasureSecret)}
	rand.Read(r.secret)
	var err error
	for port := uint16(protocol.MeasurePortFirst); port <= protocol.MeasurePortLast; port++ {
		if err = r.listen(netip.AddrPortFrom(own, port)); err == nil {
			r.udp.SetReadBuffer(4 << 20)
			return r, nil
		}
	}
	return nil, fmt.Errorf("listen on %s, ports %d to %d: %w", own, protocol.MeasurePortFirst, protocol.MeasurePortLast, cause.Innermost(err))
}

// listen takes one port, for both protocols.
func (r *Receiver) listen(at netip.AddrPort) (err error) {
	if r.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err != nil {
		return err
	}
	if r.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
		r.tcp.Close()
	}
	return err
}

// Place is what the sender has to know.
func (r *Receiver) Place() protocol.MeasurePlace {
	return protocol.MeasurePlace{TCP: r.tcp.Addr().(*net.TCPAddr).AddrPort(), UDP: r.udp.LocalAddr().(*net.UDPAddr).AddrPort(), Secret: r.secret}
}

// Close ends a receiver that is not run.
func (r *Receiver) Close() { r.tcp.Close(); r.udp.Close() }

// Run serves the one sender, at most for the offered time and a little more. Strangers'
// connections are closed and do not count.
func (r *Receiver) Run(ctx context.Context) error {
	defer r.Close()
	ctx, cancel := context.WithTimeout(ctx, r.offer.Time+dialTime+2*slack)
	defer cancel()
	defer context.AfterFunc(ctx, r.Close)()
	for {
		c, err := r.tcp.AcceptTCP()
		if err != nil {
			return errors.New("no sender came")
		}
		at := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		got := make([]byte, protocol.MeasureSecret)
		c.SetDeadline(time.Now().Add(time.Second))
		if at != r.from {
			c.Close()
			continue
		}
		if _, err := io.ReadFull(c, got); err != nil || subtle.ConstantTimeCompare(got, r.secret) != 1 {
			c.Close()
			continue
		}
		r.tcp.Close()
		c.SetDeadline(time.Now().Add(r.offer.Time + dialTime))
		defer context.AfterFunc(ctx, func() { c.Close() })()
		return r.serve(ctx, c)
	}
}

func (r *Receiver) serve(ctx context.Context, c *net.TCPConn) error {
	defer c.Close()
	var m protocol.Measured
	if r.offer.Kind == protocol.MeasureTCP {
		start := time.Now()
		n, _ := io.Copy(io.Discard, io.LimitReader(c, int64(protocol.MaxMeasureRate/8*uint64(protocol.MaxMeasureTime/time.Second))))
		m.Received, m.Took = uint64(n), time.Since(start)
	} else {
		g, _ := errgroup.WithContext(ctx)
		g.Go(func() error { r.datagrams(&m); return nil })
		io.Copy(io.Discard, io.LimitReader(c, 1)) // until the sender is done
		r.udp.SetReadDeadline(time.Now().Add(slack))
		g.Wait()
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}

// datagrams counts what comes until the socket's deadline.
func (r *Receiver) datagrams(m *protocol.Measured) {
	buf := make([]byte, 1<<16)
	var first, last time.Time
	var next uint64
	var jitter float64
	var transit int64
	for {
		n, from, err := r.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			break
		}
		if n < header || from.Addr().Unmap() != r.from || subtle.ConstantTimeCompare(buf[:protocol.MeasureSecret], r.secret) != 1 {
			continue
		}
		now := time.Now()
		if r.offer.Kind == protocol.MeasureMTU {
			answer := binary.BigEndian.AppendUint32(append([]byte(nil), buf[:protocol.MeasureSecret+8]...), uint32(n))
			r.udp.WriteToUDPAddrPort(answer, from)
			continue
		}
		if first.IsZero() {
			first = now
		}
		last = now
		m.Received += uint64(n)
		m.Datagrams++
		seq := binary.BigEndian.Uint64(buf[protocol.MeasureSecret:])
		if seq < next {
			m.Reordered++
		} else {
			next = seq + 1
		}
		t := now.UnixNano() - int64(binary.BigEndian.Uint64(buf[protocol.MeasureSecret+8:]))
		if m.Datagrams > 1 {
			d := float64(t - transit)
			jitter += (max(d, -d) - jitter) / 16
		}
		transit = t
	}
	m.Took, m.Jitter = last.Sub(first), time.Duration(jitter)
}

// Run sends to place from the address own. Progress ends with ctx.
func Run(ctx context.Context, q protocol.MeasureRun, own netip.Addr) (m protocol.Measured, err error) {
	if err := Check(q.MeasureOffer); err != nil {
		return m, err
	}
	if len(q.Place.Secret) != protocol.MeasureSecret {
		return m, errors.New("no secret to show")
	}
	ctx, cancel := context.WithTimeout(ctx, q.Time+2*dialTime)
	defer cancel()
	d := net.Dialer{Timeout: dialTime, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0))}
	conn, err := d.DialContext(ctx, "tcp", q.Place.TCP.String())
	if err != nil {
		return m, fmt.Errorf("the tunnel or a firewall of the other host lets no connection from %s to %s through: %w", own, q.Place.TCP, cause.Innermost(err))
	}
	c := conn.(*net.TCPConn)
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := c.Write(q.Place.Secret); err != nil {
		return m, cause.Innermost(err)
	}
	var mine protocol.Measured
	switch q.Kind {
	case protocol.MeasureTCP:
		mine.Sent, err = sendTCP(ctx, c, q)
	case protocol.MeasureUDP:
		mine.Sent, mine.Datagrams, err = sendUDP(ctx, q, own)
	case protocol.MeasureMTU:
		mine.MTU, err = findMTU(ctx, q, own)
	}
	if err != nil {
		return m, err
	}
	c.CloseWrite()
	c.SetReadDeadline(time.Now().Add(dialTime))
	b, err := io.ReadAll(io.LimitReader(c, maxReport))
	if err != nil {
		return m, fmt.Errorf("the receiver did not say what arrived: %w", cause.Innermost(err))
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, errors.New("the receiver did not say what arrived")
	}
	if q.Kind == protocol.MeasureUDP && m.Datagrams <= mine.Datagrams {
		m.Lost = mine.Datagrams - m.Datagrams
	}
	m.Sent, m.MTU, m.Datagrams = mine.Sent, mine.MTU, mine.Datagrams
	return m, nil
}

// pace lets bits through at q's rate, size bytes at once.
func pace(q protocol.MeasureRun, size int) *rate.Limiter {
	per := float64(q.Rate) / 8
	return rate.NewLimiter(rate.Limit(per), max(size, int(per/200))) // 5 ms of it at once
}

// slower is why a limiter does not wait: no error where the rate alone lets nothing more through within
// the measurement.
func slower(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return nil
	}
	return err
}

func sendTCP(ctx context.Context, c *net.TCPConn, q protocol.MeasureRun) (sent uint64, err error) {
	c.SetWriteBuffer(tcpBuffer)
	buf := make([]byte, 16<<10)
	l := pace(q, len(buf))
	end := time.Now().Add(q.Time)
	c.SetWriteDeadline(end)
	within, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	for time.Now().Before(end) {
		if err := l.WaitN(within, len(buf)); err != nil {
			return sent, slower(ctx, err)
		}
		n, err := c.Write(buf)
		sent += uint64(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return sent, fmt.Errorf("send to %s: %w", q.Place.TCP, cause.Innermost(err))
		}
	}
	return sent, nil
}

func sendUDP(ctx context.Context, q protocol.MeasureRun, own netip.Addr) (sent, datagrams uint64, err error) {
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 0)), net.UDPAddrFromAddrPort(q.Place.UDP))
	if err != nil {
		return 0, 0, fmt.Errorf("send to %s: %w", q.Place.UDP, cause.Innermost(err))
	}
	defer c.Close()
	buf := make([]byte, udpSize)
	copy(buf, q.Place.Secret)
	l := pace(q, len(buf))
	end := time.Now().Add(q.Time)
	within, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	for time.Now().Before(end) {
		if err := l.WaitN(within, len(buf)); err != nil {
			return sent, datagrams, slower(ctx, err)
		}
		binary.BigEndian.PutUint64(buf[protocol.MeasureSecret:], datagrams)
		binary.BigEndian.PutUint64(buf[protocol.MeasureSecret+8:], uint64(time.Now().UnixNano()))
		datagrams++
		if n, err := c.Write(buf); err == nil { // what the host itself refuses is lost as well
			sent += uint64(n)
		}
	}
	return sent, datagrams, nil
}

const (
	// leastMTU is where the search begins: what every path carries.
	leastMTU = 576
	// A round asks for mtuAtOnce sizes, each mtuTries times, mtuPause apart, and waits for
	// answers for mtuWait after the last.
	mtuAtOnce = 16
	mtuTries  = 3
	mtuPause  = 5 * time.Millisecond
	mtuWait   = 500 * time.Millisecond
)

// findMTU finds the largest IP packet that arrives from own at the receiver, without
// fragmentation and whatever the route's MTU says.
func findMTU(ctx context.Context, q protocol.MeasureRun, own netip.Addr) (int, error) {
	overhead, level, opt, probe := 28, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if own.Is6() {
		overhead, level, opt, probe = 48, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 0)), Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, probe) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := d.DialContext(ctx, "udp", q.Place.UDP.String())
	if err != nil {
		return 0, fmt.Errorf("send to %s: %w", q.Place.UDP, cause.Innermost(err))
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	f := finder{conn: conn, secret: q.Place.Secret, overhead: overhead}
	low, high := 0, 1<<16 // what arrives, and what does not
	for sizes := []int{leastMTU, 1280, 1400, 1440, 1500, 8960}; len(sizes) > 0 && ctx.Err() == nil; sizes = between(low, high) {
		arrived, tooLarge := f.round(ctx, sizes)
		if low = max(low, arrived); low == 0 {
			return 0, fmt.Errorf("not even packets of %d bytes arrive at %s: a firewall of the other host drops UDP, or the path is gone", leastMTU, q.Place.UDP)
		}
		for _, s := range sizes {
			if s > low {
				high = min(high, s)
			}
		}
		if tooLarge > low {
			high = min(high, tooLarge)
		}
	}
	return low, ctx.Err()
}

// between are the sizes to ask for next: none when low and high are neighbours.
func between(low, high int) (sizes []int) {
	for i := 1; i <= mtuAtOnce; i++ {
		s := low + (high-low)*i/(mtuAtOnce+1)
		if s > low && s < high && (len(sizes) == 0 || s > sizes[len(sizes)-1]) {
			sizes = append(sizes, s)
		}
	}
	if len(sizes) == 0 && high-low > 1 {
		sizes = []int{low + 1}
	}
	return sizes
}

// finder sends datagrams of many sizes and sees which are answered.
type finder struct {
	conn     net.Conn
	secret   []byte
	overhead int
	seq      uint64
}

// round returns the largest of sizes that arrived (0: none) and the smallest that the
// host itself refused (0: none).
func (f *finder) round(ctx context.Context, sizes []int) (arrived, tooLarge int) {
	asked := map[uint64]int{}
	answered := func(wait time.Duration) {
		buf := make([]byte, 64)
		for f.conn.SetReadDeadline(time.Now().Add(wait)); arrived < sizes[len(sizes)-1]; {
			n, err := f.conn.Read(buf)
			if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EMSGSIZE) { // of an ICMP message
				continue
			}
			if err != nil {
				return
			}
			const name = protocol.MeasureSecret + 8
			if n != name+4 || string(buf[:protocol.MeasureSecret]) != string(f.secret) {
				continue
			}
			size := asked[binary.BigEndian.Uint64(buf[protocol.MeasureSecret:])]
			if size > 0 && binary.BigEndian.Uint32(buf[name:]) == uint32(size-f.overhead) {
				arrived = max(arrived, size)
			}
		}
	}
	for range mtuTries {
		for _, size := range sizes {
			if size <= arrived || tooLarge > 0 && size >= tooLarge || ctx.Err() != nil {
				continue
			}
			buf := make([]byte, size-f.overhead)
			copy(buf, f.secret)
			f.seq++
			binary.BigEndian.PutUint64(buf[protocol.MeasureSecret:], f.seq)
			asked[f.seq] = size
			if _, err := f.conn.Write(buf); errors.Is(err, unix.EMSGSIZE) {
				tooLarge = size
			}
			answered(mtuPause)
		}
	}
	for _, size := range sizes {
		if size > arrived && (tooLarge == 0 || size < tooLarge) {
			answered(mtuWait)
			break
		}
	}
	return arrived, tooLarge
}
