package sock

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// Lookup finds the addresses of a host's name, the likeliest first.
type Lookup func(ctx context.Context, host string) ([]netip.Addr, error)

// nextAfter is how long an address may take before the next one is tried beside it.
const nextAfter = 300 * time.Millisecond

// DialTCP connects to hostport over a socket with this mark. A name is looked up by lookup, or by
// Resolver if that is nil, and its addresses are tried one after the other, each beside those
// before that have not answered yet.
func DialTCP(ctx context.Context, mark uint32, lookup Lookup, hostport string) (net.Conn, error) {
	d := net.Dialer{Control: MarkControl(mark), Resolver: Resolver(mark)}
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil || lookup == nil {
		return d.DialContext(ctx, "tcp", hostport)
	}
	addrs, err := lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		net.Conn
		error
	}
	results := make(chan result, len(addrs))
	var first error
	for begun, ended := 0, 0; ended < len(addrs); {
		var next <-chan time.Time
		if begun < len(addrs) {
			to := net.JoinHostPort(addrs[begun].String(), port)
			begun++
			go func() {
				c, err := d.DialContext(ctx, "tcp", to)
				results <- result{c, err}
			}()
			next = time.After(nextAfter)
		}
		select {
		case r := <-results:
			ended++
			if r.error == nil {
				cancel()
				for range begun - ended { // those that were too late
					if late := <-results; late.error == nil {
						late.Close()
					}
				}
				return r.Conn, nil
			}
			if first == nil {
				first = r.error
			}
		case <-next:
		}
	}
	return nil, first
}
