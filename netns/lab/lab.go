// Package lab makes networks of hosts on one machine for tests, demos and
// benchmarks: network namespaces with links, switches, NAT routers and pods,
// and real programs in them. It needs root, iproute2 and nftables.
//
//	l := lab.New(t)
//	inet, lan := l.Switch("inet"), l.Switch("lan")
//	hub := l.Host("hub").Link("eth0", inet, "203.0.113.1/24")
//	l.Router("r1", lab.EndpointIndependent).Link("wan", inet, "203.0.113.11/24").Link("lan", lan, "192.168.1.1/24")
//	a := l.Host("a").Link("eth0", lan, "192.168.1.2/24").Default("192.168.1.1")
//	pod := a.PodNet("pods", "10.1.0.1/24").Pod("p1", "10.1.0.2/24")
//	pod.Sh("ping -c1 203.0.113.1")
//
// Every name holds the process id and a counter, so that many labs run at
// once. Whatever a lab made is gone after Close: namespaces, processes,
// containers, files. What a killed run left behind the next one sweeps.
package lab

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Lab is one set of namespaces with its directory. Its methods may be called
// concurrently; those that build the topology do not return errors but end
// the test or the function given to Main.
type Lab struct {
	// Dir holds logs, captures and whatever the lab's user puts there. It is
	// readable for all users, and removed by Close.
	Dir string

	prefix string
	fail   func(error)
	logf   func(format string, args ...any)

	mu     sync.Mutex
	hosts  []*Host
	procs  []*Process
	closed bool
	links  int
}

var counter atomic.Uint64

// Counts says that a test counts what was lost, leaked, accepted or answered wrongly.
// Such a test is never run a second time to be green (internal/testrun).
func Counts(t testing.TB) {
	t.Helper()
	t.Log("no second run: it counts what went wrong")
}

// New makes a lab that is closed when the test ends. If the test failed by
// then, topology, state and logs are printed first. Without root the test is
// skipped, or fails where CI is set.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		const why = "needs root: makes network namespaces"
		if os.Getenv("CI") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	l, err := Open(func(err error) { t.Helper(); t.Fatal(err) }, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Report())
		}
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
		if left := Leftovers(l.prefix); len(left) > 0 {
			t.Errorf("the lab left behind: %s", strings.Join(left, "; "))
		}
	})
	return l
}

// failure carries an error of the building methods up to Main.
type failure struct{ err error }

// Main runs f with a lab, for programs. The lab is closed when f returns or
// fails unless f called Keep; a failure's report goes to logf.
func Main(logf func(format string, args ...any), f func(l *Lab) error) (err error) {
	l, err := Open(func(err error) { panic(failure{err}) }, logf)
	if err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			g, ok := r.(failure)
			if !ok {
				l.Close()
				panic(r)
			}
			err = g.err
		}
		if err != nil {
			logf("%s", l.Report())
		}
		err = errors.Join(err, l.Close())
	}()
	return f(l)
}

// Open makes a lab for callers that close it themselves, such as several tests
// that share one. fail is called with the error of a building method and must
// not return.
func Open(fail func(error), logf func(string, ...any)) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: makes network namespaces")
	}
	sweepOnce.Do(func() {
		if err := Sweep(); err != nil {
			logf("sweep: %v", err)
		}
	})
	prefix := fmt.Sprintf("cw%d-%d-", os.Getpid(), counter.Add(1))
	dir := filepath.Join(os.TempDir(), strings.TrimSuffix(prefix, "-"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make lab directory: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask is
		return nil, fmt.Errorf("make lab directory: %w", err)
	}
	l := &Lab{Dir: dir, prefix: prefix, fail: fail, logf: logf}
	register(l)
	return l, nil
}

// Prefix begins the names of the lab's namespaces.
func (l *Lab) Prefix() string { return l.prefix }

// keptName is a file in the directory of a lab that outlives its process.
const keptName = "kept"

// Keep leaves everything running when the lab closes and the process ends;
// RemoveKept takes it away.
func (l *Lab) Keep() {
	if err := os.WriteFile(filepath.Join(l.Dir, keptName), nil, 0o644); err != nil {
		l.fail(fmt.Errorf("keep lab: %w", err))
	}
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	unregister(l)
}

// Close ends the lab's processes and removes whatever it made.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	procs := l.procs
	l.mu.Unlock()
	defer unregister(l)
	for _, p := range procs {
		p.Signal(syscall.SIGTERM)
	}
	deadline := time.After(2 * time.Second)
wait:
	for _, p := range procs {
		select {
		case <-p.Done():
		case <-deadline:
			break wait
		}
	}
	for _, p := range procs {
		p.Signal(syscall.SIGKILL)
	}
	for _, p := range procs {
		<-p.Done()
	}
	return remove(l.prefix, l.Dir)
}

// Labs that are open, for signals: an interrupted test or demo must leave
// nothing behind either.
var (
	openMu    sync.Mutex
	openLabs  = map[*Lab]bool{}
	sweepOnce sync.Once
	sigOnce   sync.Once
)

func register(l *Lab) {
	sigOnce.Do(func() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		go func() {
			s := (<-c).(syscall.Signal)
			openMu.Lock()
			var all []*Lab
			for l := range openLabs {
				all = append(all, l)
			}
			openMu.Unlock()
			for _, l := range all {
				if err := l.Close(); err != nil {
					fmt.Fprintln(os.Stderr, "close lab:", err)
				}
			}
			signal.Reset(s)
			syscall.Kill(os.Getpid(), s)
			os.Exit(128 + int(s)) // a background job of a shell ignores SIGINT
		}()
	})
	openMu.Lock()
	defer openMu.Unlock()
	openLabs[l] = true
}

func unregister(l *Lab) {
	openMu.Lock()
	defer openMu.Unlock()
	delete(openLabs, l)
}
