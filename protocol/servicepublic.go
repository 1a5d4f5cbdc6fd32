package protocol

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Bounds of a public name.
const (
	MaxPublicName      = 100 // bytes, below the zone
	MaxPublicAddresses = 8   // of a site: an answer has those of one site
)

// ServicePublic is the name by which the outside finds a service, below the zone of the hub's DNS server (--dns-zone), and where
// each site is met from there. It is the hub's alone: nodes are not told.
type ServicePublic struct {
	Name      string                  `json:"name,omitempty"` // below the zone, such as web or web.eu; the service's own where it is empty
	Addresses map[string][]netip.Addr `json:"addresses"`      // of sites: a front door, or where nodes expose the service
	TTL       Duration                `json:"ttl,omitempty"`  // how long resolvers keep an answer; 20s, 1s to 1h
}

// Said reports whether anything of it is said.
func (p ServicePublic) Said() bool { return p.Name != "" || len(p.Addresses) > 0 || p.TTL != 0 }

// Normal is p with what it leaves out said, for a service of that name; or what is wrong with it, in one line.
func (p ServicePublic) Normal(service string) (ServicePublic, error) {
	def(&p.Name, service)
	p.Name = strings.ToLower(p.Name)
	def(&p.TTL, Duration(20*time.Second))
	if len(p.Name) > MaxPublicName {
		return p, fmt.Errorf("public: name: longer than %d bytes", MaxPublicName)
	}
	for label := range strings.SplitSeq(p.Name, ".") {
		if !ValidName(label) {
			return p, fmt.Errorf("public: name: %.80q is no name below a zone, such as web or web.eu", p.Name)
		}
	}
	if p.TTL < Duration(time.Second) || p.TTL > Duration(time.Hour) {
		return p, fmt.Errorf("public: ttl: %s is not between 1s and 1h", p.TTL)
	}
	if len(p.Addresses) == 0 {
		return p, errors.New("public: addresses: say where the outside meets each site, such as {idc-sh: [203.0.113.5]}")
	}
	if len(p.Addresses) > MaxServiceSites {
		return p, fmt.Errorf("public: addresses: %d sites, at most %d", len(p.Addresses), MaxServiceSites)
	}
	for _, site := range slices.Sorted(maps.Keys(p.Addresses)) {
		l := p.Addresses[site]
		switch {
		case !ValidName(site):
			return p, fmt.Errorf("public: addresses: %.80q cannot name a site", site)
		case len(l) == 0 || len(l) > MaxPublicAddresses:
			return p, fmt.Errorf("public: addresses: %s has %d, give 1 to %d", site, len(l), MaxPublicAddresses)
		}
		for i, a := range l {
			switch {
			case !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "":
				return p, fmt.Errorf("public: addresses: %s: %s is no address that the outside reaches", site, a)
			case slices.Contains(l[:i], a):
				return p, fmt.Errorf("public: addresses: %s: %s is there twice", site, a)
			}
		}
	}
	return p, nil
}
