package state

import "context"

// CompactIfDue is what a store that runs does by itself.
func (s *Store) CompactIfDue(ctx context.Context) error { return s.compact(ctx, false) }
