// Package capture records packets of one of the host's interfaces as pcapng, bounded in
// time, size and rate. It cuts off payloads unless told otherwise, and leaves out what it
// is told to. Which interface may be captured is for others to say.
package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Bounds of a capture.
const (
	DefaultTime  = 30 * time.Second
	MaxTime      = 5 * time.Minute
	DefaultBytes = 16 << 20
	MaxBytes     = 64 << 20
	// maxRate is how many bytes a second go out at most; packets beyond it are left out
	// and counted.
	maxRate = 2 << 20
	// keptHeaders bounds the headers of a packet.
	keptHeaders = 256
	maxPacket   = 65535
)

// ErrRights says that the process may not capture.
var ErrRights = errors.New("captures take CAP_NET_RAW and packet sockets, which this agent does not have: install the drop-in capture.conf (docs/SYSTEMD.md)")

// Config says what to capture.
type Config struct {
	Interface string
	Filter    string        // see Grammar; empty: everything
	Only      netip.Addr    // nothing but packets from or to it; invalid: all
	Never     []netip.Addr  // no packet from or to these
	Comment   string        // for the file
	Time      time.Duration // up to MaxTime
	Bytes     int64         // of the file, up to MaxBytes
	Payload   bool          // keep whole packets
	Flush     func() error  // called when there is nothing more to write for now; may be nil
}

// compile checks c and makes the kernel's filter.
func compile(c Config) ([]bpf.RawInstruction, error) {
	e, err := parse(c.Filter)
	if err != nil {
		return nil, err
	}
	host := func(a netip.Addr) expr {
		p := netip.PrefixFrom(a, a.BitLen())
		return either(within(p, 12, 8), within(p, 16, 24))
	}
	// Nothing but IP, whatever else the link carries.
	whole := all(either(isV4(), isV6()))
	for _, a := range c.Never {
		whole.kids = append(whole.kids, not(host(a)))
	}
	if c.Only.IsValid() {
		whole.kids = append(whole.kids, host(c.Only))
	}
	whole.kids = append(whole.kids, e)
	keep := uint32(maxPacket)
	if !c.Payload {
		keep = keptHeaders
	}
	return program(whole, keep)
}

// Capture is one that is ready to run.
type Capture struct {
	cfg Config
	fd  int
}

// Open checks cfg and begins to capture in the network namespace of the calling thread.
// The caller runs or closes it.
func Open(cfg Config) (*Capture, error) {
	if cfg.Time <= 0 || cfg.Time > MaxTime || cfg.Bytes <= 0 || cfg.Bytes > MaxBytes {
		return nil, fmt.Errorf("a capture takes up to %s and %d bytes", MaxTime, MaxBytes)
	}
	code, err := compile(cfg)
	if err != nil {
		return nil, err
	}
	// Protocol 0 receives nothing before the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, ErrRights
	}
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	c := &Capture{cfg, fd}
	if err := c.bind(code); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("capture on %s: %w", cfg.Interface, err)
	}
	return c, nil
}

func (c *Capture) bind(code []bpf.RawInstruction) error {
	filter := make([]unix.SockFilter, len(code))
	for i, x := range code {
		filter[i] = unix.SockFilter{Code: x.Op, Jt: x.Jt, Jf: x.Jf, K: x.K}
	}
	if err := unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return fmt.Errorf("attach the filter: %w", err)
	}
	unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return err
	}
	i, err := ifindex(c.fd, c.cfg.Interface)
	if err != nil {
		return err
	}
	const everything = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00 // network order
	return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: i})
}

func ifindex(fd int, name string) (int, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r); err != nil {
		return 0, err
	}
	return int(r.Uint32()), nil
}

// Close ends a capture that is not run.
func (c *Capture) Close() { unix.Close(c.fd) }

// Run writes what comes to w until the time or the bytes are used up, ctx ends or w fails.
func (c *Capture) Run(ctx context.Context, w io.Writer) error {
	defer c.Close()
	out := &writer{w: w}
	if err := out.begin(c.cfg.Interface, c.cfg.Filter, c.cfg.Comment, maxPacket); err != nil {
		return err
	}
	end := time.Now().Add(c.cfg.Time)
	limit := rate.NewLimiter(maxRate, maxRate/4)
	buf, oob := make([]byte, maxPacket), make([]byte, 256)
	var seen, dropped uint64
	flush := func() error {
		if c.cfg.Flush == nil {
			return nil
		}
		return c.cfg.Flush()
	}
	if err := flush(); err != nil {
		return err
	}
	waiting := false
	for ctx.Err() == nil && time.Now().Before(end) {
		n, oobn, _, from, err := unix.Recvmsg(c.fd, buf, oob, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if waiting {
				if err := flush(); err != nil {
					return err
				}
				waiting = false
			}
			unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, 100)
			continue
		case err != nil:
			return fmt.Errorf("capture on %s: %w", c.cfg.Interface, err)
		}
		seen++
		at, length := ancillary(oob[:oobn], n)
		data := buf[:n]
		if !c.cfg.Payload {
			data = data[:headers(data)]
		}
		if out.n+int64(len(data))+128 > c.cfg.Bytes {
			dropped++
			break
		}
		if !limit.AllowN(time.Now(), len(data)+64) {
			dropped++
			continue
		}
		ll, _ := from.(*unix.SockaddrLinklayer)
		if err := out.packet(at, data, length, ll != nil && ll.Pkttype == unix.PACKET_OUTGOING); err != nil {
			return err
		}
		waiting = true
		if out.n+int64(len(data))+256 > c.cfg.Bytes {
			break
		}
	}
	if s, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		dropped += uint64(s.Drops)
		seen += uint64(s.Drops)
	}
	if err := out.end(time.Now(), seen, dropped); err != nil {
		return err
	}
	return flush()
}

// ancillary reads when a packet came and how long it was before the filter cut it.
func ancillary(oob []byte, n int) (at time.Time, length int) {
	at, length = time.Now(), n
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return at, length
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})):
			t := *(*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			at = time.Unix(t.Unix())
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 8:
			length = int(*(*uint32)(unsafe.Pointer(&m.Data[4])))
		}
	}
	return at, max(length, n)
}
