package exitstatus

import (
	"context"
	"fmt"
)

// Until does what may take for ever and hears of no context, such as to read a pipe that nobody
// writes to, for as long as ctx lasts: else a program that takes signals for itself would not end by
// one. What did not end by then goes on until the program has ended.
func Until[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("told to end: %w", ctx.Err())
	}
}
