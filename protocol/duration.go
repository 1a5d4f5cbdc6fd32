package protocol

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration whose text and JSON form is Go's, such as 1h30m, and reads
// days too, such as 30d. It is a flag as well.
type Duration time.Duration

// ParseDuration reads Go's text form of a length of time, which may begin with whole days:
// 30d, 1d12h.
func ParseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%.40q is no length of time such as 90s, 12h or 30d", s)
	days, rest, found := strings.Cut(s, "d")
	if !found {
		days, rest = "0", s
	} else if rest == "" {
		rest = "0"
	}
	n, err := strconv.ParseUint(days, 10, 16) // a century is in it, and no overflow
	if err != nil {
		return 0, bad
	}
	d, err := time.ParseDuration(rest)
	if err != nil || found && d < 0 {
		return 0, bad
	}
	if d += time.Duration(n) * 24 * time.Hour; found && d < 0 {
		return 0, bad
	}
	return d, nil
}

// String is Go's text form.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes Go's text form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the text form.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := ParseDuration(string(b))
	if err == nil {
		*d = Duration(v)
	}
	return err
}

// Set reads the text form of a flag.
func (d *Duration) Set(s string) error { return d.UnmarshalText([]byte(s)) }

// Type names the value of a flag in a command's help.
func (d *Duration) Type() string { return "duration" }
