package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"causeway/tunnel/underlay/sock"
)

// expireEvery is how often expired bindings are looked for.
const expireEvery = time.Second

// batchGroups is how many groups, or single datagrams, one system call brings.
const batchGroups = 24

// maxLoops bounds the sockets: a loop forwards several Gbit/s.
const maxLoops = 8

func (r *Relay) loops() int {
	if r.cfg.Loops > 0 {
		return r.cfg.Loops
	}
	return min(runtime.GOMAXPROCS(0), maxLoops)
}

// Run opens the sockets and works until ctx ends. It owns every goroutine, and
// runs once.
func (r *Relay) Run(ctx context.Context) error {
	o := sock.Options{Addr: r.cfg.Listen, NoOffload: r.cfg.NoOffload, Buffer: r.cfg.SocketBuffer, Sticky: r.cfg.Listen.Addr().IsUnspecified(), Inherited: r.cfg.Inherited}
	conns, err := sock.OpenShared(o, r.loops()+1)
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	if err := r.hold(conns); err != nil {
		for _, c := range conns {
			c.Close()
		}
		return fmt.Errorf("relay: %w", err)
	}
	last := len(conns) - 1
	r.data.Store(conns[0])
	r.conn.Store(conns[last])
	g, ctx := errgroup.WithContext(ctx)
	r.streams.open(ctx)
	for i, c := range conns {
		g.Go(func() error { r.read(c, conns[i%last]); return nil })
	}
	g.Go(func() error { r.tick(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		r.streams.close()
		r.conn.Store(nil)
		r.data.Store(nil)
		for _, c := range conns {
			c.Close()
		}
		return nil
	})
	close(r.ready)
	return g.Wait()
}

// hold gives the sockets to who keeps them beyond this run.
func (r *Relay) hold(conns []*sock.Conn) error {
	if r.cfg.Hold == nil {
		return nil
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, c := range conns {
		f, err := c.File()
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if !r.cfg.Hold(files) {
		return nil
	}
	for _, c := range conns {
		if err := c.Held(); err != nil {
			return err
		}
	}
	return nil
}

// tick drops expired bindings and sends handshake messages again.
func (r *Relay) tick(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var expire time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.wake:
		}
		now := time.Now()
		if !now.Before(expire) {
			expire = now.Add(expireEvery)
			r.mu.Lock()
			r.binder.Tick(now, &r.out)
			r.publish()
			r.mu.Unlock()
			r.judgeStreams()
		}
		next := expire
		if t := r.table.Tick(now); !t.IsZero() && t.Before(next) {
			next = t
		}
		timer.Reset(max(time.Until(next), time.Millisecond))
	}
}

// read handles what comes to c. Data leaves by another socket if c is the one
// for control.
func (r *Relay) read(c, data *sock.Conn) {
	if err := sock.LockBatchThread(); err != nil {
		r.cfg.Log.Debug().Err(err).Msg("relay loop runs with the usual scheduling policy")
	}
	d := r.newReader(c, data)
	b := sock.NewBatchOf(batchGroups)
	for {
		messages, err := c.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// An error of one datagram (ICMP), or a shortage that passes.
			r.drops.Add("receive_error", 1)
			time.Sleep(time.Millisecond)
			continue
		}
		d.batch(messages)
	}
}
