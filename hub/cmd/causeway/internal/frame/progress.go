package frame

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progressAfter is how long a command works in silence.
const progressAfter = time.Second

// Progress is one line on the terminal that tells what a command waits for, from its
// second second on. Where standard error is no terminal it says nothing. A nil one is
// silent.
type Progress struct {
	c    *CLI
	stop chan struct{}
	done chan struct{}
	once sync.Once

	mu  sync.Mutex
	msg string
}

// begin starts the line of a command.
func (c *CLI) begin() *Progress {
	if !IsTerminal(c.Err) {
		return nil
	}
	p := &Progress{c: c, msg: "waiting for the hub", stop: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

func (p *Progress) run() {
	defer close(p.done)
	t := time.NewTicker(progressAfter)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case <-p.stop:
			if n > 0 {
				fmt.Fprint(p.c.Err, "\r\x1b[K")
			}
			return
		case <-t.C:
			p.mu.Lock()
			fmt.Fprintf(p.c.Err, "\r\x1b[K%s… %s", p.msg, time.Duration(n+1)*progressAfter)
			p.mu.Unlock()
		}
	}
}

// Now says what goes on.
func (p *Progress) Now(msg string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.msg = fmt.Sprintf(msg, args...)
}

// End takes the line away, before anything else is printed. It may be called again.
func (p *Progress) End() {
	if p == nil {
		return
	}
	p.once.Do(func() { close(p.stop) })
	<-p.done
}

// IsTerminal reports whether a stream is a terminal.
func IsTerminal(v any) bool {
	f, ok := v.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
