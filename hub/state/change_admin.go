package state

import (
	"fmt"
	"slices"
	"time"

	"causeway/protocol"
)

// Admin is whoever may use the admin API of one hub from elsewhere than its host,
// with the one certificate that was issued to him.
type Admin struct {
	Name    string
	Role    string              // viewer, operator or admin
	Hub     protocol.NodeNumber // whose CA issued the certificate
	Cert    [32]byte            // SHA-256 of the certificate
	Created time.Time
	Expires time.Time
	Revoked bool
}

// AdminState is where an admin is in his life.
type AdminState string

// Admin states.
const (
	AdminActive  AdminState = "active"
	AdminExpired AdminState = "expired"
	AdminRevoke  AdminState = "revoked"
)

// State returns the admin's state at time t.
func (a Admin) State(t time.Time) AdminState {
	switch {
	case a.Revoked:
		return AdminRevoke
	case !t.Before(a.Expires):
		return AdminExpired
	}
	return AdminActive
}

// maxAdmins bounds the admins, those that were revoked included.
const maxAdmins = 10000

// AdminByCert returns who was issued the certificate with that SHA-256.
func (s *State) AdminByCert(sum [32]byte) (Admin, bool) {
	for _, a := range s.Admins.All() {
		if a.Cert == sum {
			return a, true
		}
	}
	return Admin{}, false
}

// FindAdmin returns the admin of that name, or an error for a person.
func (s *State) FindAdmin(name string) (Admin, error) {
	if a, ok := s.Admins.Find(name); ok {
		return a, nil
	}
	return Admin{}, Errorf(NotFound, "there is no admin %.80q; see 'causeway admin list'", name)
}

// AdminCreated is a new admin, or a new certificate for the name of one whose own is
// revoked or expired.
type AdminCreated struct {
	Name    string              `json:"name"`
	Role    string              `json:"role"`
	Hub     protocol.NodeNumber `json:"hub"`
	Cert    []byte              `json:"certificate_sha256"`
	Expires time.Time           `json:"expires"`
}

func (c AdminCreated) apply(s *State, t time.Time) error {
	if !protocol.ValidName(c.Name) {
		return Errorf(Invalid, "admin name %.80q: use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'", c.Name)
	}
	if !slices.Contains([]string{"viewer", "operator", "admin"}, c.Role) {
		return Errorf(Invalid, "role %.40q: use viewer, operator or admin", c.Role)
	}
	if a, ok := s.Admins.Find(c.Name); ok && a.State(t) == AdminActive {
		return Errorf(Conflict, "admin %s exists already; choose another name, or run 'causeway admin revoke %s' first", c.Name, c.Name)
	}
	if len(c.Cert) != 32 {
		return Errorf(Invalid, "admin %s has no certificate", c.Name)
	}
	if !c.Expires.After(t) {
		return Errorf(Invalid, "the certificate would expire at once")
	}
	if s.Admins.Len() >= maxAdmins {
		return Errorf(Full, "there are %d admins", s.Admins.Len())
	}
	s.Admins.Set(c.Name, Admin{Name: c.Name, Role: c.Role, Hub: c.Hub, Cert: [32]byte(c.Cert), Created: t, Expires: c.Expires})
	return nil
}

// Describe returns one line.
func (c AdminCreated) Describe() string {
	return fmt.Sprintf("admin %s created with role %s, certificate expires %s", c.Name, c.Role, c.Expires.UTC().Format(time.RFC3339))
}

// AdminRevoked shuts an admin out.
type AdminRevoked struct {
	Name string `json:"name"`
}

func (c AdminRevoked) apply(s *State, _ time.Time) error {
	a, err := s.FindAdmin(c.Name)
	if err != nil && s.folding {
		return nil // forgotten, as nothing was when that was stored
	}
	if err != nil {
		return err
	}
	a.Revoked = true
	s.Admins.Set(c.Name, a)
	return nil
}

// Describe returns one line.
func (c AdminRevoked) Describe() string { return "admin " + c.Name + " revoked" }
