package protocol

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// A single-writer service is switched in two transactions. The first one says To and puts the old site into Fenced: nobody serves,
// and the old site's nodes block what comes through the tunnel to its backends. When all of them have said so, or their lease
// is over, the second one makes To the Writer. The old site stays fenced until every node has heard of that.

// Bounds of Service.Lease.
const (
	MinServiceLease = 15 * time.Second // three statuses
	MaxServiceLease = time.Hour
	// LeaseMargin is how much longer than a lease a hub waits: for clocks that go at different paces and for an agent to notice.
	LeaseMargin = 5 * time.Second
)

// FeatureServiceFence in a Hello says that the agent fences services and keeps their leases. Of another one no lease is ever over.
const FeatureServiceFence = "service-fence"

// ServiceFence is a service of which a node keeps what Fenced says: part of its Status.
type ServiceFence struct {
	Service string `json:"service"`
	Epoch   uint64 `json:"epoch"` // ServiceItem.Epoch that said so
}

// MayServe reports whether a service of mode single-writer may be used at a site, as far as is declared.
func (s Service) MayServe(site string) bool {
	return s.To == "" && site == s.Writer && !slices.Contains(s.Fenced, site)
}

func (s Service) checkFence() error {
	single := s.Mode == ServiceSingleWriter
	switch {
	case !single && (s.Lease != 0 || s.To != "" || len(s.Fenced) > 0):
		return fmt.Errorf("lease, to and fenced: only mode single-writer has them, and this is %s", s.Mode)
	case s.Headless && (s.Lease != 0 || s.To != "" || len(s.Fenced) > 0):
		return errors.New("lease, to and fenced: a headless service has none, since nothing of it passes an address of its own")
	case s.Lease != 0 && (s.Lease < Duration(MinServiceLease) || s.Lease > Duration(MaxServiceLease)):
		return fmt.Errorf("lease: %s is neither 0s nor between %s and %s", s.Lease, MinServiceLease, MaxServiceLease)
	case s.To != "" && !ValidName(s.To):
		return fmt.Errorf("to: %.80q cannot name a site", s.To)
	case s.To != "" && s.To == s.Writer:
		return fmt.Errorf("to: %s is the writer already", s.To)
	case s.To != "" && len(s.Stay) > 0 && !slices.Contains(s.Stay, s.To):
		return fmt.Errorf("to: %s is not among the sites that the service may not leave", s.To)
	}
	return nil
}
