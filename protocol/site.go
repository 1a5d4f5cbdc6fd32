package protocol

import (
	"fmt"
	"net/netip"
	"time"
)

// SiteFields is what operators declare of a site.
type SiteFields struct {
	Ranges     []netip.Prefix `json:"ranges,omitzero"`       // routes inside them are approved by themselves
	MaxAge     MaxAge         `json:"max_age,omitempty"`     // how long its agents go on without any hub, such as 72h, or forever
	RotateKeys RotateKeys     `json:"rotate_keys,omitempty"` // age at which its nodes make new WireGuard keys, such as 30d, or never
}

// RotateKeys is the age at which nodes make new WireGuard keys, Never for none. Its
// JSON form is Go's text, such as 720h0m0s, or never.
type RotateKeys time.Duration

// Never is by command alone. Zero is no choice.
const Never RotateKeys = -1

const never = "never"

// MarshalText writes Go's text form, or never.
func (r RotateKeys) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String is the text form.
func (r RotateKeys) String() string { return term(time.Duration(r), never) }

// UnmarshalText reads the text form of what is more than nothing.
func (r *RotateKeys) UnmarshalText(b []byte) error {
	d, err := parseTerm(b, "30d", never)
	*r = RotateKeys(d)
	return err
}

// MaxAge is how long agents go on without any hub, Forever for no end. Its JSON form is
// Go's text, such as 168h0m0s, or forever.
type MaxAge time.Duration

// Forever is no end. Zero is no choice.
const Forever MaxAge = -1

const forever = "forever"

// MarshalText writes Go's text form, or forever.
func (a MaxAge) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// String is the text form.
func (a MaxAge) String() string { return term(time.Duration(a), forever) }

// UnmarshalText reads the text form of what is more than nothing.
func (a *MaxAge) UnmarshalText(b []byte) error {
	d, err := parseTerm(b, "7d", forever)
	*a = MaxAge(d)
	return err
}

// term is the text of a length of time, and none of -1.
func term(d time.Duration, none string) string {
	if d == -1 {
		return none
	}
	return d.String()
}

// parseTerm reads what term wrote, of what is more than nothing.
func parseTerm(b []byte, example, none string) (time.Duration, error) {
	if string(b) == none {
		return -1, nil
	}
	d, err := ParseDuration(string(b))
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%.40q is no length of time such as %s, nor %s", b, example, none)
	}
	return d, nil
}
