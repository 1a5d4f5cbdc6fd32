package repair

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"causeway/internal/durable"
	"causeway/protocol"
)

// Bounds of the file.
const (
	maxKept = 200
	maxFile = maxKept*protocol.MaxIncident + 1<<10
)

// Log keeps a node's incidents in a file: the newest, and what no hub has
// acknowledged yet among them. Its methods may be called concurrently.
type Log struct {
	side    durable.Side
	changed chan struct{}

	mu   sync.Mutex
	file file
}

type file struct {
	Version int     `json:"v"`
	Next    uint64  `json:"next"` // number of the next incident
	Kept    []entry `json:"incidents"`
}

type entry struct {
	protocol.Incident
	Told uint64 `json:"told"` // the revision that a hub acknowledged
}

// OpenLog reads path, which need not exist. What was open when the last run ended
// ends now, for an agent's start puts everything right. An error says that the
// incidents of before are lost; the log works all the same.
func OpenLog(path string, now time.Time) (*Log, error) {
	l := &Log{side: durable.Side{Path: path, Max: maxFile}, changed: make(chan struct{}, 1), file: file{Version: 1, Next: 1}}
	var f file
	err := l.side.Load(&f, func() error { return f.check() })
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, errors.Join(fmt.Errorf("incidents of before are lost: %w", err), l.side.SetAside())
	}
	l.file = f
	for i := range f.Kept {
		if x := &f.Kept[i].Incident; x.State != protocol.IncidentOver {
			x.State, x.Until, x.Action = protocol.IncidentOver, now.UTC(), "the agent was started anew, which puts everything back"
			x.Revision++
		}
	}
	return l, nil
}

// check refuses what is not the agent's own text: a disk may lie.
func (f *file) check() error {
	if f.Version != 1 || len(f.Kept) > maxKept {
		return errors.New("not written by this program")
	}
	for i := range f.Kept {
		if err := f.Kept[i].Clean(); err != nil {
			return err
		}
		if f.Kept[i].Number >= f.Next {
			return errors.New("an incident has a number that is not given yet")
		}
	}
	return nil
}

// Begin adds an incident and returns its number. Since, Subject and what is known are
// the caller's to set.
func (l *Log) Begin(i protocol.Incident) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i.Version, i.Number, i.Revision, i.State = protocol.Version, l.file.Next, 1, protocol.IncidentOpen
	l.file.Next++
	if len(l.file.Kept) == maxKept {
		l.file.Kept = slices.Delete(l.file.Kept, 0, 1)
	}
	i = bounded(i)
	l.file.Kept = append(l.file.Kept, entry{Incident: i})
	return i.Number, l.keep()
}

// Change changes an incident that is still kept.
func (l *Log) Change(number uint64, f func(*protocol.Incident)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.file.Kept, func(e entry) bool { return e.Number == number })
	if i < 0 {
		return nil
	}
	x := l.file.Kept[i].Incident
	f(&x)
	x.Revision++
	l.file.Kept[i].Incident = bounded(x)
	return l.keep()
}

// bounded cuts what an incident has too much of.
func bounded(i protocol.Incident) protocol.Incident {
	if n := len(i.Found); n > protocol.MaxIncidentLines {
		i.Found = append(slices.Clone(i.Found[:protocol.MaxIncidentLines-1]), fmt.Sprintf("and %d more", n-protocol.MaxIncidentLines+1))
	} else {
		i.Found = slices.Clone(i.Found)
	}
	_ = i.Clean() // its texts; the rest is ours
	return i
}

// keep writes the file. l.mu is held.
func (l *Log) keep() error {
	select {
	case l.changed <- struct{}{}:
	default:
	}
	b, err := json.Marshal(l.file)
	if err != nil {
		return fmt.Errorf("encode incidents: %w", err)
	}
	if err := l.side.Write(b); err != nil {
		return fmt.Errorf("write incidents: %w", err)
	}
	return nil
}

// Newest returns all that are kept, newest first.
func (l *Log) Newest() []protocol.Incident {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]protocol.Incident, 0, len(l.file.Kept))
	for _, e := range slices.Backward(l.file.Kept) {
		out = append(out, e.Incident)
	}
	return out
}

// Changed fires when there may be something to tell.
func (l *Log) Changed() <-chan struct{} { return l.changed }

// Untold returns the oldest incident whose present form no hub has acknowledged.
func (l *Log) Untold() (protocol.Incident, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.file.Kept {
		if e.Told < e.Revision {
			return e.Incident, true
		}
	}
	return protocol.Incident{}, false
}

// Told notes that a hub has i as it is here.
func (l *Log) Told(i protocol.Incident) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range l.file.Kept {
		if e := &l.file.Kept[n]; e.Number == i.Number {
			e.Told = max(e.Told, i.Revision)
			return l.keep()
		}
	}
	return nil
}

// Traffic sums what all peers and hubs sent and received: what an incident counts.
func Traffic(paths []protocol.PathStatus) (rx, tx uint64) {
	for _, p := range paths {
		rx += p.RxBytes
		tx += p.TxBytes
	}
	return rx, tx
}
