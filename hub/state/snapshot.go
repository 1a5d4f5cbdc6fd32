package state

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"causeway/protocol"
)

// A snapshot is the fold at a sequence, so that a start reads the state and not its history:
//
//	{"format":"causeway-snapshot","v":1,"bytes":…,"sha256":…}       one line
//	{"state":{…},"tx_sha256":…,"keys":[…],"differences":{…}}         so many bytes, with that SHA-256
//
// tx_sha256 is the hash of the state's last transaction: what follows in the log has to begin with it. A field
// that this version does not know is refused: a newer version wrote it, and a state without
// it would be another one.
type snapshotHead struct {
	Format  string `json:"format"`
	Version int    `json:"v"`
	Bytes   int    `json:"bytes"`
	Sum     []byte `json:"sha256"`
}

const (
	snapshotFormat  = "causeway-snapshot"
	snapshotVersion = 1
	maxSnapshotHead = 1 << 10
	// maxSnapshotNews bounds the bytes of what the newest transactions changed, which the audit shows.
	maxSnapshotNews = 4 << 20
)

type plainState State

// foldJSON is a State in JSON, all its exported fields: those of Routes stand in a list.
type foldJSON struct {
	plainState
	Routes []Route
}

type snapshotBody struct {
	State       foldJSON                `json:"state"`
	Tx          []byte                  `json:"tx_sha256"`
	Keys        []keyOwner              `json:"keys"` // of every node that ever was, those that nobody uses any more included
	Differences map[uint64][]Difference `json:"differences"`
}

type keyOwner struct {
	Key  protocol.WireGuardPublicKey `json:"key"`
	Node protocol.NodeNumber         `json:"node"`
}

// encodeSnapshot writes st and what is known of the newest transactions.
func encodeSnapshot(st *State, news map[uint64][]Difference) ([]byte, error) {
	b := snapshotBody{Tx: st.hash, State: foldJSON{plainState: plainState(*st), Routes: make([]Route, 0, st.Routes.Len())}, Differences: map[uint64][]Difference{}}
	for _, r := range st.Routes.All() {
		b.State.Routes = append(b.State.Routes, r)
	}
	for k, n := range st.keys.All() {
		b.Keys = append(b.Keys, keyOwner{k, n})
	}
	size := 0
	for seq := st.Seq; seq > 0 && seq+keptDifferences > st.Seq; seq-- {
		for _, d := range news[seq] {
			size += 80 + len(d.Object) + len(d.Field) + len(d.Before) + len(d.After)
		}
		if size > maxSnapshotNews {
			break
		}
		if len(news[seq]) > 0 {
			b.Differences[seq] = news[seq]
		}
	}
	body, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("snapshot of the state: %w", err)
	}
	sum := sha256.Sum256(body)
	head, err := json.Marshal(snapshotHead{snapshotFormat, snapshotVersion, len(body), sum[:]})
	if err != nil {
		return nil, fmt.Errorf("snapshot of the state: %w", err)
	}
	if len(head)+1+len(body) > maxVaultFile {
		return nil, fmt.Errorf("snapshot of the state: %d bytes, at most %d", len(body), maxVaultFile)
	}
	return append(append(head, '\n'), body...), nil
}

// errNewer says that a newer version wrote something.
var errNewer = errors.New("a newer causeway-hub wrote it, run that version")

// decodeSnapshot reads what encodeSnapshot wrote.
func decodeSnapshot(b []byte) (*State, map[uint64][]Difference, error) {
	line, body, ok := bytes.Cut(b[:min(len(b), maxVaultFile)], []byte{'\n'})
	var h snapshotHead
	if !ok || len(line) > maxSnapshotHead || json.Unmarshal(line, &h) != nil || h.Format != snapshotFormat {
		return nil, nil, errors.New("it is no snapshot")
	}
	if h.Version > snapshotVersion {
		return nil, nil, errNewer
	}
	sum := sha256.Sum256(body)
	if h.Bytes != len(body) || !bytes.Equal(h.Sum, sum[:]) {
		return nil, nil, errors.New("it is not what was written")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var v snapshotBody
	if err := d.Decode(&v); err != nil {
		if strings.Contains(err.Error(), "unknown field") {
			return nil, nil, errNewer
		}
		return nil, nil, err
	}
	if len(v.Tx) != sha256.Size {
		return nil, nil, errors.New("it does not say what it is of")
	}
	st := State(v.State.plainState)
	st.hash, st.newest, st.realms = v.Tx, new(newest), new(knownRealms)
	st.Routes.fill(func(set func(RouteKey, Route)) {
		for _, r := range v.State.Routes {
			set(r.RouteKey, r)
		}
	})
	st.held.fill(func(set func(netip.Addr, ObjectKey)) {
		for k, o := range st.Objects.All() {
			for _, a := range holds(o) {
				set(a, k)
			}
		}
	})
	st.keys.fill(func(set func(protocol.WireGuardPublicKey, protocol.NodeNumber)) {
		for _, k := range v.Keys {
			set(k.Key, k.Node)
		}
	})
	st.identities.fill(func(set func(protocol.IdentityPublicKey, protocol.NodeNumber)) {
		for _, n := range st.Nodes.All() {
			set(n.IdentityKey, n.Number)
		}
	})
	st.names.fill(func(set func(string, protocol.NodeNumber)) {
		for _, n := range st.Nodes.All() {
			if n.Live() {
				set(n.Name, n.Number)
			}
		}
	})
	return &st, v.Differences, nil
}

// loadSnapshot returns the newest state that a snapshot of v has, one of transaction least to most;
// nil if there is none that can be read. If one may be read later, and no other now, its error is errNotAsked.
func loadSnapshot(ctx context.Context, v Vault, least, most uint64, log zerolog.Logger) (*State, map[uint64][]Difference, error) {
	if v == nil {
		return nil, nil, nil
	}
	snapshots, _, err := vaulted(ctx, v)
	if err != nil {
		return nil, nil, err
	}
	var later error
	for _, seq := range slices.Backward(snapshots) {
		if seq < least || seq > most {
			continue
		}
		name := fmt.Sprintf(snapshotName, seq)
		b, err := v.Get(ctx, name)
		var st *State
		var news map[uint64][]Difference
		if err == nil {
			st, news, err = decodeSnapshot(b)
		}
		if err == nil && st.Seq != seq {
			err = errors.New("it is of another transaction than its name says")
		}
		if errors.Is(err, errNewer) {
			return nil, nil, fmt.Errorf("snapshot of the state, %s: %w", v.Where(name), err)
		}
		if err == nil {
			return st, news, nil
		}
		log.Error().Err(err).Str("file", v.Where(name)).Msg("a snapshot of the state cannot be read, taking the one before")
		if later == nil && errors.Is(err, errNotAsked) {
			later = fmt.Errorf("snapshot of the state, %s: %w", v.Where(name), err)
		}
	}
	return nil, nil, later
}
