package hublink

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"causeway/agent/control"
	"causeway/protocol"
)

// bulk opens the connection for a long answer that the hub of this session asks for, and serves
// it as a debug stream until it, or ctx, ends.
func (l *Link) bulk(ctx context.Context, c protocol.Challenge, serve func(net.Conn)) {
	conn, err := l.dialBulk(ctx, c)
	if err != nil {
		if ctx.Err() == nil {
			l.log.Warn().Err(err).Msg("the connection for a long answer to the hub was not made")
		}
		return
	}
	b := &bulkConn{Conn: conn, done: make(chan struct{})}
	defer b.Close()
	go serve(b) // which may wait for a server that ends
	select {
	case <-b.done:
	case <-ctx.Done():
	}
}

// dialBulk connects to the hub and proves there who this is.
func (l *Link) dialBulk(ctx context.Context, c protocol.Challenge) (net.Conn, error) {
	hub, _ := l.Hub()
	if c.Hub != hub { // one hub must not pass as this node at another
		return nil, fmt.Errorf("hub %d asks for one with hub %d", hub, c.Hub)
	}
	conn, err := l.dialAt(ctx, hub, protocol.BulkPort)
	if err != nil {
		return nil, err
	}
	conn.SetWriteDeadline(time.Now().Add(dialTimeout))
	if err := protocol.WriteFrame(conn, c.ProveBulk(l.own.Now().Number, l.own.Now().IdentityKey), protocol.MaxProof); err != nil {
		conn.Close()
		return nil, fmt.Errorf("prove this node's identity to hub %d: %w", hub, err)
	}
	conn.SetWriteDeadline(time.Time{})
	return conn, nil
}

// bulkConn tells when it is closed.
type bulkConn struct {
	net.Conn
	once sync.Once
	done chan struct{}
}

// Close implements net.Conn.
func (b *bulkConn) Close() error {
	b.once.Do(func() { close(b.done) })
	return b.Conn.Close()
}

// DialHub connects, through the tunnel, to a port of the hub that the session is with.
func (l *Link) DialHub(ctx context.Context, port uint16) (net.Conn, error) {
	hub, _ := l.Hub()
	if hub == 0 {
		return nil, control.ErrNoSession
	}
	return l.dialAt(ctx, hub, port)
}

// dialAt connects to a port of hub n's.
func (l *Link) dialAt(ctx context.Context, n protocol.NodeNumber, port uint16) (net.Conn, error) {
	from, to, err := l.hubAddrs(n, port)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := l.dial(ctx, from, to)
	if err != nil {
		return nil, fmt.Errorf("dial hub %d at %s: %w", n, to, err)
	}
	return conn, nil
}
