package bus

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// fanoutAgain is from the end of the fan-out's connection to the next.
const fanoutAgain = time.Second

// maxDownLine is of the server's lines: subject, sid and reply subject of others' lines.
const maxDownLine = 3 * maxLine

// news is one message for whoever follows. Nobody changes it.
type news struct {
	subject, reply string
	header         int    // bytes of body that are headers; 0: none
	body           []byte // without the end of line
}

// fanout passes on what readers follow. What the server sends to a subscriber it copies for him
// alone, so it has one for all readers: a message lies in memory once, however many follow it,
// and each has a queue of what he has not taken yet. Its methods may be called concurrently.
type fanout struct {
	s *Server

	mu sync.Mutex
	up bool // it follows
	to map[*following]bool
}

// add has r follow from now on; false: nothing can be followed now.
func (f *fanout) add(r *following) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.up {
		f.to[r] = true
	}
	return f.up
}

func (f *fanout) remove(r *following) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.to, r)
}

// run passes on until ctx ends. It calls ready once it follows. When its connection ends,
// messages may be missed: all readers who follow are cut off, and come back to look.
func (f *fanout) run(ctx context.Context, ready func()) {
	for {
		err := f.once(ctx, func() {
			f.mu.Lock()
			f.up = true
			f.mu.Unlock()
			ready()
		})
		if ctx.Err() != nil {
			return
		}
		f.s.log.Warn().Err(err).Msg("nats users are cut off, what they follow was interrupted")
		f.mu.Lock()
		f.up = false
		for r := range f.to {
			r.end()
		}
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(fanoutAgain):
		}
	}
}

// once passes on until its connection ends.
func (f *fanout) once(ctx context.Context, ready func()) error {
	cred, err := f.s.open(session{accountAgents, &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{">"}}, Subscribe: &server.SubjectPermission{Allow: Followed}}})
	if err != nil {
		return err
	}
	defer f.s.drop(cred)
	c, err := f.s.ns.InProcessConn()
	if err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	br := bufio.NewReaderSize(c, maxDownLine)
	c.SetDeadline(time.Now().Add(readerTimeout))
	if _, err := readLine(br); err != nil { // its INFO
		return fmt.Errorf("connect to nats: %w", err)
	}
	line, err := json.Marshal(connectOptions{Name: "causeway-hub readers", Protocol: 1, Headers: true, Token: string(cred)})
	if err != nil {
		return err
	}
	hello := fmt.Appendf(nil, "CONNECT %s\r\n", line)
	for i, subject := range Followed {
		hello = fmt.Appendf(hello, "SUB %s %d\r\n", subject, i+1)
	}
	if _, err := c.Write(append(hello, "PING\r\n"...)); err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	for {
		n, op, err := readDown(br)
		switch {
		case err != nil:
			return err
		case n != nil:
			f.pass(n)
		case op == "PONG":
			c.SetDeadline(time.Time{})
			ready()
		case op == "PING":
			if _, err := io.WriteString(c, "PONG\r\n"); err != nil {
				return err
			}
		case op == "-ERR":
			return errors.New("the server refuses a subscription or closes the connection")
		}
	}
}

func (f *fanout) pass(n *news) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r := range f.to {
		r.offer(n)
	}
}

// readDown reads what the server sends next: a message, or another line's operation.
func readDown(br *bufio.Reader) (*news, string, error) {
	line, err := readLine(br)
	if err != nil {
		return nil, "", err
	}
	w := words(line)
	n, size, err := parseMsg(w)
	if err != nil || n == nil {
		if len(w) > 0 {
			return nil, w[0], err
		}
		return nil, "", err
	}
	n.body = make([]byte, size+2)
	if _, err := io.ReadFull(br, n.body); err != nil {
		return nil, "", err
	}
	n.body = n.body[:size]
	return n, "", nil
}

// parseMsg reads a line of the server: MSG subject sid [reply] size, HMSG subject sid [reply]
// header-size size. Nil: it is another.
func parseMsg(w []string) (n *news, size int, err error) {
	counts := 1
	switch {
	case len(w) == 0 || w[0] != "MSG" && w[0] != "HMSG":
		return nil, 0, nil
	case w[0] == "HMSG":
		counts = 2
	}
	if k := len(w) - counts; k != 3 && k != 4 {
		return nil, 0, fmt.Errorf("%w: malformed %s", ErrProtocol, w[0])
	}
	n = &news{subject: w[1]}
	if len(w)-counts == 4 {
		n.reply = w[3]
	}
	size, err = strconv.Atoi(w[len(w)-1])
	if err == nil && counts == 2 {
		n.header, err = strconv.Atoi(w[len(w)-2])
	}
	if err != nil || size < 0 || size > maxPayload || n.header < 0 || n.header > size {
		return nil, 0, fmt.Errorf("%w: malformed %s", ErrProtocol, w[0])
	}
	return n, size, nil
}
