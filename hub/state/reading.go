package state

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/hub/natsfile"
	"causeway/internal/durable"
)

// Account is the account of the hub's own NATS server that holds the log.
const Account = "CAUSEWAY_STATE"

// Reading is what the files of a log hold, read without the server that keeps them and without a
// change to them: the chain of hashes says what a transaction is, whatever the records around it say.
type Reading struct {
	State *State // after the last transaction of the chain
	// Clean says that the server will find what was found here. Otherwise the log has to be made anew
	// (Copy) from what was found.
	Clean bool
	// Damage is what is wrong with the files, and where; nil: nothing. Together with Missing it keeps
	// the hub from starting; without, everything is there.
	Damage error
	// Missing is how many transactions that were acknowledged the chain does not reach.
	Missing uint64
	// Foreign says that the transaction that the hub saw last is another one: log or marker was changed.
	Foreign bool
	// Beyond are transactions that can be read and belong behind a gap, in the order of the files.
	Beyond []Transaction

	differences map[uint64][]Difference
	stream      natsfile.Stream
	vault       Vault
	log         zerolog.Logger
	first       uint64   // the first one of places
	places      []*found // of the transactions up to State's

	atLast []byte // the hash of the transaction that was seen last

	opened span // the archive whose lines these are
	lines  [][]byte
}

// DamagedError says that a log cannot be read as far as it is known to have reached.
type DamagedError struct {
	Last, Want uint64
	Cause      error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the state log is damaged: of %d transactions the first %d are whole, then %v; nothing was changed: %s, or keep these %d by 'causeway-hub repair', which names what is lost", e.Want, e.Last, e.Cause, restoreIt, e.Last)
}

// Err says why a hub may not start with what was found: a *DamagedError if transactions are missing.
func (r *Reading) Err() error {
	if r.Foreign {
		return fmt.Errorf("the state log is another one than this hub ran with last: %w; nothing was changed: %s, or keep what is there by 'causeway-hub repair'", r.Damage, restoreIt)
	}
	if r.Missing == 0 {
		return nil
	}
	return &DamagedError{r.State.Seq, r.State.Seq + r.Missing, r.Damage}
}

// ReadFiles reads the files of the log that the server in store keeps, up to the end that m remembers and
// beyond. It folds them from the newest snapshot of v on. A log that was never made reads as empty.
func ReadFiles(ctx context.Context, store string, v Vault, m *Marker, log zerolog.Logger) (*Reading, error) {
	seen := m.read()
	r := &Reading{stream: natsfile.At(store, Account, StreamName), vault: v, log: log}
	if seen.Created.IsZero() {
		r.State, r.Clean, r.first = New(), true, 1
		return r, nil
	}
	if err := r.begin(ctx, seen); err != nil {
		return nil, err
	}
	if err := r.strictly(ctx, seen); err != nil || r.Clean {
		return r, err
	}
	// What the records say is not to be relied on.
	loose, err := Salvage(ctx, store, v, m, log)
	if err == nil && !loose.Foreign && r.Damage != nil {
		loose.Damage = r.Damage // where it lies, too
	}
	return loose, err
}

// Salvage is ReadFiles for a log whose records are not relied on: transactions are looked for by what they
// are. Its Reading is never Clean.
func Salvage(ctx context.Context, store string, v Vault, m *Marker, log zerolog.Logger) (*Reading, error) {
	r := &Reading{stream: natsfile.At(store, Account, StreamName), vault: v, log: log}
	return r, r.loosely(ctx, m.read())
}

// begin takes the state of the newest snapshot that can be read.
func (r *Reading) begin(ctx context.Context, seen markerData) error {
	most := seen.Last
	if most == 0 {
		most = math.MaxUint64
	}
	var err error
	if r.State, r.differences, err = loadSnapshot(ctx, r.vault, 0, most, r.log); err != nil {
		return err
	}
	if r.State == nil {
		r.State = New()
	}
	if r.differences == nil {
		r.differences = map[uint64][]Difference{}
	}
	r.first, r.places, r.atLast = r.State.Seq+1, nil, nil
	if r.State.Seq == seen.Last { // the log may go on: what was under way when the hub ended
		r.atLast = r.State.hash
	}
	return nil
}

// fold adds the next transaction. r.State is nobody else's.
func (r *Reading) fold(data []byte, f *found, seen markerData) error {
	t, err := decodeTransaction(r.State.Seq+1, data)
	if err != nil {
		return err
	}
	var was recorder
	newest := t.Sequence+keptDifferences > seen.Last
	if newest {
		was = r.State.record(t)
	}
	if err := r.State.apply(t); err != nil {
		return err
	}
	if newest {
		r.differences[t.Sequence] = r.State.differences(was)
		delete(r.differences, t.Sequence-keptDifferences)
	}
	if f != nil {
		r.places = append(r.places, f)
	}
	if t.Sequence == seen.Last {
		r.atLast = t.hash
	}
	return nil
}

var errBroken = errors.New("the chain ends here")

// strictly reads the records as the server does.
func (r *Reading) strictly(ctx context.Context, seen markerData) error {
	var broken error
	before := uint64(0)
	faults, err := r.stream.Read(func(rec natsfile.Record) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case before > 0 && rec.Sequence != before+1:
			broken = &natsfile.Fault{Place: rec.Place, What: fmt.Sprintf("transaction %d follows transaction %d", rec.Sequence, before)}
			return errBroken
		}
		before = rec.Sequence
		if rec.Sequence <= r.State.Seq {
			return nil // what a snapshot has
		}
		if rec.Sequence != r.State.Seq+1 {
			broken = &natsfile.Fault{Place: rec.Place, What: fmt.Sprintf("transaction %d is the first that can be read, %d should be", rec.Sequence, r.State.Seq+1)}
			return errBroken
		}
		if err := r.fold(rec.Data, nil, seen); err != nil {
			broken = fmt.Errorf("%s: %w", rec.Place, err)
			return errBroken
		}
		return nil
	})
	if err != nil && !errors.Is(err, errBroken) {
		return fmt.Errorf("read the files of the state log: %w", err)
	}
	meta := r.stream.CheckMeta(seen.Created)
	switch {
	case broken != nil:
		r.Damage = broken
	case len(faults) > 0:
		r.Damage = faults[0]
	case meta != nil:
		r.Damage = meta
	}
	r.missing(seen)
	// A write that never ended is cut off by the server, as it should be: nobody was told that it had.
	torn := broken == nil && len(faults) == 1 && faults[0].Last && r.Missing == 0
	r.Clean = r.Missing == 0 && !r.Foreign && broken == nil && meta == nil && (len(faults) == 0 || torn)
	if r.Clean {
		r.Damage = nil
	}
	return nil
}

// missing counts what the chain does not reach of what was seen.
func (r *Reading) missing(seen markerData) {
	r.Missing = 0
	if r.State.Seq < seen.Last {
		r.Missing = seen.Last - r.State.Seq
		if r.Damage == nil {
			r.Damage = fmt.Errorf("transaction %d is not there", r.State.Seq+1)
		}
		return
	}
	if r.Foreign = !bytes.Equal(r.atLast, seen.Hash); r.Foreign {
		r.Damage = fmt.Errorf("transaction %d is not the one that this hub saw last", seen.Last)
	}
}

// found is where a text lies that reads as a transaction: in a block, or a line of an archive.
type found struct {
	natsfile.Place
	size    int
	archive span // if its last is not 0
	hash    []byte
	prev    string // the hash of the one before
	vouched bool   // by a checksum
	used    bool
}

var begins = []byte(`{"v":`)

// loosely looks for transactions wherever they lie in the blocks and puts them in order by their hashes.
func (r *Reading) loosely(ctx context.Context, seen markerData) error {
	all, err := r.search(ctx)
	if err != nil {
		return fmt.Errorf("read the files of the state log: %w", err)
	}
	after := map[string][]*found{} // by the hash of the one before; an archive may have what a block has
	for _, f := range all {
		after[f.prev] = append(after[f.prev], f)
	}
	// A text that was changed may still read as a transaction. One that nothing vouches for, neither
	// a checksum nor one that follows it, is none.
	next := func() *found {
		for _, f := range after[string(r.State.hash)] {
			if f.vouched || len(after[string(f.hash)]) > 0 || bytes.Equal(f.hash, seen.Hash) {
				return f
			}
		}
		return nil
	}
	most := len(all)
	for again := true; again; {
		again = false
		if err := r.begin(ctx, seen); err != nil {
			return err
		}
		for _, f := range all {
			f.used = false
		}
		for f := next(); f != nil && len(r.places) < most; f = next() {
			data, err := r.text(f)
			if err != nil {
				return err
			}
			if err := r.fold(data, f, seen); err != nil { // it left the state half changed
				r.Damage = fmt.Errorf("%s: %w", f.Place, err)
				most, again = len(r.places), true
				break
			}
			f.used = true
		}
	}
	r.missing(seen)
	if r.Missing == 0 {
		return nil
	}
	last := -1 // of those in blocks that are in the chain
	for i, f := range all {
		if f.used && f.archive.last == 0 {
			last = i
		}
	}
	for _, f := range all[last+1:] {
		if f.archive.last != 0 {
			continue
		}
		data, err := r.text(f)
		if err != nil {
			return err
		}
		t, err := decodeTransaction(0, data)
		if err != nil {
			return err
		}
		r.Beyond = append(r.Beyond, t)
	}
	return nil
}

// search lists all that reads as a transaction, in the order of the files: archives first.
func (r *Reading) search(ctx context.Context) (all []*found, err error) {
	if r.vault != nil {
		_, archives, err := vaulted(ctx, r.vault)
		if err != nil {
			return nil, err
		}
		for _, a := range archives {
			if r.open(ctx, a) != nil {
				continue // the blocks may have what was in it
			}
			for i, line := range r.lines {
				if t, err := decodeTransaction(0, line); err == nil {
					all = append(all, &found{vouched: true, Place: natsfile.Place{File: fmt.Sprintf(archiveName, a.first, a.last), Offset: int64(i)}, archive: a, hash: t.hash, prev: string(t.Prev)})
				}
			}
		}
	}
	blocks, err := r.stream.Blocks()
	if err != nil {
		return nil, err
	}
	sound := map[natsfile.Place]int{} // the length of messages whose record has the right checksum
	if _, err := r.stream.Read(func(rec natsfile.Record) error {
		sound[natsfile.Place{File: rec.File, Offset: rec.DataAt}] = len(rec.Data)
		return nil
	}); err != nil {
		return nil, err
	}
	for _, name := range blocks {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		b, err := r.stream.Block(name)
		var f *natsfile.Fault
		if errors.As(err, &f) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for at := 0; ; {
			i := bytes.Index(b[at:], begins)
			if i < 0 {
				break
			}
			at += i
			text := b[at:min(len(b), at+maxTransaction)]
			end := jsonObject(text)
			t, err := decodeTransaction(0, text[:end])
			if end == 0 || err != nil {
				at += len(begins)
				continue
			}
			at0 := natsfile.Place{File: "msgs/" + name, Offset: int64(at)}
			all = append(all, &found{Place: at0, vouched: sound[at0] == end, size: end, hash: t.hash, prev: string(t.Prev)})
			at += end
		}
	}
	return all, nil
}

// open reads an archive, unless it is the one that was read last.
func (r *Reading) open(ctx context.Context, a span) error {
	if r.opened == a {
		return nil
	}
	b, err := r.vault.Get(ctx, fmt.Sprintf(archiveName, a.first, a.last))
	if err != nil {
		return err
	}
	lines, err := unpack(b, a.last-a.first+1)
	if err != nil {
		return err
	}
	r.opened, r.lines = a, lines
	return nil
}

// text reads what was found.
func (r *Reading) text(f *found) (b []byte, err error) {
	if f.archive.last != 0 {
		if err = r.open(context.Background(), f.archive); err == nil {
			return r.lines[f.Offset], nil
		}
	} else {
		b, err = r.stream.Part(f.Place, f.size)
	}
	if err != nil {
		return nil, fmt.Errorf("read the files of the state log: %w", err)
	}
	return b, nil
}

// jsonObject returns the length of the JSON object that b begins with, 0 if it is none.
func jsonObject(b []byte) int {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth == 0 {
				if json.Valid(b[:i+1]) {
					return i + 1
				}
				return 0
			}
		case c < ' ':
			return 0
		}
	}
	return 0
}

// Copy makes the log of a Reading that is not Clean anew in js, from where its transactions were found: the
// files are read again. What a snapshot has is left out.
func (r *Reading) Copy(ctx context.Context, js jetstream.JetStream) error {
	if _, err := createStream(ctx, js, 0, r.first); err != nil {
		return fmt.Errorf("make the state log: %w", err)
	}
	for i, f := range r.places {
		data, err := r.text(f)
		if err != nil {
			return err
		}
		seq := r.first + uint64(i)
		_, err = js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: data},
			jetstream.WithExpectStream(StreamName), jetstream.WithExpectLastSequence(seq-1), jetstream.WithRetryAttempts(0))
		if err != nil {
			return fmt.Errorf("store transaction %d: %w", seq, err)
		}
	}
	return nil
}

// MoveBeyond moves what a vault in directory dir has of transactions behind those that were found to the
// directory to, which it makes and returns; nothing to move: it returns "".
func (r *Reading) MoveBeyond(ctx context.Context, dir, to string) (string, error) {
	snapshots, archives, err := vaulted(ctx, r.vault)
	if err != nil {
		return "", err
	}
	var names []string
	for _, seq := range snapshots {
		if seq > r.State.Seq {
			names = append(names, fmt.Sprintf(snapshotName, seq))
		}
	}
	for _, a := range archives {
		if a.last > r.State.Seq {
			names = append(names, fmt.Sprintf(archiveName, a.first, a.last))
		}
	}
	if len(names) == 0 {
		return "", nil
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return "", err
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(to, name)); err != nil {
			return "", err
		}
	}
	return to, errors.Join(durable.SyncDir(to), durable.SyncDir(dir))
}
