package state

import (
	"fmt"
	"time"

	"github.com/nats-io/nkeys"

	"causeway/protocol"
)

// NATSReader is the role of NATS users who follow inventory and events. There is no
// other one.
const NATSReader = "reader"

// NATSUser is whoever may connect to the hub's NATS server from elsewhere: the holder
// of the private key to Key.
type NATSUser struct {
	Name    string
	Role    string
	Key     string // public nkey of a user
	Created time.Time
	Revoked bool
}

// maxNATSUsers bounds the users, those that were revoked included.
const maxNATSUsers = 10000

// NATSUserByKey returns the user, not revoked, who has the private key to a public nkey.
func (s *State) NATSUserByKey(key string) (NATSUser, bool) {
	for _, u := range s.NATSUsers.All() {
		if u.Key == key && !u.Revoked {
			return u, true
		}
	}
	return NATSUser{}, false
}

// FindNATSUser returns the user of that name, or an error for a person.
func (s *State) FindNATSUser(name string) (NATSUser, error) {
	if u, ok := s.NATSUsers.Find(name); ok {
		return u, nil
	}
	return NATSUser{}, Errorf(NotFound, "there is no NATS user %.80q; see 'causeway nats user list'", name)
}

// NATSUserCreated is a new user, or a new key for the name of one that was revoked.
type NATSUserCreated struct {
	Name string `json:"name"`
	Role string `json:"role"`
	Key  string `json:"key"`
}

func (c NATSUserCreated) apply(s *State, t time.Time) error {
	if !protocol.ValidName(c.Name) {
		return Errorf(Invalid, "NATS user name %.80q: use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'", c.Name)
	}
	if c.Role != NATSReader {
		return Errorf(Invalid, "role %.40q: the one role of NATS users is reader", c.Role)
	}
	if len(c.Key) > 80 || !nkeys.IsValidPublicUserKey(c.Key) {
		return Errorf(Invalid, "key %.80q is no public nkey of a user, which begins with U", c.Key)
	}
	for _, u := range s.NATSUsers.All() {
		if u.Key == c.Key {
			return Errorf(Conflict, "the key is that of NATS user %s already; make another", u.Name)
		}
	}
	u, ok := s.NATSUsers.Find(c.Name)
	if ok && !u.Revoked {
		return Errorf(Conflict, "NATS user %s exists already; choose another name, or run 'causeway nats user revoke %s' first", c.Name, c.Name)
	}
	if !ok && s.NATSUsers.Len() >= maxNATSUsers {
		return Errorf(Full, "there are %d NATS users", s.NATSUsers.Len())
	}
	s.NATSUsers.Set(c.Name, NATSUser{Name: c.Name, Role: c.Role, Key: c.Key, Created: t})
	return nil
}

// Describe returns one line.
func (c NATSUserCreated) Describe() string {
	return fmt.Sprintf("NATS user %s created with role %s, key %s", c.Name, c.Role, c.Key)
}

// NATSUserRevoked shuts a user out.
type NATSUserRevoked struct {
	Name string `json:"name"`
}

func (c NATSUserRevoked) apply(s *State, _ time.Time) error {
	u, err := s.FindNATSUser(c.Name)
	if err != nil && s.folding {
		return nil // forgotten, as nothing was when that was stored
	}
	if err != nil {
		return err
	}
	u.Revoked = true
	s.NATSUsers.Set(c.Name, u)
	return nil
}

// Describe returns one line.
func (c NATSUserRevoked) Describe() string { return "NATS user " + c.Name + " revoked" }
