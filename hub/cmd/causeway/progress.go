package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// progressAfter is how long a command works in silence.
const progressAfter = time.Second

// progress is one line on the terminal that tells what a command waits for. Where
// standard error is no terminal it says nothing.
type progress struct {
	c     *cli
	start time.Time
	on    bool
	shown bool
}

func (c *cli) progress() *progress {
	return &progress{c: c, start: time.Now(), on: isTerminal(c.err)}
}

// now says what goes on.
func (p *progress) now(msg string, args ...any) {
	d := time.Since(p.start)
	if !p.on || d < progressAfter {
		return
	}
	fmt.Fprintf(p.c.err, "\r\x1b[K%s… %s", fmt.Sprintf(msg, args...), d.Truncate(time.Second))
	p.shown = true
}

// end takes the line away. It may be called again.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.c.err, "\r\x1b[K")
		p.shown = false
	}
}

// isTerminal reports whether a stream is a terminal.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
