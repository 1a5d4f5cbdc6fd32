package service

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"causeway/netns/internal/conntrack"
	"causeway/netns/internal/kernel"
)

// MaxNoted is how many flows Note keeps; Release finds others by itself.
const MaxNoted = 1 << 14

// noted are flows that Release may have to delete, found before it is known whether.
type noted struct {
	mu    sync.Mutex
	flows []conntrack.Flow
}

// begun reports whether Release deletes a flow: one of UDP, or a connection without an answer.
func begun(f conntrack.Flow) bool {
	return f.Proto == unix.IPPROTO_UDP || f.State == conntrack.SynSent
}

// Note looks which flows Release would delete, of whatever backends, so that it need not look for them when it has to be quick: to go
// through conntrack takes 10 ms of a processor, and many times that where others want it. It forgets what was noted before.
func (t *Table) Note(ctx context.Context) error {
	t.noted.mu.Lock()
	t.noted.flows = nil
	t.noted.mu.Unlock()
	return t.each(ctx, func(f conntrack.Flow) error {
		if begun(f) {
			t.noted.mu.Lock()
			defer t.noted.mu.Unlock()
			if len(t.noted.flows) < MaxNoted {
				t.noted.flows = append(t.noted.flows, f.Keep())
			}
		}
		return nil
	})
}

// Release has what is only begun with one of these backends begin again with another: it deletes conntrack's entries of connections
// without an answer, so that the next SYN is translated anew, and those of UDP. It returns how many. Established connections are left
// alone. It comes after the slots were changed.
//
// First go those that Note found, then those that are found now; then those whose packets were under way when the slots changed, and
// which may only be there once no packet is.
func (t *Table) Release(ctx context.Context, backends []Backend) (n int, err error) {
	of := setOf(backends)
	if len(of) == 0 {
		return 0, nil
	}
	d, err := conntrack.NewDeleter()
	if err != nil {
		return 0, err
	}
	defer d.Close()
	free := func(f conntrack.Flow) error {
		if !begun(f) || !of[Backend{f.Proto, f.Answers}] {
			return nil
		}
		gone, err := d.Delete(f)
		if gone {
			n++
		}
		return err
	}
	t.noted.mu.Lock()
	found := t.noted.flows
	t.noted.mu.Unlock()
	for _, f := range found {
		if !of[Backend{f.Proto, f.Answers}] {
			continue
		}
		now, there, err := d.Now(f)
		if there {
			err = free(now)
		}
		if err != nil {
			return n, err
		}
	}
	if err := t.each(ctx, free); err != nil {
		return n, err
	}
	kernel.PacketsPassed()
	return n, t.each(ctx, free)
}

// freeStrays deletes conntrack's entries of what began to a service's address while there was no table, and so is not translated: its next
// packet is.
func (h host) freeStrays() error {
	d, err := conntrack.NewDeleter()
	if err != nil {
		return err
	}
	defer d.Close()
	return conntrack.Each(context.Background(), conntrack.Unreplied, func(f conntrack.Flow) error {
		if f.To != f.Answers || !h.inRange(f.To.Addr()) {
			return nil
		}
		_, err := d.Delete(f)
		return err
	})
}
