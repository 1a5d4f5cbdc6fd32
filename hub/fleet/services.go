package fleet

import (
	"context"
	"fmt"
	"time"

	"causeway/hub/service"
)

// Services are who serves what, as it was worked out last.
type Services struct {
	Told     *service.Told // nil: there is no service
	Sequence uint64        // of the state that was looked at last
}

// Of is what was worked out of a service; nil: nothing yet.
func (s *Services) Of(name string) *service.Result {
	if s == nil || s.Told == nil {
		return nil
	}
	return s.Told.Services[name]
}

// SetServices takes who serves what. One goroutine alone calls it.
func (t *Table) SetServices(s Services) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.services = &s
	close(t.served)
	t.served = make(chan struct{})
}

// Services is what was worked out last; nil: the hub has just started.
func (t *Table) Services() *Services {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.services
}

// ServicesAt is who serves what once the state with a sequence was looked at: it waits for that a moment. The error is for
// a person.
func (t *Table) ServicesAt(ctx context.Context, sequence uint64) (*Services, error) {
	late := time.NewTimer(policyPatience)
	defer late.Stop()
	for {
		t.mu.Lock()
		s, news := t.services, t.served
		t.mu.Unlock()
		if s != nil && s.Sequence >= sequence {
			return s, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-late.C:
			return nil, fmt.Errorf("the hub has not looked at transaction %d within %s; try again", sequence, policyPatience)
		}
	}
}
