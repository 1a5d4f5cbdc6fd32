package state

import (
	"errors"
	"fmt"
)

// Kind sorts errors by what a caller does about them.
type Kind int

// Kinds of Error.
const (
	Invalid  Kind = iota // the request makes no sense
	NotFound             // it names something that is not there
	Conflict             // it contradicts what is there
	Refused              // the asker may not
	Full                 // numbers or addresses are used up
)

// Error is an error that a person reads: what is wrong, and what to do.
type Error struct {
	Kind Kind
	Text string
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// Errorf makes an Error.
func Errorf(k Kind, format string, args ...any) error {
	return &Error{k, fmt.Sprintf(format, args...)}
}

// IsKind reports whether err is an Error of kind k.
func IsKind(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}
