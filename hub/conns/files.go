package conns

import (
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"causeway/internal/shortage"
)

// What of a process' descriptors is for files, and how few it may have at all.
const (
	MinFiles    = 256
	maxReserve  = 1024
	acceptPause = 50 * time.Millisecond
)

// Files keeps the last descriptors of a process for its files: no connection ever has one of
// them, since the system gives each the lowest number that is free. Long before the
// connections have used theirs up, those of strangers are closed, who hold one longest, of the
// source that has most. Its methods may be called concurrently.
type Files struct {
	low, high int
	closed    *prometheus.CounterVec

	mu      sync.Mutex
	bounded map[*Listener]bool
}

// OpenFiles asks for the process' limit. It fails, and says what to do, if that is too low for
// a hub. Go has raised the soft limit to the hard one.
func OpenFiles() (*Files, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return nil, fmt.Errorf("limit of open files: %w", err)
	}
	return NewFiles(l.Cur)
}

// NewFiles is OpenFiles with a limit.
func NewFiles(limit uint64) (*Files, error) {
	if limit < MinFiles {
		return nil, fmt.Errorf("the limit of open files is %d, a hub needs %d at least and 65536 with many agents: raise it with LimitNOFILE= in its unit, or with 'ulimit -n 65536' in the shell that starts it", limit, MinFiles)
	}
	n := int(min(limit, 1<<30))
	reserve := min(n/2, maxReserve)
	f := &Files{low: n - reserve, high: n - reserve/2, bounded: map[*Listener]bool{},
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_hub_connections_closed_total", Help: "Connections closed for want of descriptors: of strangers, and new ones."}, []string{"whose"})}
	f.closed.WithLabelValues("stranger")
	f.closed.WithLabelValues("new")
	return f, nil
}

// Metrics counts the connections that were closed.
func (f *Files) Metrics() prometheus.Collector { return f.closed }

// Guard returns l with the connections that leave the descriptors of f alone. Accept of what it
// returns fails for no shortage.
func (f *Files) Guard(l net.Listener) net.Listener { return &guarded{Listener: l, files: f} }

type guarded struct {
	net.Listener
	files *Files
}

// Accept returns the next connection that there is a descriptor for.
func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if shortage.Is(err) {
			g.files.relieve()
			time.Sleep(acceptPause)
			continue
		}
		if err != nil {
			return nil, err
		}
		n := descriptor(c)
		if n >= g.files.low {
			g.files.relieve()
		}
		if n < g.files.high {
			return c, nil
		}
		g.files.closed.WithLabelValues("new").Inc()
		c.Close()
	}
}

// descriptor is the number of a connection's; 0 if it has none.
func descriptor(c net.Conn) (n int) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	r, err := s.SyscallConn()
	if err != nil {
		return 0
	}
	r.Control(func(fd uintptr) { n = int(fd) })
	return n
}

// relieve closes a stranger's connection, of the listener that has most.
func (f *Files) relieve() {
	f.mu.Lock()
	var most *Listener
	n := 0
	for l := range f.bounded {
		if k := l.count(); k > n {
			most, n = l, k
		}
	}
	f.mu.Unlock()
	if most == nil {
		return
	}
	if c := most.victim(); c != nil {
		f.closed.WithLabelValues("stranger").Inc()
		c.Close()
	}
}

// find has the strangers of l be those that go first, if f guards it.
func find(l net.Listener) *Files {
	for {
		if g, ok := l.(*guarded); ok {
			return g.files
		}
		u, ok := l.(interface{ Inner() net.Listener })
		if !ok {
			return nil
		}
		l = u.Inner()
	}
}

func (f *Files) add(l *Listener) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bounded[l] = true
}
