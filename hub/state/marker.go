package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"causeway/internal/cause"
	"causeway/internal/durable"
)

// Marker is a file beside the log that remembers which log this hub has seen
// and how far. It is how an empty, shorter or foreign log is told from a new
// cluster: such a log is refused, never folded into 'nothing is there'.
type Marker struct {
	path string

	mu   sync.Mutex
	data markerData
}

type markerData struct {
	Version int       `json:"v"`
	Created time.Time `json:"stream_created"` // zero: no log yet
	Last    uint64    `json:"last_sequence"`
	Hash    []byte    `json:"last_sha256,omitempty"` // of transaction Last
}

const maxMarker = 64 << 10

// ErrNoMarker says that there is no marker file: a new data directory, or one
// that lost it.
var ErrNoMarker = errors.New("no marker of the state log")

// OpenMarker reads the marker at path. It fails with ErrNoMarker if there is none.
func OpenMarker(path string) (*Marker, error) {
	b, err := durable.ReadFile(path, maxMarker)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w at %s", ErrNoMarker, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read marker of the state log: %w; %s", err, cause.Cure(err, "restore the data directory from a backup, or see what 'causeway-hub repair' finds in the log"))
	}
	m := &Marker{path: path}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m.data); err != nil || m.data.Version != 1 {
		return nil, fmt.Errorf("marker of the state log %s is unreadable; restore the data directory from a backup, or see what 'causeway-hub repair' finds in the log", path)
	}
	return m, nil
}

// ForgottenMarker stands for a marker that cannot be read: of the log that it was about nothing is known.
func ForgottenMarker() *Marker {
	return &Marker{data: markerData{Version: 1, Created: time.Unix(0, 0)}}
}

// Last is the transaction up to which the log was seen.
func (m *Marker) Last() uint64 { return m.read().Last }

// NewMarker makes the marker of a log that does not exist yet.
func NewMarker(path string) (*Marker, error) {
	m := &Marker{path: path, data: markerData{Version: 1}}
	return m, m.save(m.data)
}

func (m *Marker) save(d markerData) error {
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(m.path, append(b, '\n')); err != nil {
		return fmt.Errorf("write marker of the state log: %w", err)
	}
	m.data = d
	return nil
}

// record remembers that the log made at created reaches seq.
func (m *Marker) record(created time.Time, seq uint64, hash []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if seq <= m.data.Last && m.data.Created.Equal(created) {
		return nil
	}
	return m.save(markerData{1, created, seq, hash})
}

func (m *Marker) read() markerData {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data
}

// New reports whether no log was made yet: keys may be made, too.
func (m *Marker) New() bool { return m.read().Created.IsZero() }
