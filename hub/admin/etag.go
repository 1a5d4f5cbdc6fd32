package admin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/state"
	"causeway/protocol"
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

// nodeTag leaves out what the node's agent says of itself.
func nodeTag(n state.Node) string {
	n.Statement, n.WireGuardKey, n.KeySince, n.Proven = nil, protocol.WireGuardPublicKey{}, time.Time{}, time.Time{}
	return tag(n)
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
