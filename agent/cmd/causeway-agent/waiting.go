package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"causeway/agent/join"
	"causeway/protocol"
)

// sayAgain is how often the same cause is said again where there is no terminal.
const sayAgain = 30 * time.Second

// progress says what a join waits for: in one line that stays on a terminal, and elsewhere
// in one for each cause.
type progress struct {
	w    io.Writer
	last string    // cause that was said
	at   time.Time // when
	open bool      // the line on the terminal is not ended
}

func (p *progress) tell(j join.Progress) {
	line := fmt.Sprintf("causeway-agent: waiting: %s (try %d, goes on for %s)", protocol.Folded(j.Err.Error()), j.Tries, j.Left.Round(time.Second))
	if terminal(p.w) {
		fmt.Fprint(p.w, "\r\x1b[K"+line)
		p.open = true
		return
	}
	if j.Err.Error() == p.last && time.Since(p.at) < sayAgain {
		return
	}
	p.last, p.at = j.Err.Error(), time.Now()
	fmt.Fprintln(p.w, line)
}

// end ends the line.
func (p *progress) end() {
	if p.open {
		fmt.Fprintln(p.w)
	}
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&fs.ModeCharDevice != 0
}

// withOtherName adds to a refusal that offers to join with another --name than the one that was
// made of host one that tells hosts of one first label apart. host is empty if the name was given.
func withOtherName(err error, host string) error {
	var r *join.RefusedError
	if host == "" || !errors.As(err, &r) || r.Code != protocol.RefusedRequest || !strings.Contains(r.Message, "--name") {
		return err
	}
	long := join.DefaultName(strings.ReplaceAll(host, ".", "-"))
	if long == "" || long == join.DefaultName(host) {
		return err
	}
	return fmt.Errorf("%w; for example --name %s", err, long)
}
