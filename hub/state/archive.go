package state

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"causeway/internal/shortage"
)

// An archive holds transactions that are cut off the log, or will be: a line for each, as it stood
// there, compressed by gzip. Each has the hash of the one before it, so that a change in an archive is
// seen from what follows it. maxArchive bounds what one holds, not compressed.
const maxArchive = 8 << 20

// pack compresses lines.
func pack(lines [][]byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	for _, l := range lines {
		if bytes.IndexByte(l, '\n') >= 0 {
			return nil, errors.New("a transaction of several lines")
		}
		if _, err := w.Write(append(l, '\n')); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// unpack returns the lines of an archive, want of them.
func unpack(b []byte, want uint64) ([][]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	sc := bufio.NewScanner(io.LimitReader(r, maxArchive+2*maxTransaction))
	sc.Buffer(nil, maxTransaction+1)
	var out [][]byte
	for sc.Scan() {
		if uint64(len(out)) >= want {
			return nil, fmt.Errorf("more than %d transactions", want)
		}
		out = append(out, bytes.Clone(sc.Bytes()))
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // the checksum is at the end
		return nil, err
	}
	if uint64(len(out)) != want {
		return nil, fmt.Errorf("%d transactions, not %d", len(out), want)
	}
	return out, nil
}

// past reads transactions that may be cut off the log. It keeps the archive that it read last.
type past struct {
	s     *Store
	first uint64 // of the log
	in    span
	lines [][]byte
}

func (s *Store) past(ctx context.Context) (*past, error) {
	info, err := s.info(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the state log: %w", err)
	}
	return &past{s: s, first: max(info.State.FirstSeq, 1)}, nil
}

// raw returns transaction seq as it stood in the log.
func (p *past) raw(ctx context.Context, seq uint64) ([]byte, error) {
	if seq >= p.first {
		msg, err := p.s.message(ctx, seq)
		if err == nil {
			return msg.Data, nil
		}
		if !errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil, fmt.Errorf("read transaction %d: %w", seq, err)
		}
		// It may have been cut off just now.
	}
	if seq < p.in.first || seq > p.in.last {
		if err := p.open(ctx, seq); err != nil {
			return nil, err
		}
	}
	return p.lines[seq-p.in.first], nil
}

// message asks the log for transaction seq. It waits as info does.
func (s *Store) message(ctx context.Context, seq uint64) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	return s.stream.GetMsg(ctx, seq)
}

// open reads the archive that holds transaction seq.
func (p *past) open(ctx context.Context, seq uint64) error {
	v := p.s.cfg.Vault
	if v == nil {
		return fmt.Errorf("transaction %d was cut off the state log, and there is no archive", seq)
	}
	_, archives, err := vaulted(ctx, v)
	if err != nil {
		return err
	}
	cause := fmt.Errorf("transaction %d was cut off the state log, and no archive has it", seq)
	for _, a := range archives {
		if seq < a.first || seq > a.last {
			continue
		}
		name := fmt.Sprintf(archiveName, a.first, a.last)
		b, err := v.Get(ctx, name)
		if err == nil {
			p.lines, err = unpack(b, a.last-a.first+1)
		}
		if err == nil {
			p.in = a
			return nil
		}
		cause = fmt.Errorf("transaction %d cannot be read, %s: %w; the state does not need it, the audit does: take that file from a copy of the data directory", seq, v.Where(name), err)
	}
	return cause
}

// CheckArchives reads every archive, and says which are damaged or missing. The state needs none of them: the
// audit and backups do.
func (s *Store) CheckArchives(ctx context.Context) error {
	if s.cfg.Vault == nil {
		return nil
	}
	p, err := s.past(ctx)
	if err != nil {
		return err
	}
	_, archives, err := vaulted(ctx, s.cfg.Vault)
	if err != nil {
		return err
	}
	bad, next := []string{}, uint64(1)
	for _, a := range archives { // by their first
		if a.first > next && next < p.first {
			bad = append(bad, fmt.Sprintf("transactions %d to %d: no file has them", next, min(a.first, p.first)-1))
		}
		next = max(next, a.last+1)
		name := fmt.Sprintf(archiveName, a.first, a.last)
		b, err := s.cfg.Vault.Get(ctx, name)
		if err == nil {
			_, err = unpack(b, a.last-a.first+1)
		}
		if errors.Is(err, errNotAsked) || shortage.Is(err) || ctx.Err() != nil {
			return err
		} else if err != nil {
			bad = append(bad, fmt.Sprintf("%s: %v", s.cfg.Vault.Where(name), err))
		}
	}
	if next < p.first {
		bad = append(bad, fmt.Sprintf("transactions %d to %d: no file has them", next, p.first-1))
	}
	var found error
	if len(bad) > 0 {
		found = &ArchiveError{bad[0], len(bad) - 1}
	}
	s.mu.Lock()
	s.archives = found
	s.mu.Unlock()
	return found
}

// ArchiveError says what of the older transactions cannot be read.
type ArchiveError struct {
	First string // the file and why, or the transactions that are missing
	More  int    // others like it
}

func (e *ArchiveError) Error() string {
	more := ""
	if e.More > 0 {
		more = fmt.Sprintf(" (and %d more)", e.More)
	}
	return fmt.Sprintf("older transactions cannot be read: %s%s; the state is whole and does not need them, the audit and backups do: put that file back from a copy of the data directory", e.First, more)
}

// Archives is what CheckArchives found last.
func (s *Store) Archives() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.archives
}

// archivesEvery is how often all archives are read: what is damaged on a disk is to be known before a backup is needed.
const archivesEvery = 24 * time.Hour

// WatchArchives reads the archives at once and once a day, until ctx ends.
func (s *Store) WatchArchives(ctx context.Context) error {
	t := time.NewTicker(archivesEvery)
	defer t.Stop()
	for {
		if err := s.CheckArchives(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error().Err(err).Msg("older transactions cannot be read, there is no backup without them")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
