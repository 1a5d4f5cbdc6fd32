package doctor

import (
	"maps"
	"slices"
	"time"

	"causeway/hub/api"
)

// Service is what is wrong with a service.
type Service struct {
	Name  string
	Check string // of hub/service
	Text  string
}

// maxServiceFindings bounds the findings of one check on services.
const maxServiceFindings = 20

// services names what keeps services from their backends, or nodes from knowing them. Of a service each check is found once.
func (e *examination) services() {
	type key struct{ name, check string }
	seen, of := map[key]bool{}, map[string]int{}
	for _, s := range e.Facts.Services {
		if seen[key{s.Name, s.Check}] {
			continue
		}
		seen[key{s.Name, s.Check}] = true
		if of[s.Check]++; of[s.Check] > maxServiceFindings {
			continue
		}
		switch s.Check {
		case "service-empty":
			e.find(api.SeverityWarning, "service-empty", s.Name, time.Time{}, "causeway service show "+s.Name, "service %s: %s", s.Name, s.Text)
		case "service-selects-nobody":
			e.find(api.SeverityWarning, "service-selects-nobody", s.Name, time.Time{}, "causeway service show "+s.Name, "service %s: %s", s.Name, s.Text)
		case "service-no-route":
			e.find(api.SeverityWarning, "service-no-route", s.Name, time.Time{}, "causeway route list", "service %s: %s", s.Name, s.Text)
		case "service-public":
			e.find(api.SeverityWarning, "service-public", s.Name, time.Time{}, "causeway service show "+s.Name, "service %s: %s", s.Name, s.Text)
		case "service-switch":
			e.find(api.SeverityCritical, "service-switch", s.Name, time.Time{}, "causeway service show "+s.Name, "service %s: %s", s.Name, s.Text)
		default:
			e.find(api.SeverityWarning, "service-surplus", s.Name, time.Time{}, "causeway service show "+s.Name, "service %s: %s", s.Name, s.Text)
		}
	}
	for _, check := range slices.Sorted(maps.Keys(of)) {
		if n := of[check] - maxServiceFindings; n > 0 {
			e.find(api.SeverityWarning, "service-empty", "services", time.Time{}, "causeway service list", "%d more services have a finding %s", n, check)
		}
	}
}
