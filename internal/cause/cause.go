// Package cause finds what an error began with.
package cause

import (
	"errors"
	"io/fs"
)

// Cure is what to do about a file that could not be read: what otherwise says, unless the user that runs
// the program may not.
func Cure(err error, otherwise string) string {
	if errors.Is(err, fs.ErrPermission) {
		return "give it to the user that runs this program, who alone shall read it"
	}
	return otherwise
}

// Innermost returns the first error of a chain: what the system said, such as
// 'permission denied', without the paths and operations around it.
func Innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
