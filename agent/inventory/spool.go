package inventory

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"causeway/internal/cause"
	"causeway/internal/durable"
	"causeway/internal/shortage"
	"causeway/protocol"
)

// spool is the file that keeps a queue over a restart of the agent: a line for the facts
// as the hub has them, then one for each message. It is there only while messages
// wait. A line that was cut off by a crash ends it.
type spool struct {
	path string // empty: nothing is kept
	f    *os.File
}

// maxSpoolLine bounds a line: a message, and its frame.
const maxSpoolLine = 2 * protocol.MaxInventory

// maxSpool bounds what is read: more than a queue ever holds, with its frames.
const maxSpool = 4*maxQueuedBytes + maxSpoolLine

type spoolLine struct {
	Base    json.RawMessage `json:"base,omitempty"`
	Message *message        `json:"message,omitempty"`
}

// load reads the queue. What cannot be read is left out: the facts come again anyway.
func (s *spool) load() (*queue, error) {
	q := newQueue()
	if s.path == "" {
		return q, nil
	}
	f, err := durable.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) || shortage.Is(err) {
		return q, nil
	}
	if err != nil { // not even a file: nothing could be kept
		return q, errors.Join(fmt.Errorf("%s is damaged (%w); it is kept as %s", s.path, cause.Innermost(err), durable.Bad(s.path)), durable.SetAside(s.path))
	}
	defer f.Close()
	sc := bufio.NewScanner(io.LimitReader(f, maxSpool))
	sc.Buffer(nil, maxSpoolLine)
	for sc.Scan() {
		var l spoolLine
		if json.Unmarshal(sc.Bytes(), &l) != nil || l.Base == nil && l.Message == nil || len(q.items) >= 2*maxQueued {
			break
		}
		switch {
		case l.Message != nil:
			q.items = append(q.items, *l.Message)
			q.bytes += len(l.Message.Data)
		case len(q.items) == 0:
			q.base = l.Base
		}
	}
	return q, nil
}

// add appends a message to the file, or writes the whole queue where there is none yet.
func (s *spool) add(q *queue, m message) error {
	if s.path == "" {
		return nil
	}
	if s.f == nil {
		return s.write(q)
	}
	b, err := json.Marshal(spoolLine{Message: &m})
	if err == nil {
		_, err = s.f.Write(append(b, '\n'))
	}
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		s.close()
		return fmt.Errorf("keep inventory: %w", err)
	}
	return nil
}

// write puts the queue as it is in place of the file.
func (s *spool) write(q *queue) error {
	if s.path == "" {
		return nil
	}
	s.close()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	if q.base != nil {
		if err := e.Encode(spoolLine{Base: q.base}); err != nil {
			return err
		}
	}
	for i := range q.items {
		if err := e.Encode(spoolLine{Message: &q.items[i]}); err != nil {
			return err
		}
	}
	if err := durable.WriteFile(s.path, b.Bytes()); err != nil {
		return fmt.Errorf("keep inventory: %w", err)
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("keep inventory: %w", err)
	}
	s.f = f
	return nil
}

// clear removes the file: nothing waits.
func (s *spool) clear() error {
	if s.path == "" {
		return nil
	}
	s.close()
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *spool) close() {
	if s.f != nil {
		s.f.Close()
		s.f = nil
	}
}
