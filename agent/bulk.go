package agent

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"causeway/protocol"
)

// bulk opens the connection for a long answer that the hub of this session asks for, and serves
// it as a debug stream until it, or ctx, ends.
func (a *Agent) bulk(ctx context.Context, c protocol.Challenge) {
	conn, err := a.dialBulk(ctx, c)
	if err != nil {
		if ctx.Err() == nil {
			a.log.Warn().Err(err).Msg("the connection for a long answer to the hub was not made")
		}
		return
	}
	b := &bulkConn{Conn: conn, done: make(chan struct{})}
	defer b.Close()
	go a.debug.ServeConn(b) // which may wait for a server that ends
	select {
	case <-b.done:
	case <-ctx.Done():
	}
}

// dialBulk connects to the hub and proves there who this is.
func (a *Agent) dialBulk(ctx context.Context, c protocol.Challenge) (net.Conn, error) {
	a.mu.Lock()
	hub := a.hub
	a.mu.Unlock()
	if c.Hub != hub { // one hub must not pass as this node at another
		return nil, fmt.Errorf("hub %d asks for one with hub %d", hub, c.Hub)
	}
	from, to, err := a.hubAddrs(hub, protocol.BulkPort)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := a.dial(ctx, from, to)
	if err != nil {
		return nil, fmt.Errorf("dial hub %d at %s: %w", hub, to, err)
	}
	conn.SetWriteDeadline(time.Now().Add(dialTimeout))
	if err := protocol.WriteFrame(conn, c.ProveBulk(a.own.Now().Number, a.own.Now().IdentityKey), protocol.MaxProof); err != nil {
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
