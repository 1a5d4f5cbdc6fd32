package admin

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/state"
)

// IfMatch is part of the input of each operation that changes what is there.
type IfMatch struct {
	IfMatch string `header:"If-Match" maxLength:"1000" doc:"Change only while the object has one of these ETags, or '*' any at all."`
}

// tag is the ETag of an object: what is stored of it, hashed.
func tag(stored any) string {
	b, err := json.Marshal(stored)
	if err != nil {
		panic(err) // a type of the state that is no JSON
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:10])
}

// fieldsTag is a tag of fields that are not many bytes: lists have tens of thousands of them, for which JSON takes
// too long.
type fieldsTag []byte

func (t *fieldsTag) text(s string) {
	*t = append(binary.AppendUvarint(*t, uint64(len(s))), s...)
}

func (t *fieldsTag) number(n uint64) { *t = binary.AppendUvarint(*t, n) }

func (t *fieldsTag) flag(b bool) {
	if *t = append(*t, 0); b {
		(*t)[len(*t)-1] = 1
	}
}

func (t *fieldsTag) time(at time.Time) {
	t.number(uint64(at.Unix()))
	t.number(uint64(at.Nanosecond()))
}

func (t fieldsTag) sum() string {
	sum := sha256.Sum256(t)
	return hex.EncodeToString(sum[:10])
}

// routeTag is tag for routes.
func routeTag(r state.Route) string {
	t := make(fieldsTag, 0, 128)
	t.number(uint64(r.Node))
	t = append(t, r.Prefix.Addr().AsSlice()...)
	t.number(uint64(r.Prefix.Bits()))
	t.text(string(r.State))
	t.text(r.By)
	t.flag(r.FromToken)
	t.flag(r.Announced)
	return t.sum()
}

// nodeTag is tag for nodes. It leaves out what the node's agent says of itself: statement, WireGuard key and since when,
// and that it proves its identity.
func nodeTag(n state.Node) string {
	t := make(fieldsTag, 0, 256)
	t.number(uint64(n.Number))
	t.text(n.Name)
	t.text(n.Site)
	t = append(append(t, n.IdentityKey[:]...), n.Token[:]...)
	t.number(uint64(len(n.Labels)))
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		t.text(k)
		t.text(n.Labels[k])
	}
	t.time(n.Joined)
	t.number(uint64(n.KeyWanted))
	t.time(n.KeyAsked)
	t.number(uint64(n.KeyOverlap))
	t.text(n.Quarantine)
	t.time(n.Drained)
	t.text(string(n.Gone))
	t.time(n.GoneTime)
	return t.sum()
}

// staleError says that an object is not what its changer saw.
type staleError struct{ what string }

func (e *staleError) Error() string {
	return e.what + " was changed since you read it; look at it again, then repeat the change"
}

// matches applies an If-Match header (RFC 9110, section 13.1.1) to an ETag.
func (m IfMatch) matches(etag string) bool {
	for _, t := range strings.Split(m.IfMatch, ",") {
		if t = strings.TrimSpace(t); t == "*" || t == `"`+etag+`"` {
			return true
		}
	}
	return false
}

// change is update for an object that is there: it decides only if the object, which
// current finds in the newest state, is the one that the caller saw.
func (s *Server) change(ctx context.Context, m IfMatch, why, what string, current func(*state.State) (etag string, err error), decide func(*state.Draft) error) (*state.State, error) {
	return s.update(ctx, why, func(d *state.Draft) error {
		if m.IfMatch != "" {
			etag, err := current(d.State)
			if err != nil {
				return err
			}
			if !m.matches(etag) {
				return &staleError{what}
			}
		}
		return decide(d)
	})
}

func siteNow(name string) func(*state.State) (string, error) {
	return func(st *state.State) (string, error) {
		site, err := st.FindSite(name)
		return tag(site), err
	}
}

func nodeNow(name string) func(*state.State) (string, error) {
	return func(st *state.State) (string, error) {
		n, err := st.FindNode(name)
		return nodeTag(n), err
	}
}

// tagged is an answer that is one object.
type tagged[T any] struct {
	ETag string `header:"ETag"`
	Body T
}

func withTag[T any](etag string, v T) (*tagged[T], error) {
	return &tagged[T]{fmt.Sprintf("%q", etag), v}, nil
}

// changes marks an operation that takes If-Match, for the description.
func changes(o *huma.Operation) { o.Errors = append(o.Errors, http.StatusPreconditionFailed) }
