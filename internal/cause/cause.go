// Package cause finds what an error began with.
package cause

import "errors"

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
